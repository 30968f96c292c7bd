//! Near ties: a choice of experts that a correct implementation may make, because its logits are not exactly the truth's.
//!
//! A set S of experts is acceptable for logits z and an error ε if it is what the router selects from some z + δ with
//! |δ_e| <= ε for all e. That can be decided exactly (the softmax keeps the order, so logits do for scores):
//!
//! * greedy: raise S by ε, lower all others by ε; S must then be the best k.
//! * groups: S lies in some set G of `topk_group` groups. Raise S by ε and lower all others; inside G none outside S may be above
//!   the lowest of S. Then raise the others of G as far as that allows, since they help G to be selected: the best expert of
//!   each group of G must be no lower than the best of each other group.

mod alternatives;

use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;

pub use alternatives::{Alternatives, alternatives};

/// Whether `chosen` is a possible selection from `logits` known to within `epsilon`.
pub fn acceptable(method: TopkMethod, logits: &[f64], chosen: &BTreeSet<usize>, epsilon: f64) -> bool {
    let moved: Vec<f64> =
        logits.iter().enumerate().map(|(e, z)| if chosen.contains(&e) { z + epsilon } else { z - epsilon }).collect();
    let lowest = chosen.iter().map(|&e| moved[e]).fold(f64::INFINITY, f64::min);
    let is_best_of =
        |experts: &mut dyn Iterator<Item = usize>| experts.filter(|e| !chosen.contains(e)).all(|e| moved[e] <= lowest);
    let TopkMethod::GroupLimitedGreedy { n_group, topk_group } = method else {
        return is_best_of(&mut (0..logits.len()));
    };
    let size = logits.len() / n_group;
    let group_of = |e: usize| e / size;
    let used: BTreeSet<usize> = chosen.iter().map(|&e| group_of(e)).collect();
    let best = |group: usize, value: &dyn Fn(usize) -> f64| {
        (group * size..(group + 1) * size).map(value).fold(f64::NEG_INFINITY, f64::max)
    };
    // A group that holds none of S is as good as its best expert can be without being selected itself.
    let as_filler = |group| best(group, &|e| (logits[e] + epsilon).min(lowest));
    let free: Vec<usize> = (0..n_group).filter(|group| !used.contains(group)).collect();
    let Some(fillers) = topk_group.checked_sub(used.len()) else { return false };
    // Of the groups without S, only those whose experts may stay below S can be kept; the best of these are the best choice.
    let mut keepable: Vec<usize> =
        free.iter().copied().filter(|group| is_best_of(&mut (group * size..(group + 1) * size))).collect();
    keepable.sort_by(|&a, &b| best(b, &|e| logits[e]).total_cmp(&best(a, &|e| logits[e])));
    if keepable.len() < fillers || !used.iter().all(|group| is_best_of(&mut (group * size..(group + 1) * size))) {
        return false;
    }
    let (kept, _) = keepable.split_at(fillers);
    let raised = |e: usize| if chosen.contains(&e) { moved[e] } else { (logits[e] + epsilon).min(lowest) };
    let worst_kept = used
        .iter()
        .map(|&group| best(group, &raised))
        .chain(kept.iter().map(|&group| as_filler(group)))
        .fold(f64::INFINITY, f64::min);
    let best_left = free
        .iter()
        .filter(|group| !kept.contains(group))
        .map(|&group| best(group, &|e| moved[e]))
        .fold(f64::NEG_INFINITY, f64::max);
    worst_kept >= best_left
}

#[cfg(test)]
mod tests {
    use dsv2_reference::weights::generator::splitmix64;

    use super::*;

    const GROUPS: TopkMethod = TopkMethod::GroupLimitedGreedy { n_group: 4, topk_group: 2 };

