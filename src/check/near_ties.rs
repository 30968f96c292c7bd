//! Near ties that a dump does not hold: which experts must its tokens have gone to, if it is right?
//!
//! A right implementation may send a token to other experts than the reference, if its router's logits are nearly equal there
//! ([`near_tie`](crate::judge::near_tie)). Where the dump holds the choice, the judge follows it. Where it does not, a stage
//! may be off by as much as a wrong expert, and that must be neither a failure nor a budget. So choices that are acceptable
//! are tried for the tokens that are off, one run of the reference after the other:
//!
//! * they bring everything within its budget: a pass, and it is said what was assumed;
//! * a row is off that no near tie can have moved, or by more than they can: a failure;
//! * neither in [`MOST_RUNS`](search::MOST_RUNS) runs, of which [no more is kept](most_kept) than was planned: nobody knows, and it is
//!   said which tensors would tell.

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
use super::judge::AssumedTie;
use super::request::Request;
use super::truth::Truth;
use crate::budget::Budgets;
use crate::case::Case;
use crate::error::Result;
use crate::judge::{self, Disposition, Verdict};
use crate::local::{Local, factors};
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::fit;
use moves::{Accepted, Moves};
use reach::{Span, choice_of};
pub use search::most_kept;
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
    /// The verdict by that.
    pub verdict: Verdict,
    /// Experts that tokens are taken to have gone to.
    pub assumed: Vec<AssumedTie>,
    /// Why the dump cannot be decided, if it cannot.
    pub inconclusive: Option<Inconclusive>,
}

/// Ties so far from equal fall the other way in one of 20 right runs: what needs them explained is left open.
const LEAST_LIKELY: f64 = 0.05;
/// How often the budgets are made anew for what was assumed.
const ROUNDS: usize = 3;

/// What each stage should be, with the near ties that explain what is off, if some do. `first` is what it should be without
/// any, if that is known already.
///
/// # Errors
/// If the reference refuses the case.
pub fn follow(request: &Request, dump: &Dump, truth: &Truth, first: Option<Local>) -> Result<Followed> {
    follow_within(most_kept, request, dump, truth, first)
}

/// The same, where of how far ties move tokens no more is kept than `most_kept` says.
fn follow_within(
    most_kept: fn(u64) -> u64,
    request: &Request,
    dump: &Dump,
    truth: &Truth,
    first: Option<Local>,
) -> Result<Followed> {
    let case = &request.case;
    let by_itself = || Local::of(case, &dump.trace, &truth.trace, dump.precision, request.cache);
    let first = first.map_or_else(by_itself, Ok)?;
    let verdict = judged(case, dump, truth, &first)?;
    if verdict.passes() {
        return Ok(Followed { local: first, verdict, assumed: Vec::new(), inconclusive: None });
    }
    let question = Question {
        case,
        dump: &dump.trace,
        teacher: first.teacher(),
        names: &truth.names,
        rows: &truth.rows,
        method: case.config.topk_method()?,
    };
    let mut search = Search::new(&question, most_kept);
    let mut accepted = Accepted::default();
    let (mut now, mut failing) = (None::<Local>, failing(&verdict));
    let open = failing.clone();
    let as_it_is =
        |local, inconclusive| Followed { local, verdict: verdict.clone(), assumed: Vec::new(), inconclusive };
    for _ in 0..ROUNDS {
        let explainable = |(stage, disposition): &(String, Disposition)| {
            *disposition == Disposition::OverBudget && !Span::of(stage, &question).layers.is_empty()
        };
        let names: Vec<&str> = failing.iter().map(|(stage, _)| stage.as_str()).collect();
        let local_now = now.as_ref().unwrap_or(&first);
        let found = match failing.iter().all(explainable) {
            true => search.explain(&names, local_now.trace(), local_now.budgets(), &mut accepted)?,
            false => Found::Refuted(Vec::new()),
        };
        // what it should be by what was assumed before is not kept beside what it should be by what is assumed now
        let nothing_assumed = now.take().is_none();
        match found {
            Found::Settled => {}
            // what was assumed before may be wrong
            Found::Refuted(rows) if nothing_assumed => {
                let verdict = with_worst_of(&rows, verdict, dump, &first);
                return Ok(Followed { local: first, verdict, assumed: Vec::new(), inconclusive: None });
            }
            Found::Refuted(_) | Found::Open => {
                let why = undecided(&open, UNKNOWN, &question);
                return Ok(as_it_is(first, Some(why)));
            }
        }
        let assumed = accepted.assumed(&question);
        let mut settled = first.assuming(case, &truth.trace, dump.precision, request.cache, &assumed)?;
        settled.judge_otherwise_as(&first);
        let verdict = judged(case, dump, truth, &settled)?;
        if verdict.passes() {
            let layers = open.iter().flat_map(|(stage, _)| Span::of(stage, &question).layers);
            let layers: BTreeSet<usize> = layers.collect();
            let moves = Moves::of(first.trace(), layers.into_iter(), first.budgets(), &question);
            if accepted.likelihood(&moves, factors(dump.precision).l2) < LEAST_LIKELY {
                let why = undecided(&open, STRAINED, &question);
                return Ok(as_it_is(first, Some(why)));
            }
            let assumed = accepted.iter().map(|m| m.tie(case.inputs.length())).collect();
            return Ok(Followed { local: settled, verdict, assumed, inconclusive: None });
        }
        failing = self::failing(&verdict);
        now = Some(settled);
    }
    let why = undecided(&open, UNKNOWN, &question);
    Ok(as_it_is(first, Some(why)))
}

