//! What a wrong stage looks like, and which known bugs (mutants) compute it.
//!
//! Both are said only where they fit in value: a fact is true of every number that is compared ([`pattern`]), and a mutant
//! computes what the dump holds from the dump's own values ([`crate::mutants::explain`]), whether it is planted at the
//! stage or at one before it that the dump lacks.

use dsv2_reference::stage::table::TOPK_INDICES;
use dsv2_reference::stage::{self, Stage};
use ndarray::{ArrayD, Axis};

use super::pattern::{self, Seen};
use crate::case::Case;
use crate::check::dump::Dump;
use crate::check::truth::Truth;
use crate::judge::routing::elsewhere;
use crate::judge::{Disposition, LocalTruth, StageVerdict};
use crate::local::is_cached_by_step;
use crate::mutants::explain::{Named, Trials, named};
use crate::mutants::{Class, Mutant};
use crate::trace::Trace;
use crate::values::fit;

/// What there is to say of the first wrong stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Sentences, the facts first.
    pub says: Vec<String>,
    /// The mutants that compute what the dump holds; if there are several, no one can tell them apart there.
    pub names: Vec<&'static str>,
}

/// How many mutants a hint names; of more, nothing is known.
const NAMED: usize = 4;

/// A hint on what may be wrong with `failed`, of a dump in the model's layouts; nothing, if there is nothing to say.
/// `choices` are the experts that are assumed where the dump holds none.
pub fn hint(
    failed: &StageVerdict,
    case: &Case,
    (dump, truth): (&Dump, &Truth),
    local: &LocalTruth<'_>,
    choices: &Trace,
) -> Option<Hint> {
    if failed.disposition == Disposition::WrongShape {
        return None;
    }
    let facts = facts(&failed.stage, case, &dump.trace, local);
    let trials = Trials::new((case, &dump.trace, &truth.trace), local.truth.budgets, local.truth.rows, choices);
    let few = || is_of_few_tokens(&failed.stage, &dump.trace, local);
    let found = match named(&trials, &failed.stage, &truth.names) {
        // what computes less precisely does so for every token; one that flips a near tie of the wrong token looks alike
        Named::All(mutants) | Named::Stage(mutants)
            if mutants.iter().all(|mutant| mutant.class == Class::Precision) && few() =>
        {
            Named::Nobody
        }
        found => found,
    };
    said(facts, found)
}

/// What is said of these facts, and of these mutants; nothing, if there is nothing to say.
pub fn said(facts: Vec<String>, found: Named) -> Option<Hint> {
    let (mut says, mut names) = (facts, Vec::new());
    match found {
        Named::All(mutants) if mutants.len() <= NAMED => {
            says.push(format!("a known bug computes this: {}", listed(&mutants)));
            names = mutants;
        }
        Named::Stage(mutants) if mutants.len() <= NAMED => {
            says.push(format!("a known bug computes this stage, but not all of the dump: {}", listed(&mutants)));
            names = mutants;
        }
        Named::TooMany(runs) => {
            says.push(format!(
                "known bugs were not tried here, which takes {runs} runs of the model: `--explain` does it"
            ));
        }
        _ => {}
    }
    let names = names.into_iter().map(|mutant| mutant.id).collect();
    (!says.is_empty()).then_some(Hint { says, names })
}

/// Of so many tokens, one in this many is few.
const FEW: usize = 8;

/// Whether nearly all of the error of a stage is in a few of its many rows.
fn is_of_few_tokens(name: &str, candidate: &Trace, local: &LocalTruth<'_>) -> bool {
    let errors = || {
        let (stage, want) = (Stage::parse(name)?, local.truth.trace.get(name)?.real()?);
        let got = fit(candidate.get(name)?.real()?, want.shape())?;
        let compared = local.truth.rows.of_stage(&stage, want.shape());
        let last = Axis(want.ndim().checked_sub(1)?);
        let rows = got.lanes(last).into_iter().zip(want.lanes(last)).enumerate();
        let rows = rows.filter(|(row, _)| compared.as_ref().is_none_or(|rows| rows[*row]));
        let off = |a: &f64, b: &f64| if a.is_finite() && b.is_finite() { (a - b).powi(2) } else { 0.0 };
        let errors = rows.map(|(_, (got, want))| got.iter().zip(want).map(|(a, b)| off(a, b)).sum::<f64>());
        Some(errors.collect::<Vec<f64>>())
    };
    let Some(mut errors) = errors() else { return false };
    errors.sort_by(|a, b| b.total_cmp(a));
    let few = errors.len() / FEW;
    few > 0 && errors[..few].iter().sum::<f64>() > MOST * errors.iter().sum::<f64>()
}

