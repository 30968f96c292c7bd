//! Running the mutants.

use std::sync::{Mutex, PoisonError, mpsc};

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::tap::NoTap;

use super::{Finding, Kill, Pass, Subjects, is_output};
use crate::Result;
use crate::backend::{Backend, Precision, Reference, Settings};
use crate::check::{Request, check_without_hint};
use crate::golden::{GoldenCase, Suite};
use crate::judge::{Disposition, StageVerdict, Verdict};
use crate::mutants::benign::Benign;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::mutants::{Class, Mutant};
use crate::stage::Stage;
use crate::trace::Trace;

/// What is tried on what.
pub struct Plan<'a> {
    /// Where the cases come from.
    pub suite: &'a Suite,
    /// Which of them.
    pub cases: Vec<String>,
    /// In which types.
    pub precisions: Vec<Precision>,
    /// What is planted.
    pub subjects: Subjects,
    /// A mutant is tried on no more cases than this: the first ones to which it applies.
    pub most: usize,
}

/// Runs the plan, several cases at a time; `done` is told each case and what was found, as soon as it is. The findings come
/// in the order of the plan.
///
/// # Errors
/// If a golden case is at fault, or the reference refuses it.
pub fn run(plan: &Plan<'_>, mut done: impl FnMut(&str, &[Finding])) -> Result<Vec<Finding>> {
    let cases: Vec<GoldenCase> = plan.cases.iter().map(|name| plan.suite.load(name)).collect::<Result<_>>()?;
    let turns = turns(plan, &cases);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(cases.len());
    let queue = Mutex::new(cases.into_iter().enumerate());
    let (sender, results) = mpsc::channel();
    let mut found = std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, queue, turns) = (sender.clone(), &queue, &turns);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((place, golden)) = next else { break };
                    // the receiver is gone once a case was at fault
                    if sender.send((place, try_case(plan, golden, &turns[place]))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut found = Vec::new();
        for (place, findings) in results {
            let findings = findings?;
            done(&plan.cases[place], &findings);
            found.push((place, findings));
        }
        Ok::<_, crate::Error>(found)
    })?;
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().flat_map(|(_, findings)| findings).collect())
}

/// Which mutants are tried on each case.
fn turns(plan: &Plan<'_>, cases: &[GoldenCase]) -> Vec<Vec<usize>> {
    let mut turns = vec![Vec::new(); cases.len()];
    for (place, mutant) in plan.subjects.mutants.iter().enumerate() {
        let applies = cases.iter().enumerate().filter(|(_, golden)| (mutant.applies)(&golden.case));
        applies.take(plan.most).for_each(|(case, _)| turns[case].push(place));
    }
    turns
}

fn try_case(plan: &Plan<'_>, golden: GoldenCase, turn: &[usize]) -> Result<Vec<Finding>> {
    let name = golden.name().to_owned();
    let mut request = Request {
        case: golden.case,
        candidate: Trace::default(),
        expected: None,
        precision: None,
        cache: CacheFormat::Plain,
    };
    let weights = Wide::new(&request.case);
    let mut findings = Vec::new();
    for &precision in &plan.precisions {
        request.precision = Some(precision);
        for &place in turn {
            let mutant = plan.subjects.mutants[place];
            let (candidate, planted) = mutate(&weights, mutant, precision)?;
            // nothing, if it changes nothing on this case
            if planted.is_empty() {
                continue;
            }
            request.candidate = candidate;
            let (named, ratio) = first_failure(&check_without_hint(&request)?.verdict);
            let seen_at_outputs = mutant.class == Class::Equivalent && {
                request.candidate = outputs(&request.candidate);
                !check_without_hint(&request)?.verdict.passes()
            };
            let case = name.clone();
            findings.push(Finding::Kill(Kill {
                mutant: place,
                case,
                precision,
                planted,
                named,
                ratio,
                seen_at_outputs,
            }));
        }
        for (place, benign) in plan.subjects.benign.iter().enumerate() {
            if (benign.applies)(&request.case, precision) {
                request.candidate = vary(&weights, benign, precision)?;
                let verdict = check_without_hint(&request)?.verdict;
                let ratio = verdict.worst().and_then(StageVerdict::ratio).unwrap_or(0.0);
                let flagged = verdict.first_failure().map(why);
                findings.push(Finding::Pass(Pass { benign: place, case: name.clone(), precision, flagged, ratio }));
            }
        }
    }
    Ok(findings)
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

fn outputs(trace: &Trace) -> Trace {
    let outputs = trace.iter().filter(|(name, _)| is_output(name));
    outputs.map(|(name, values)| (name.to_owned(), values.clone())).collect()
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
