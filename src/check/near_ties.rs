//! Near ties that a dump does not hold: which experts must its tokens have gone to, if it is right?
//!
//! A right implementation may send a token to other experts than the reference, if its router's logits are nearly equal there
//! ([`near_tie`](crate::judge::near_tie)). Where the dump holds the choice, the judge follows it. Where it does not, a stage
//! may be off by as much as a wrong expert, and that must be neither a failure nor a budget. So choices that are acceptable
//! are tried for the tokens that are off, one run of the reference after the other:
//!
//! * they bring everything within its budget: a pass, and it is said what was assumed;
//! * a row is off that no near tie can have moved, or by more than they can: a failure;
//! * neither in [`MOST_RUNS`](search::MOST_RUNS) runs: nobody knows, and it is said which tensors would tell.

mod moves;
mod reach;
mod rows;
mod search;
mod unit;

use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;
use indexmap::IndexSet;

use super::conclusion::Inconclusive;
use super::dump::Dump;
use super::request::Request;
use super::truth::Truth;
use crate::budget::Budgets;
use crate::case::Case;
use crate::error::Result;
use crate::judge::{self, Disposition, StageVerdict, Verdict};
use crate::local::Local;
use crate::rows::ComparedRows;
use crate::taps::Assumed;
use crate::trace::Trace;
use reach::{Span, choice_of};
use search::{Found, Search};

/// What is searched.
pub struct Question<'a> {
    case: &'a Case,
    dump: &'a Trace,
    /// The stages of the dump that take the place of the reference's.
    teacher: &'a Trace,
    /// All stages of the model.
    names: &'a IndexSet<String>,
    rows: &'a ComparedRows,
    method: TopkMethod,
}

/// What each stage should be, and what had to be assumed for that.
pub struct Followed {
    /// What each stage should be.
    pub local: Local,
    /// Experts that tokens are taken to have gone to.
    pub assumed: Assumed,
    /// Why the dump cannot be decided, if it cannot.
    pub inconclusive: Option<Inconclusive>,
}

/// How often the budgets are made anew for what was assumed.
const ROUNDS: usize = 3;

/// What each stage should be, with the near ties that explain what is off, if some do.
///
/// # Errors
/// If the reference refuses the case.
pub fn follow(request: &Request, dump: &Dump, truth: &Truth) -> Result<Followed> {
    let case = &request.case;
    let (batch, length) = (case.inputs.batch(), case.inputs.length());
    let local =
        |assumed: &Assumed| Local::assuming(case, &dump.trace, &truth.trace, dump.precision, request.cache, assumed);
    let mut assumed = Assumed::new(batch, length);
    let first = local(&assumed)?;
    let nothing_assumed =
        |local, inconclusive| Ok(Followed { local, assumed: Assumed::new(batch, length), inconclusive });
    let question = Question {
        case,
        dump: &dump.trace,
        teacher: &first.teacher().clone(),
        names: &truth.names,
        rows: &truth.rows,
        method: case.config.topk_method()?,
    };
    let mut search = Search::new(&question);
    let mut open = Vec::new();
    let mut current = None;
    for _ in 0..ROUNDS {
        let local_now = current.as_ref().unwrap_or(&first);
        let failing = failing(case, dump, truth, local_now)?;
        if failing.is_empty() {
            break;
        }
        let explainable = |stage: &StageVerdict| {
            stage.disposition == Disposition::OverBudget && !Span::of(&stage.stage, &question).layers.is_empty()
        };
        if !failing.iter().all(explainable) {
            return nothing_assumed(first, None);
        }
        let names: Vec<&str> = failing.iter().map(|stage| stage.stage.as_str()).collect();
        if open.is_empty() {
            open = failing.iter().map(|stage| stage.stage.clone()).collect();
        }
        match search.explain(&names, local_now.trace(), local_now.budgets(), &mut assumed)? {
            Found::Settled => current = Some(local(&assumed)?),
            Found::Refuted if current.is_none() => return nothing_assumed(first, None),
            Found::Refuted | Found::Open => return nothing_assumed(first, Some(undecided(&open, &question))),
        }
    }
    match current {
        None => nothing_assumed(first, None),
        Some(local) if failing(case, dump, truth, &local)?.is_empty() => {
            Ok(Followed { local, assumed, inconclusive: None })
        }
        Some(_) => nothing_assumed(first, Some(undecided(&open, &question))),
    }
}

/// The stages that fail.
fn failing(case: &Case, dump: &Dump, truth: &Truth, local: &Local) -> Result<Vec<StageVerdict>> {
    let budgets = Budgets::default();
    let propagated = judge::Truth { trace: &truth.trace, budgets: &budgets, rows: &truth.rows };
    let verdict = judge::judge(&dump.trace, &propagated, Some(&local.truth(&case.config, &truth.rows)?), |_| false);
    Ok(verdict.stages.into_iter().filter(|stage| stage.disposition.fails()).collect())
}

fn undecided(stages: &[String], question: &Question<'_>) -> Inconclusive {
    let layers: BTreeSet<usize> = stages.iter().flat_map(|stage| Span::of(stage, question).layers).collect();
    let first = stages.first().map_or("", String::as_str);
    Inconclusive {
        reason: format!(
            "{first} is over its budget, and the dump does not say which experts its tokens went to: near ties of the router \
             may explain it, or a bug"
        ),
        add: layers.into_iter().map(choice_of).collect(),
    }
}

/// A verdict in which what fails is left open.
pub fn left_open(mut verdict: Verdict) -> Verdict {
    for stage in verdict.stages.iter_mut().filter(|stage| stage.disposition.fails()) {
        stage.disposition = Disposition::Inconclusive;
    }
    verdict
}

#[cfg(test)]
mod tests;
