//! From a wrong dump to the bug: which mutant computes what the dump holds?
//!
//! The f64 reference runs once for each mutant, under a teacher: each stage is computed from the dump's own values of the
//! stages before it, as far as the dump holds them. A mutant explains a dump if, by the mutant, every stage that the dump
//! holds is within its budget. If the dump holds logits alone, the mutant must move the logits to exactly where they are,
//! through the whole model, which is as good as a proof. What the dialects disagree about are mutants too.
//!
//! [`explain`] tries every mutant, and pairs of them if none fits. [`named`] asks only what concerns the first wrong stage,
//! which costs less: it is what the judge does of its own accord.

mod named;
mod trial;

use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::tap::NoTap;

pub use named::{Named, are_too_many, may_be_tried, named, suspects, work};
pub use trial::{Distance, Distances, Trials};

use super::{Mutant, catalogue};
use crate::backend::{Backend, Reference, Settings};
use crate::case::Case;
use crate::check::last_tokens::case_of;
use crate::error::Result;
use crate::local::Local;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;

/// What is to be explained.
pub struct Question<'a> {
    /// The model and its inputs.
    pub case: &'a Case,
    /// The dump, in the model's layouts.
    pub candidate: &'a Trace,
    /// What it was computed in.
    pub precision: Precision,
    /// How its cache was kept.
    pub cache: CacheFormat,
    /// Choices of experts that are assumed where the dump holds none.
    pub choices: Trace,
}

impl<'a> Question<'a> {
    /// A dump with a cache that is not packed, of which nothing is assumed.
    pub fn new(case: &'a Case, candidate: &'a Trace, precision: Precision) -> Self {
        Question { case, candidate, precision, cache: CacheFormat::Plain, choices: Trace::default() }
    }
}

/// What a dump may come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What is done wrongly: one thing, or two at once.
    pub changes: Vec<Change>,
    /// The first stage that is wrong by the reference.
    pub stage: String,
    /// How far the dump is from that there: relative error in the Euclidean norm, or the part of the tokens that go to
    /// other experts.
    pub error: f64,
    /// How far it is from the reference there.
    pub unexplained: f64,
}

/// A thing that is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The name of the mutant.
    pub mutant: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Where an implementation that did so was reported.
    pub report: Option<&'static str>,
}

impl From<&Mutant> for Change {
    fn from(mutant: &Mutant) -> Self {
        Change { mutant: mutant.id, what: mutant.what, report: mutant.report }
    }
}

/// How many pairs of mutants are tried.
pub const PAIRS: usize = 300;
/// How much further off than the best an explanation may be: two that compute the same numbers differ by nothing.
const AS_GOOD: f64 = 1.25;

/// The mutants that explain a dump, the best first, or pairs of them; none, if nothing is wrong with the dump, or nothing
/// explains it. Every mutant costs a run of the model; if none of them fits, so do up to [`PAIRS`] pairs. `step` is told
/// of each run: how many are done, how many there are as far as is known, and what was tried.
///
/// # Errors
/// If the reference refuses the case.
pub fn explain(question: &Question<'_>, mut step: impl FnMut(usize, usize, &str)) -> Result<Vec<Explanation>> {
    let Question { candidate, precision, cache, choices, .. } = question;
    let case = &case_of(question.case, candidate);
    let held = |name: &str| candidate.get(name).is_some();
    let settings = Settings { precision: Precision::F64, stages: Some(&held), ..Settings::default() };
    let model = Reference.run(case, &settings, &mut NoTap)?;
    let local = Local::of(case, candidate, &model, *precision, *cache)?;
    let rows = ComparedRows::of(&case.inputs);
    let truth = local.truth(&case.config, &rows)?;
    let trials = Trials::new((case, candidate, &model), truth.truth.budgets, &rows, choices);

    let by_reference = trials.distances(&[]);
    let Some(stage) = by_reference.wrong().next().map(str::to_owned) else { return Ok(Vec::new()) };
    let explanation = |mutants: &[&'static Mutant], distances: &Distances| Explanation {
        changes: mutants.iter().map(|mutant| Change::from(*mutant)).collect(),
        stage: stage.clone(),
        error: distances.get(&stage).error,
        unexplained: by_reference.get(&stage).error,
    };

    let explains = |distances: &Distances| distances.fit() && distances.get(&stage).explains(by_reference.get(&stage));

    let singles: Vec<&'static Mutant> = applicable(case).collect();
    let (mut found, mut ranked) = (Vec::new(), Vec::new());
    for (place, mutant) in singles.iter().copied().enumerate() {
        let distances = trials.distances(&[mutant]);
        if explains(&distances) {
            found.push(explanation(&[mutant], &distances));
        }
        ranked.push((distances.left(), place));
        step(place + 1, singles.len(), mutant.id);
    }
    if found.is_empty() {
        let pairs = pairs(&singles, ranked, by_reference.left());
        let runs = singles.len() + pairs.len();
        for (done, pair) in pairs.iter().enumerate() {
            let distances = trials.distances(pair);
            if explains(&distances) {
                found.push(explanation(pair, &distances));
            }
            step(singles.len() + done + 1, runs, &format!("{} and {}", pair[0].id, pair[1].id));
        }
    }
    Ok(best(found, |explanation| explanation.error))
}

/// The mutants that a dump may come from: those that can differ from the reference on this case.
pub fn applicable(case: &Case) -> impl Iterator<Item = &'static Mutant> {
    catalogue().filter(move |mutant| (mutant.applies)(case))
}

/// Which two mutants to try together: those first that leave least by themselves, of what is `ranked` (what a mutant leaves,
/// and its place). One that changes nothing in the dump (it leaves what the reference leaves, `nothing`) can add nothing.
fn pairs(mutants: &[&'static Mutant], mut ranked: Vec<(f64, usize)>, nothing: f64) -> Vec<[&'static Mutant; 2]> {
    ranked.retain(|(left, _)| (left - nothing).abs() > 1e-9 * nothing);
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut pairs = Vec::new();
    for (i, (_, a)) in ranked.iter().enumerate() {
        for (j, (_, b)) in ranked.iter().enumerate().skip(i + 1) {
            pairs.push(((i + 1) * (j + 1), [a.min(b), a.max(b)].map(|place| mutants[*place])));
        }
    }
    pairs.sort_by_key(|(rank, _)| *rank);
    pairs.into_iter().map(|(_, pair)| pair).take(PAIRS).collect()
}

/// Those that are as good as the best, the best first.
fn best<T>(mut found: Vec<T>, error: impl Fn(&T) -> f64) -> Vec<T> {
    found.sort_by(|a, b| error(a).total_cmp(&error(b)));
    let Some(least) = found.first().map(&error) else { return found };
    found.retain(|one| error(one) <= AS_GOOD * least);
    found
}

#[cfg(test)]
mod tests;