/// So much of an error is nearly all of it.
const MOST: f64 = 0.8;

fn listed(mutants: &[&Mutant]) -> String {
    let one = |mutant: &&Mutant| format!("`{}` ({})", mutant.id, mutant.what.trim_end_matches('.'));
    mutants.iter().map(one).collect::<Vec<_>>().join(" or ")
}

/// What is true of every number of a stage that is wrong.
pub fn facts(name: &str, case: &Case, candidate: &Trace, local: &LocalTruth<'_>) -> Vec<String> {
    let truth = &local.truth;
    let (Some(stage), Some(got), Some(want)) = (Stage::parse(name), candidate.get(name), truth.trace.get(name)) else {
        return Vec::new();
    };
    let compared = truth.rows.of_stage(&stage, want.shape());
    if let (Some(got), Some(want)) = (got.index(), want.index()) {
        let moved = fit(got, want.shape()).map(|got| elsewhere(&got, want, compared.as_deref()));
        return moved
            .filter(|part| *part == 1.0)
            .map(|_| "every token goes to other experts".to_owned())
            .into_iter()
            .collect();
    }
    let (Some(got), Some(want), Some(budget)) = (got.real(), want.real(), truth.budgets.get(name)) else {
        return Vec::new();
    };
    // a large stage is not copied
    let fitted;
    let got = match got.shape() == want.shape() {
        true => got,
        false => {
            let Some(found) = fit(got, want.shape()) else { return Vec::new() };
            fitted = found;
            &fitted
        }
    };
    let experts = stage.layer.and_then(|layer| truth.trace.get(&stage::name(TOPK_INDICES, layer))?.index());
    let facts = |compared| pattern::facts(&Seen { stage, case, got, want, budget, compared, experts });
    match is_cached_by_step(case, name, want.shape())
        .then(|| judged_part(case, got, want, compared.as_deref()))
        .flatten()
    {
        None => facts(compared.as_deref()),
        Some((rows, of)) => facts(Some(&rows)).into_iter().map(|fact| format!("{of}: {fact}")).collect(),
    }
}

/// What a step cached is judged as if the dump were right in one of two parts, what was there before and what is new: the truth
/// has the dump's own numbers there. Which of the compared rows are in the other part, and what it is called.
fn judged_part(
    case: &Case,
    got: &ArrayD<f64>,
    want: &ArrayD<f64>,
    compared: Option<&[bool]>,
) -> Option<(Vec<bool>, &'static str)> {
    let (keys, before) = (*want.shape().get(1)?, case.inputs.past());
    let is_new = |row: usize| row % keys >= before;
    let is_compared = |row: usize| compared.is_none_or(|rows| rows[row]);
    let last = Axis(want.ndim() - 1);
    let (mut differ, mut count) = ([false; 2], 0);
    for (row, (got, want)) in got.lanes(last).into_iter().zip(want.lanes(last)).enumerate() {
        let differs = |(x, y): (&f64, &f64)| x != y && !(x.is_nan() && y.is_nan());
        differ[usize::from(is_new(row))] |= is_compared(row) && got.iter().zip(want).any(differs);
        count += 1;
    }
    let rows = |new: bool| (0..count).map(|row| is_compared(row) && is_new(row) == new).collect();
    match differ {
        [false, true] => Some((rows(true), "of the new tokens")),
        [true, false] => Some((rows(false), "of what was cached before the step")),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
