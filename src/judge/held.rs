//! What a stage is held against, and what that gives.

use std::collections::BTreeSet;

use dsv2_metrics::{Element, Metrics};
use dsv2_reference::config::TopkMethod;

use super::verdict::Disposition;
use crate::budget::Budgets;
use crate::rows::ComparedRows;
use crate::trace::Trace;

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
    /// The stages that must be bit-identical.
    pub exact: &'a BTreeSet<String>,
    /// How experts are selected, if a choice is to be held against the candidate's own logits.
    pub method: Option<TopkMethod>,
}

/// What holding a stage against one truth gives.
pub struct Held {
    /// What became of it.
    pub disposition: Disposition,
    /// How many elements were compared.
    pub elements: usize,
    /// Its error.
    pub error: Option<Metrics>,
    /// What that may be.
    pub budget: Option<Metrics>,
    /// The element that is furthest off, or the one that decided.
    pub element: Option<Element>,
    /// What is wrong, if no number says it.
    pub note: Option<String>,
}

impl Held {
    /// Nothing but what became of it.
    pub fn new(disposition: Disposition) -> Self {
        Held { disposition, elements: 0, error: None, budget: None, element: None, note: None }
    }

    /// With what is wrong in words.
    pub fn noted(disposition: Disposition, note: String) -> Self {
        Held { note: Some(note), ..Held::new(disposition) }
    }

    /// Of another shape than it should be.
    pub fn misshapen(got: &[usize], want: &[usize]) -> Self {
        Held::noted(Disposition::WrongShape, format!("shape {got:?} where {want:?} is expected"))
    }
}
