//! What is said of a stage, and of all stages of a trace.

use std::collections::BTreeSet;

use dsv2_metrics::{Element, Metrics, NAMES};
use dsv2_reference::stage::forward_order;
use schemars::JsonSchema;
use serde::Serialize;

use crate::budget::part;

/// What became of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Disposition {
    /// Within its budget.
    Pass,
    /// An error is over its budget.
    OverBudget,
    /// An error is over its budget, but a choice of experts that the dump does not hold may explain it.
    Inconclusive,
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
        !matches!(self, Disposition::Pass | Disposition::Inconclusive | Disposition::NotHeld | Disposition::NotCompared)
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
    /// How many elements were compared.
    pub elements: usize,
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
    /// Nothing but what became of it.
    pub fn new(stage: &str, disposition: Disposition) -> Self {
        StageVerdict {
            stage: stage.to_owned(),
            disposition,
            elements: 0,
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

/// What became of a whole trace: one verdict for each stage, in forward order.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// One for each stage of the truth.
    pub stages: Vec<StageVerdict>,
}

impl Verdict {
    /// Whether no stage fails, and none is left open.
    pub fn passes(&self) -> bool {
        let open = |stage: &StageVerdict| stage.disposition == Disposition::Inconclusive;
        self.first_failure().is_none() && !self.stages.iter().any(open)
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

    /// How many elements of these were.
    pub fn elements(&self) -> usize {
        self.stages.iter().map(|stage| stage.elements).sum()
    }
}