fn judged(case: &Case, dump: &Dump, truth: &Truth, local: &Local) -> Result<Verdict> {
    let budgets = Budgets::default();
    let propagated = judge::Truth { trace: &truth.trace, budgets: &budgets, rows: &truth.rows };
    let own = local.truth(&case.config, &truth.rows)?;
    Ok(judge::judge(&dump.trace, &propagated, Some(&own), |_| false))
}

/// The verdict with the worst element among `rows` of the stages that have some: others may be off by a near tie.
fn with_worst_of(rows: &[(String, usize)], mut verdict: Verdict, dump: &Dump, local: &Local) -> Verdict {
    for stage in verdict.stages.iter_mut().filter(|stage| stage.disposition.fails()) {
        let of_stage: BTreeSet<usize> =
            rows.iter().filter(|(name, _)| *name == stage.stage).map(|(_, row)| *row).collect();
        let worst = || {
            let want = local.stage(&stage.stage)?.real()?;
            let got = fit(dump.trace.get(&stage.stage)?.real()?, want.shape())?;
            let count = want.len().checked_div(*want.shape().last()?)?;
            let compared: Vec<bool> = (0..count).map(|row| of_stage.contains(&row)).collect();
            dsv2_metrics::compare(got.view(), want.view(), Some(&compared)).worst
        };
        if let Some(worst) = (!of_stage.is_empty()).then(worst).flatten() {
            stage.element = Some(worst);
        }
    }
    verdict
}

/// The stages that fail, and how.
fn failing(verdict: &Verdict) -> Vec<(String, Disposition)> {
    let fails = verdict.stages.iter().filter(|stage| stage.disposition.fails());
    fails.map(|stage| (stage.stage.clone(), stage.disposition)).collect()
}

/// Why a dump may be undecided.
const UNKNOWN: &str = "near ties of the router may explain it, or a bug";
/// The same.
const STRAINED: &str =
    "near ties of the router explain it, but only ties that are further from equal than rounding explains as a rule";

fn undecided(stages: &[(String, Disposition)], why: &str, question: &Question<'_>) -> Inconclusive {
    let layers: BTreeSet<usize> = stages.iter().flat_map(|(stage, _)| Span::of(stage, question).layers).collect();
    let first = stages.first().map_or("", |(stage, _)| stage);
    Inconclusive {
        reason: format!(
            "{first} is over its budget, and the dump does not say which experts its tokens went to: {why}"
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
