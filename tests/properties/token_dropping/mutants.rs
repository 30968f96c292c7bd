//! Other rules by which tokens are dropped.

use std::cmp::Ordering;

use dsv2_reference::paper::training::token_dropping::capacity;

use super::*;

/// Whether a pair (token, slot, score) goes before another.
type Order = fn(&(usize, usize, f64), &(usize, usize, f64)) -> Ordering;

/// Dropping by other rules: the segments that share a budget, the budget of one of them, and who goes first. What is
/// protected stays.
pub(super) struct Rule {
    per_expert: bool,
    budget: fn(f64, usize, usize) -> usize,
    first: Order,
}

const LOWEST_FIRST: Order = |a, b| a.2.total_cmp(&b.2).then((b.0, b.1).cmp(&(a.0, a.1)));

const RULE: Rule = Rule { per_expert: false, budget: capacity, first: LOWEST_FIRST };

impl Rule {
    /// Each expert has a budget, as in GShard, instead of each device.
    pub(super) const CAPACITY_PER_EXPERT: Rule = Rule { per_expert: true, ..RULE };
    /// The budget rounded down.
    pub(super) const FLOOR: Rule =
        Rule { budget: |factor, pairs, devices| (factor * pairs as f64 / devices as f64) as usize, ..RULE };
    /// The budget of one device for all.
    pub(super) const WHOLE: Rule = Rule { budget: |factor, pairs, _| capacity(factor, pairs, 1), ..RULE };
    /// The highest affinity goes first.
    pub(super) const HIGHEST_FIRST: Rule = Rule { first: |a, b| b.2.total_cmp(&a.2), ..RULE };
    /// Who comes last goes first, as in GShard and Switch Transformers.
    pub(super) const LAST_FIRST: Rule = Rule { first: |a, b| (b.0, b.1).cmp(&(a.0, a.1)), ..RULE };
    /// Of equals the earlier goes first.
    pub(super) const EARLIER_FIRST: Rule =
        Rule { first: |a, b| a.2.total_cmp(&b.2).then((a.0, a.1).cmp(&(b.0, b.1))), ..RULE };

    pub(super) fn dropping(self) -> impl Fn(&Routing<f64>, &Placement, Phase) -> Array2<bool> {
        move |routing, placement, phase| {
            let mut stays = Array2::from_elem(routing.topk_indices.dim(), true);
            let Phase::Training { capacity_factor, protected } = phase else { return stays };
            let scores = routing.scores();
            let segments = if self.per_expert { placement.experts() } else { placement.devices() };
            let budget = (self.budget)(capacity_factor, stays.len(), segments);
            for segment in 0..segments {
                let mut pairs: Vec<_> =
                    routing.topk_indices.indexed_iter().map(|((t, slot), &e)| (t, slot, e as usize)).collect();
                pairs.retain(|&(_, _, e)| segment == if self.per_expert { e } else { placement.device_of(e) });
                let excess = pairs.len().saturating_sub(budget);
                let length = stays.nrows() / protected.len();
                pairs.retain(|&(t, ..)| !protected[t / length]);
                let mut pairs: Vec<_> = pairs.into_iter().map(|(t, slot, e)| (t, slot, scores[[t, e]])).collect();
                pairs.sort_by(self.first);
                pairs.iter().take(excess).for_each(|&(t, slot, _)| stays[[t, slot]] = false);
            }
            stays
        }
    }
}

/// The reference with the phase changed.
pub(super) fn in_phase(
    change: impl Fn(f64, &[bool]) -> (f64, Vec<bool>),
) -> impl Fn(&Routing<f64>, &Placement, Phase) -> Array2<bool> {
    move |routing, placement, phase| match phase {
        Phase::Evaluation => reference(routing, placement, phase),
        Phase::Training { capacity_factor, protected } => {
            let (capacity_factor, protected) = change(capacity_factor, protected);
            reference(routing, placement, Phase::Training { capacity_factor, protected: &protected })
        }
    }
}
