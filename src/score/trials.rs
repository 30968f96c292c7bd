//! Running the mutants.

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::Stage;
use dsv2_reference::tap::NoTap;

use super::dumps::{ALL, Cut, DumpKind, HOOKS};
use super::moved::moved as moved_by;
use super::{Finding, Hinted, Kill, Outcome, Pass, Subjects};
use crate::backend::{Backend, Reference, Settings};
use crate::check::{Request, check, check_without_hint};
use crate::error::Result;
use crate::golden::{GoldenCase, GoldenCases};
use crate::judge::{Disposition, StageVerdict, Verdict};
use crate::mutants::benign::Benign;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::mutants::{Class, Mutant};
use crate::precision::Precision;
use crate::schedule;
use crate::trace::Trace;

/// What is tried on what.
pub struct Trials<'a> {
    /// Where the cases come from.
    pub golden: &'a GoldenCases,
    /// Which of them.
    pub cases: Vec<String>,
    /// In which types.
    pub precisions: Vec<Precision>,
    /// In which kinds of dump.
    pub dumps: Vec<&'static DumpKind>,
    /// Whether hints are judged, too, which takes longer.
    pub hints: bool,
    /// What is planted.
    pub subjects: Subjects,
    /// A mutant is tried on no more cases than this: the first ones to which it applies.
    pub most: usize,
}

/// Runs them all, several cases at a time; `done` is told each case and what was found, in order. The findings come in the
/// order of the cases.
///
/// # Errors
/// If a golden case is at fault, or the reference refuses it.
pub fn run(trials: &Trials<'_>, mut done: impl FnMut(&str, &[Finding])) -> Result<Vec<Finding>> {
    let cases: Vec<GoldenCase> = trials.cases.iter().map(|name| trials.golden.load(name)).collect::<Result<_>>()?;
    let turns = turns(trials, &cases);
    let work = cases.into_iter().zip(turns).collect();
    let found = schedule::in_order(
        work,
        |(golden, turn)| try_case(trials, golden, &turn),
        |place, findings| done(&trials.cases[place], findings),
    )?;
    Ok(found.into_iter().flatten().collect())
}

/// Which mutants are tried on each case.
fn turns(trials: &Trials<'_>, cases: &[GoldenCase]) -> Vec<Vec<usize>> {
    let mut turns = vec![Vec::new(); cases.len()];
    for (place, mutant) in trials.subjects.mutants.iter().enumerate() {
        let applies = cases.iter().enumerate().filter(|(_, golden)| (mutant.applies)(&golden.case));
        applies.take(trials.most).for_each(|(case, _)| turns[case].push(place));
    }
    turns
}

