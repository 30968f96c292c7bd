//! The verdict: each stage of a trace against the truth and its budget.
//!
//! A stage has up to two errors. The *local* one is against the reference applied to the candidate's own inputs of that
//! stage: it says where a bug is. The *propagated* one is against the truth's own run: it says what came of it. The verdict
//! names the first stage, in forward order, that one of them puts over its budget.
//!
//! Numbers are held against their budget in four metrics. What is discrete is judged apart: the experts of a token are
//! compared as a set, in no order, and their weights by expert; NaN and infinity, and so the masked scores, must be in
//! exactly the same places; copied tensors must be bit-identical. A size-1 axis more or less never matters.

mod held;
pub mod near_tie;
pub mod routing;
mod verdict;

use dsv2_metrics::{Comparison, Metrics};
use dsv2_reference::stage::Stage;
use ndarray::ArrayD;

use crate::trace::Trace;
use crate::values::{Values, fit};
use held::Held;
pub use held::{LocalTruth, Truth};
pub use verdict::{Disposition, StageVerdict, Verdict};

/// Judges every stage of the truth. A stage that the candidate does not hold fails if `required` says so.
pub fn judge(
    candidate: &Trace,
    propagated: &Truth<'_>,
    local: Option<&LocalTruth<'_>>,
    required: impl Fn(&str) -> bool,
) -> Verdict {
    let known = propagated.trace.iter().filter_map(|(name, want)| Some((name, Stage::parse(name)?, want)));
    let verdict = |(name, stage, want): (&str, Stage, &Values)| match candidate.get(name) {
        None if required(name) => StageVerdict::new(name, Disposition::Missing),
        None => StageVerdict::new(name, Disposition::NotHeld),
        Some(got) => {
            let carried = hold((name, &stage), got, want, candidate, propagated);
            let own = local.and_then(|local| hold_locally((name, &stage), got, candidate, local));
            StageVerdict { stage: name.to_owned(), ..combine(carried, own) }
        }
    };
    Verdict { stages: known.map(verdict).collect() }
}

/// The stage fails if either fails; it is compared if either is.
fn combine(carried: Held, own: Option<Held>) -> StageVerdict {
    let own = own.unwrap_or_else(|| Held::new(Disposition::NotCompared));
    let decides = |held: &Held| held.disposition.fails();
    let own_decides = decides(&own) || (!decides(&carried) && own.disposition.compared());
    let (disposition, element, note) = if own_decides {
        (own.disposition, own.element, own.note)
    } else {
        (carried.disposition, carried.element, carried.note)
    };
    StageVerdict {
        elements: own.elements.max(carried.elements),
        local: own.error,
        budget: own.budget,
        propagated: carried.error,
        propagated_budget: carried.budget,
        element,
        note,
        ..StageVerdict::new("", disposition)
    }
}

fn hold((name, stage): (&str, &Stage), got: &Values, want: &Values, candidate: &Trace, truth: &Truth<'_>) -> Held {
    match (got, want) {
        (Values::Index(got), Values::Index(want)) => {
            let rows = truth.rows.of_stage(stage, want.shape());
            routing::judge_experts(got, want, rows.as_deref())
        }
        (Values::Real(_, got), Values::Real(_, want)) => match fit(got, want.shape()) {
            Some(got) => {
                let got = routing::by_expert(name, got, candidate, truth.trace);
                judge_numbers(stage, &got, want, truth, truth.budgets.get(name))
            }
            None => Held::misshapen(got.shape(), want.shape()),
        },
        (got, want) => {
            let note = format!("{} where {} is expected", got.describe(), want.describe());
            Held::noted(Disposition::WrongShape, note)
        }
    }
}

fn hold_locally(
    (name, stage): (&str, &Stage),
    got: &Values,
    candidate: &Trace,
    local: &LocalTruth<'_>,
) -> Option<Held> {
    let want = local.truth.trace.get(name)?;
    match (got, want) {
        (Values::Index(got), Values::Index(_)) => {
            routing::judge_choice(name, got, candidate, &local.truth, local.method?)
        }
        (Values::Real(_, got), Values::Real(_, want)) if local.exact.contains(name) => {
            let got = fit(got, want.shape())?;
            Some(judge_numbers(stage, &got, want, &local.truth, Some(Metrics::default())))
        }
        _ => Some(hold((name, stage), got, want, candidate, &local.truth)),
    }
}

fn judge_numbers(
    stage: &Stage,
    got: &ArrayD<f64>,
    want: &ArrayD<f64>,
    truth: &Truth<'_>,
    budget: Option<Metrics>,
) -> Held {
    weighed(truth.rows.compare(stage, got, want), want.shape(), budget)
}

/// What becomes of a stage of this shape that was compared by itself and with the truth's own run. `budget` is what it may be
/// off by itself.
pub fn of_comparisons(
    stage: &str,
    shape: &[usize],
    own: Comparison,
    carried: Comparison,
    budget: Option<Metrics>,
) -> StageVerdict {
    let verdict = combine(weighed(carried, shape, None), Some(weighed(own, shape, budget)));
    StageVerdict { stage: stage.to_owned(), ..verdict }
}

/// What becomes of a stage of this shape that was compared with the truth alone, and may be off by `budget`.
pub fn of_comparison(stage: &str, shape: &[usize], carried: Comparison, budget: Option<Metrics>) -> StageVerdict {
    StageVerdict { stage: stage.to_owned(), ..combine(weighed(carried, shape, budget), None) }
}

fn weighed(comparison: Comparison, shape: &[usize], budget: Option<Metrics>) -> Held {
    let Comparison { metrics, worst, nonfinite, rows } = comparison;
    let disposition = match budget {
        _ if rows == 0 => Disposition::NotCompared,
        _ if nonfinite.is_some() => Disposition::NonFinite,
        None => Disposition::NotCompared,
        Some(budget) if metrics.values().iter().zip(budget.values()).all(|(error, budget)| *error <= budget) => {
            Disposition::Pass
        }
        Some(_) => Disposition::OverBudget,
    };
    let note = nonfinite.as_ref().map(|at| format!("{} at {:?} where {} is expected", at.got, at.index, at.want));
    let width = shape.last().copied().unwrap_or(1);
    Held {
        elements: if disposition.compared() { rows * width } else { 0 },
        error: (rows > 0 && nonfinite.is_none()).then_some(metrics),
        budget,
        element: nonfinite.or(worst),
        note,
        disposition,
    }
}

#[cfg(test)]
mod tests;