    fn uniform(seed: u64) -> f64 {
        (splitmix64(seed) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The router's rule, written once more: the best expert of each group, the best groups, the best experts in them.
    fn select(method: TopkMethod, z: &[f64], k: usize) -> BTreeSet<usize> {
        let by_value = |items: Vec<usize>, value: &dyn Fn(usize) -> f64, count: usize| {
            let mut items = items;
            items.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
            items.truncate(count);
            items
        };
        let candidates = match method {
            TopkMethod::Greedy => (0..z.len()).collect(),
            TopkMethod::GroupLimitedGreedy { n_group, topk_group } => {
                let size = z.len() / n_group;
                let best = |g: usize| z[g * size..(g + 1) * size].iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let kept = by_value((0..n_group).collect(), &best, topk_group);
                kept.into_iter().flat_map(|g| g * size..(g + 1) * size).collect()
            }
        };
        by_value(candidates, &|e| z[e], k).into_iter().collect()
    }

    #[test]
    fn whatever_a_perturbation_selects_is_acceptable() {
        let mut flips = 0;
        for trial in 0..4000 {
            let z: Vec<f64> = (0..12).map(|e| uniform(100 * trial + e)).collect();
            let moved: Vec<f64> =
                (0..12).map(|e| z[e as usize] + 0.1 * (uniform(100 * trial + 50 + e) - 0.5)).collect();
            for method in [TopkMethod::Greedy, GROUPS] {
                let chosen = select(method, &moved, 3);
                flips += usize::from(chosen != select(method, &z, 3));
                assert!(acceptable(method, &z, &chosen, 0.05), "{method:?} {z:?} {chosen:?}");
            }
        }
        assert!(flips > 500, "{flips}");
    }

    #[test]
    fn what_is_acceptable_can_be_selected_by_a_perturbation_and_nothing_else_is() {
        // Exhaustively: every set of 2 of 6 experts, every perturbation of a grid that holds the extreme ones.
        let groups = TopkMethod::GroupLimitedGreedy { n_group: 3, topk_group: 2 };
        let epsilon = 0.1;
        for trial in 0..60 {
            let z: Vec<f64> = (0..6).map(|e| (uniform(7 * trial + e) * 8.0).floor() / 16.0 + e as f64 * 1e-4).collect();
            let steps = [-1.0, -0.5, 0.0, 0.5, 1.0];
            let mut reachable: [BTreeSet<BTreeSet<usize>>; 2] = Default::default();
            for code in 0..5_usize.pow(6) {
                let moved: Vec<f64> =
                    (0..6).map(|e| z[e] + 0.999 * epsilon * steps[code / 5_usize.pow(e as u32) % 5]).collect();
                reachable[0].insert(select(TopkMethod::Greedy, &moved, 2));
                reachable[1].insert(select(groups, &moved, 2));
            }
            for (reachable, method) in reachable.iter().zip([TopkMethod::Greedy, groups]) {
                for a in 0..6 {
                    for b in a + 1..6 {
                        let chosen = BTreeSet::from([a, b]);
                        let (found, accepted) = (reachable.contains(&chosen), acceptable(method, &z, &chosen, epsilon));
                        assert!(accepted || !found, "{method:?} {z:?}: {chosen:?} can be selected");
                        // The grid is coarse: what a tenth less would accept, it must find.
                        let surely = acceptable(method, &z, &chosen, 0.85 * epsilon);
                        assert!(
                            found || !surely || method != TopkMethod::Greedy,
                            "{z:?}: {chosen:?} cannot be selected"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn without_an_error_only_the_selection_itself_is_acceptable() {
        let z: Vec<f64> = (0..12).map(uniform).collect();
        for method in [TopkMethod::Greedy, GROUPS] {
            let selected = select(method, &z, 3);
            assert!(acceptable(method, &z, &selected, 0.0));
            let mut other = selected.clone();
            other.pop_first();
            other.insert((0..12).find(|e| !selected.contains(e)).unwrap());
            assert!(!acceptable(method, &z, &other, 1e-6));
        }
    }

    #[test]
    fn too_many_groups_are_never_acceptable() {
        assert!(!acceptable(GROUPS, &[0.0; 12], &BTreeSet::from([0, 4, 8]), 1.0));
    }
}