fn try_case(trials: &Trials<'_>, golden: GoldenCase, turn: &[usize]) -> Result<Vec<Finding>> {
    let name = golden.name();
    let cuts: Vec<Cut> = trials.dumps.iter().filter_map(|kind| kind.of(&golden.case)).collect();
    let mut request = Request::new(golden.case.clone(), Trace::default());
    let mut ask = |cut: &Cut, candidate: &Trace, precision, hints| {
        request.candidate = cut.cut(candidate, &golden.case.config);
        request.precision = Some(precision);
        if hints { check(&request) } else { check_without_hint(&request) }
    };
    let outputs = HOOKS.of(&golden.case);
    let weights = Wide::new(&golden.case);
    let mut findings = Vec::new();
    for &place in turn {
        let mutant = trials.subjects.mutants[place];
        for &precision in &trials.precisions {
            let (candidate, planted) = mutate(&weights, mutant, precision)?;
            // nothing, if it changes nothing on this case
            if planted.is_empty() {
                continue;
            }
            for cut in cuts.iter().filter(|cut| shows(mutant, &planted, cut.kind, &golden)) {
                let hints = trials.hints && mutant.class == Class::Structural;
                let checked = ask(cut, &candidate, precision, hints)?;
                let outcome = Outcome::of(&checked);
                let (named, ratio) = first_failure(&checked.verdict);
                let seen_at_outputs = match &outputs {
                    Some(outputs) if mutant.class == Class::Equivalent && cut.kind.is(&ALL) => {
                        Outcome::of(&ask(outputs, &candidate, precision, false)?) == Outcome::Killed
                    }
                    _ => false,
                };
                let exact = |mutant: &Mutant| -> Result<Trace> {
                    let (exact, _) = mutate(&weights, mutant, Precision::F64)?;
                    Ok(cut.cut(&exact, &golden.case.config))
                };
                let (mut moved, mut hinted) = (None, None);
                match (mutant.class, outcome) {
                    (Class::Structural, Outcome::Passed) => {
                        let exact = exact(mutant)?;
                        moved = Some(moved_by(&checked.case, &exact, precision)?);
                    }
                    (Class::Structural, Outcome::Killed) if hints => {
                        hinted = Some(Hinted::of(checked.hint.as_ref(), mutant, exact)?);
                    }
                    _ => {}
                }
                findings.push(Finding::Kill(Kill {
                    mutant: place,
                    case: name.to_owned(),
                    precision,
                    dump: cut.kind,
                    outcome,
                    moved,
                    hinted,
                    planted: planted.clone(),
                    named,
                    ratio,
                    seen_at_outputs,
                }));
            }
        }
    }
    for (place, benign) in trials.subjects.benign.iter().enumerate() {
        for &precision in &trials.precisions {
            if !(benign.applies)(&golden.case, precision) {
                continue;
            }
            let candidate = vary(&weights, benign, precision)?;
            for cut in &cuts {
                let checked = ask(cut, &candidate, precision, false)?;
                findings.push(Finding::Pass(Pass {
                    benign: place,
                    case: name.to_owned(),
                    precision,
                    dump: cut.kind,
                    outcome: Outcome::of(&checked),
                    flagged: checked.verdict.first_failure().map(why),
                    ratio: checked.verdict.worst().and_then(StageVerdict::ratio).unwrap_or(0.0),
                }));
            }
        }
    }
    Ok(findings)
}

/// Whether such a dump says anything of a mutant. One that only computes less precisely than it could need not show in a part
/// of the stages; what an equivalent one has in a part of them is right unless they are those where it is planted.
fn shows(mutant: &Mutant, planted: &[&str], kind: &DumpKind, golden: &GoldenCase) -> bool {
    let holds_planted = || planted.iter().any(|planted| kind.holds_kind(planted, &golden.case.config));
    kind.is(&ALL)
        || match mutant.class {
            Class::Structural => true,
            Class::Precision => false,
            Class::Equivalent => !holds_planted(),
        }
}

/// What a mutant has at every stage, and the kinds of stage that it changed.
fn mutate(weights: &Wide<'_>, mutant: &Mutant, precision: Precision) -> Result<(Trace, Vec<&'static str>)> {
    let mut tap = Planted::new(&mutant.variant, weights, precision)?;
    let settings = Settings { precision, ..Settings::default() };
    let candidate = Reference.run(weights.case(), &settings, &mut tap)?;
    Ok((candidate, tap.acted()))
}

fn vary(weights: &Wide<'_>, benign: &Benign, precision: Precision) -> Result<Trace> {
    let attention = if benign.absorbed { AttentionForm::Absorbed } else { AttentionForm::Expanded };
    let held = |stage: &str| !benign.absent.iter().any(|end| stage.ends_with(end));
    let settings = Settings { precision, attention, stages: Some(&held), ..Settings::default() };
    match &benign.variant {
        Some(variant) => Reference.run(weights.case(), &settings, &mut Planted::new(variant, weights, precision)?),
        None => Reference.run(weights.case(), &settings, &mut NoTap),
    }
}

/// The stage and by how much it is over its budget.
fn why(stage: &StageVerdict) -> String {
    match stage.worst_metric() {
        Some((metric, error, budget)) => format!("{} ({metric} {error:.1e}, budget {budget:.1e})", stage.stage),
        None => stage.stage.clone(),
    }
}

/// The kind of the first stage that fails, and how far it is over its budget.
fn first_failure(verdict: &Verdict) -> (Option<&'static str>, f64) {
    let Some(first) = verdict.first_failure() else {
        return (None, verdict.worst().and_then(StageVerdict::ratio).unwrap_or(0.0));
    };
    let ratio = match first.disposition {
        Disposition::OverBudget => first.ratio().unwrap_or(f64::INFINITY),
        _ => f64::INFINITY,
    };
    (Stage::parse(&first.stage).map(|stage| stage.kind), ratio)
}
