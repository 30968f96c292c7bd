//! The verdict: each stage of a trace against the truth and its budget.
//!
//! Numbers are held against their budget in four metrics. What is discrete is judged apart: the experts of a token are
//! compared as a set, in no order, and their weights by expert; NaN and infinity, and so the masked scores, must be in
//! exactly the same places. A size-1 axis more or less never matters.

pub mod near_tie;
mod routing;

use ndarray::ArrayD;
use serde::Serialize;

use crate::budget::Budgets;
use crate::metrics::{self, Comparison, Element, Metrics, NAMES};
use crate::rows::ComparedRows;
use crate::stage::Stage;
use crate::trace::Trace;
use crate::values::{Values, fit};

/// What became of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disposition {
    /// Within its budget.
    Pass,
    /// An error is over its budget.
    OverBudget,
    /// NaN or infinity where the truth has none, or the other way round.
    NonFinite,
    /// Another shape than the truth's, size-1 axes aside; or indices in place of numbers.
    WrongShape,
    /// A token goes to other experts than in the truth.
    WrongRouting,
    /// The trace does not hold the stage, and had to.
    Missing,
    /// The trace does not hold the stage, and need not.
    NotHeld,
    /// Nothing is compared: no row of it means anything, or no budget is known.
    NotCompared,
}

impl Disposition {
    /// Whether it makes the whole fail.
    pub fn fails(self) -> bool {
        !matches!(self, Disposition::Pass | Disposition::NotHeld | Disposition::NotCompared)
    }

    /// Whether the stage was compared with the truth.
    pub fn compared(self) -> bool {
        !matches!(self, Disposition::Missing | Disposition::NotHeld | Disposition::NotCompared)
    }
}

/// What there is to say of one stage.
#[derive(Clone, Debug)]
pub struct StageVerdict {
    /// The stage.
    pub stage: String,
    /// What became of it.
    pub disposition: Disposition,
    /// Its errors, if they are numbers.
    pub error: Option<Metrics>,
    /// What they may be.
    pub budget: Option<Metrics>,
    /// The element that is furthest off, or the one that decided.
    pub element: Option<Element>,
    /// What is wrong, if no number says it.
    pub note: Option<String>,
}

impl StageVerdict {
    fn new(stage: &str, disposition: Disposition) -> Self {
        StageVerdict { stage: stage.to_owned(), disposition, error: None, budget: None, element: None, note: None }
    }

    fn noted(stage: &str, disposition: Disposition, note: String) -> Self {
        StageVerdict { note: Some(note), ..Self::new(stage, disposition) }
    }

    /// The metric to show: the first that is over its budget, else the one that takes most of it. Its name, the error, the
    /// budget.
    pub fn worst_metric(&self) -> Option<(&'static str, f64, f64)> {
        let (error, budget) = (self.error?.values(), self.budget?.values());
        let metrics = (0..NAMES.len()).map(|i| (NAMES[i], error[i], budget[i]));
        let over = metrics.clone().find(|(_, error, budget)| error > budget);
        over.or_else(|| metrics.rev().max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2))))
    }

    /// How much of the budget is used by the metric that uses most.
    pub fn ratio(&self) -> Option<f64> {
        let (error, budget) = (self.error?, self.budget?);
        error.zip(&budget, |error, budget| error / budget).values().into_iter().max_by(f64::total_cmp)
    }
}

/// What became of a whole trace: one verdict for each stage, in forward order.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// One for each stage of the truth.
    pub stages: Vec<StageVerdict>,
}

impl Verdict {
    /// Whether no stage fails.
    pub fn passes(&self) -> bool {
        self.first_failure().is_none()
    }

    /// The first stage in forward order that fails: where to look for the bug.
    pub fn first_failure(&self) -> Option<&StageVerdict> {
        self.stages.iter().find(|stage| stage.disposition.fails())
    }

    /// The stage that takes most of its budget.
    pub fn worst(&self) -> Option<&StageVerdict> {
        let judged = self.stages.iter().filter(|stage| stage.ratio().is_some());
        judged.max_by(|a, b| a.ratio().unwrap_or(0.0).total_cmp(&b.ratio().unwrap_or(0.0)))
    }

    /// How many stages were compared.
    pub fn compared(&self) -> usize {
        self.stages.iter().filter(|stage| stage.disposition.compared()).count()
    }
}

/// What a trace is held against.
pub struct Truth<'a> {
    /// The right tensors.
    pub trace: &'a Trace,
    /// How far off a stage may be.
    pub budgets: &'a Budgets,
    /// Which rows mean something.
    pub rows: &'a ComparedRows,
}

/// Judges every stage of the truth. A stage that the candidate does not hold fails if `required` says so.
pub fn judge(candidate: &Trace, truth: &Truth<'_>, required: impl Fn(&str) -> bool) -> Verdict {
    let known = truth.trace.iter().filter_map(|(name, want)| Some((name, Stage::parse(name)?, want)));
    let verdict = |(name, stage, want): (&str, Stage, &Values)| match (candidate.get(name), want) {
        (None, _) if required(name) => StageVerdict::new(name, Disposition::Missing),
        (None, _) => StageVerdict::new(name, Disposition::NotHeld),
        (Some(Values::Index(got)), Values::Index(want)) => {
            let rows = truth.rows.of_stage(&stage, want.shape());
            routing::judge_experts(name, got, want, rows.as_deref())
        }
        (Some(Values::Real(_, got)), Values::Real(_, want)) => match fit(got, want.shape()) {
            Some(got) => {
                let got = routing::by_expert(name, got, candidate, truth.trace);
                judge_numbers(name, &stage, &got, want, truth)
            }
            None => wrong_shape(name, got.shape(), want.shape()),
        },
        (Some(got), want) => {
            let note = format!("{} where {} is expected", got.describe(), want.describe());
            StageVerdict::noted(name, Disposition::WrongShape, note)
        }
    };
    Verdict { stages: known.map(verdict).collect() }
}

fn judge_numbers(name: &str, stage: &Stage, got: &ArrayD<f64>, want: &ArrayD<f64>, truth: &Truth<'_>) -> StageVerdict {
    let rows = truth.rows.of_stage(stage, want.shape());
    let compared = metrics::compare(got.view(), want.view(), rows.as_deref());
    let Comparison { metrics, worst, nonfinite, rows } = compared;
    let budget = truth.budgets.get(name);
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
    StageVerdict {
        error: (rows > 0 && nonfinite.is_none()).then_some(metrics),
        budget,
        element: nonfinite.or(worst),
        note,
        ..StageVerdict::new(name, disposition)
    }
}

fn wrong_shape(name: &str, got: &[usize], want: &[usize]) -> StageVerdict {
    StageVerdict::noted(name, Disposition::WrongShape, format!("shape {got:?} where {want:?} is expected"))
}

#[cfg(test)]
mod tests;
