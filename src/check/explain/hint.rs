//! What a wrong stage looks like, and which known bugs (mutants) compute it.
//!
//! Both are said only where they fit in value: a fact is true of every number that is compared ([`pattern`]), and a mutant
//! computes what the dump holds from the dump's own values ([`crate::mutants::explain`]), whether it is planted at the
//! stage or at one before it that the dump lacks.

use dsv2_reference::stage::table::TOPK_INDICES;
use dsv2_reference::stage::{self, Stage};

use super::pattern::{self, Seen};
use crate::case::Case;
use crate::check::dump::Dump;
use crate::check::truth::Truth;
use crate::judge::routing::elsewhere;
use crate::judge::{Disposition, LocalTruth, StageVerdict};
use crate::mutants::Mutant;
use crate::mutants::explain::{Named, Trials, named};
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
    said(facts, named(&trials, &failed.stage, &truth.names))
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
    let Some(got) = fit(got, want.shape()) else { return Vec::new() };
    let experts = stage.layer.and_then(|layer| truth.trace.get(&stage::name(TOPK_INDICES, layer))?.index());
    pattern::facts(&Seen { stage, case, got: &got, want, budget, compared: compared.as_deref(), experts })
}

#[cfg(test)]
mod tests;
