//! The verdict: each stage of a trace against the truth and its budget.
//!
//! A stage has up to two errors. The *local* one is against the reference applied to the candidate's own inputs of that
//! stage: it says where a bug is. The *propagated* one is against the truth's own run: it says what came of it. The verdict
//! names the first stage, in forward order, that one of them puts over its budget.
//!
//! Numbers are held against their budget in four metrics. What is discrete is judged apart: the experts of a token are
//! compared as a set, in no order, and their weights by expert; NaN and infinity, and so the masked scores, must be in
//! exactly the same places; what is only copied may not differ in a bit. A size-1 axis more or less never matters.

pub mod near_tie;
pub mod routing;

use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;
use ndarray::ArrayD;
use schemars::JsonSchema;
use serde::Serialize;

use crate::budget::Budgets;
use crate::metrics::{self, Comparison, Element, Metrics, NAMES};
use crate::rows::ComparedRows;
use crate::stage::{Stage, forward_order};
use crate::trace::Trace;
use crate::values::{Values, fit};

/// What became of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
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
    /// Its own errors: against the reference on the candidate's own inputs.
    pub local: Option<Metrics>,
    /// What these may be.
    pub budget: Option<Metrics>,
    /// Its errors against the truth's own run.
    pub propagated: Option<Metrics>,
    /// What these may be, if that is known.
    pub propagated_budget: Option<Metrics>,
    /// The element that is furthest off, or the one that decided.
    pub element: Option<Element>,
    /// What is wrong, if no number says it.
    pub note: Option<String>,
}

impl StageVerdict {
    fn new(stage: &str, disposition: Disposition) -> Self {
        StageVerdict {
            stage: stage.to_owned(),
            disposition,
            local: None,
            budget: None,
            propagated: None,
            propagated_budget: None,
            element: None,
            note: None,
        }
    }

    /// The error that counts, and its budget: the local one if it fails, else the one that uses more of its budget.
    pub fn deciding(&self) -> Option<(Metrics, Metrics)> {
        let local = self.local.zip(self.budget);
        let propagated = self.propagated.zip(self.propagated_budget);
        match (local, propagated) {
            (Some(local), Some(propagated)) if ratio(&local) <= 1.0 && ratio(&propagated) > ratio(&local) => {
                Some(propagated)
            }
            (local, propagated) => local.or(propagated),
        }
    }

    /// The metric to show: the first that is over its budget, else the one that takes most of it. Its name, the error, the
    /// budget.
    pub fn worst_metric(&self) -> Option<(&'static str, f64, f64)> {
        let (error, budget) = self.deciding()?;
        let (error, budget) = (error.values(), budget.values());
        let metrics = (0..NAMES.len()).map(|i| (NAMES[i], error[i], budget[i]));
        let over = metrics.clone().find(|(_, error, budget)| error > budget);
        over.or_else(|| metrics.rev().max_by(|a, b| part(a.1, a.2).total_cmp(&part(b.1, b.2))))
    }

    /// How much of the budget is used by the metric that uses most.
    pub fn ratio(&self) -> Option<f64> {
        self.deciding().as_ref().map(ratio)
    }
}

fn ratio((error, budget): &(Metrics, Metrics)) -> f64 {
    error.zip(budget, part).values().into_iter().fold(0.0, f64::max)
}

/// How much of the budget an error takes; of none, everything if there is an error.
fn part(error: f64, budget: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / budget }
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

    /// With a line for each stage of the model that was not held, in forward order. `names` are all stages, in that order.
    pub fn with_not_held<'a>(mut self, names: impl Iterator<Item = &'a str>) -> Self {
        let judged: BTreeSet<String> = self.stages.iter().map(|stage| stage.stage.clone()).collect();
        let not_held = names.filter(|name| !judged.contains(*name));
        self.stages.extend(not_held.map(|name| StageVerdict::new(name, Disposition::NotHeld)));
        self.stages.sort_by_key(|stage| forward_order(&stage.stage));
        self
    }

    /// How many stages were compared.
    pub fn compared(&self) -> usize {
        self.stages.iter().filter(|stage| stage.disposition.compared()).count()
    }
}

/// What a trace is held against.
#[derive(Clone, Copy)]
pub struct Truth<'a> {
    /// The right tensors.
    pub trace: &'a Trace,
    /// How far off a stage may be.
    pub budgets: &'a Budgets,
    /// Which rows mean something.
    pub rows: &'a ComparedRows,
}

/// The truth of each stage by itself.
#[derive(Clone, Copy)]
pub struct LocalTruth<'a> {
    /// What the reference makes of the candidate's own inputs of each stage.
    pub truth: Truth<'a>,
    /// The stages of which not a bit may differ.
    pub exact: &'a BTreeSet<String>,
    /// How experts are selected, if a choice is to be held against the candidate's own logits.
    pub method: Option<TopkMethod>,
}

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

/// What holding a stage against one truth gives.
pub struct Held {
    disposition: Disposition,
    error: Option<Metrics>,
    budget: Option<Metrics>,
    element: Option<Element>,
    note: Option<String>,
}

impl Held {
    fn new(disposition: Disposition) -> Self {
        Held { disposition, error: None, budget: None, element: None, note: None }
    }

    fn noted(disposition: Disposition, note: String) -> Self {
        Held { note: Some(note), ..Held::new(disposition) }
    }
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
            None => wrong_shape(got.shape(), want.shape()),
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
    let rows = truth.rows.of_stage(stage, want.shape());
    let compared = metrics::compare(got.view(), want.view(), rows.as_deref());
    let Comparison { metrics, worst, nonfinite, rows } = compared;
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
    Held {
        error: (rows > 0 && nonfinite.is_none()).then_some(metrics),
        budget,
        element: nonfinite.or(worst),
        note,
        disposition,
    }
}

fn wrong_shape(got: &[usize], want: &[usize]) -> Held {
    Held::noted(Disposition::WrongShape, format!("shape {got:?} where {want:?} is expected"))
}

#[cfg(test)]
mod tests;
