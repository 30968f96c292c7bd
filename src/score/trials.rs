//! Running the mutants.

use super::dumps::{Cut, DumpKind};
use super::on_case::OnCase;
use super::{Finding, Kill, Pass, Subjects};
use crate::case::Case;
use crate::check::Request;
use crate::error::Result;
use crate::golden::{GoldenCase, GoldenCases};
use crate::mutants::weights::Wide;
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
    /// How many cases are at work at a time; no more than there are processors.
    pub at_a_time: usize,
}

/// Runs them all, several cases at a time; `done` is told each case and what was found, in order. The findings come in the
/// order of the cases.
///
/// # Errors
/// If a golden case is at fault, or the reference refuses it.
pub fn run(trials: &Trials<'_>, mut done: impl FnMut(&str, &[Finding])) -> Result<Vec<Finding>> {
    let outlines = trials.cases.iter().map(|name| Ok(trials.golden.outline(name)?.case));
    let turns = turns(trials, &outlines.collect::<Result<Vec<Case>>>()?);
    let work = trials.cases.iter().zip(turns).collect();
    let found = schedule::in_order(
        trials.at_a_time,
        work,
        |(name, turn)| try_case(trials, &trials.golden.load(name)?, &turn),
        |place, findings| done(&trials.cases[place], findings),
    )?;
    Ok(found.into_iter().flatten().collect())
}

/// Which mutants are tried on each case.
fn turns(trials: &Trials<'_>, cases: &[Case]) -> Vec<Vec<usize>> {
    let mut turns = vec![Vec::new(); cases.len()];
    for (place, mutant) in trials.subjects.mutants.iter().enumerate() {
        let applies = cases.iter().enumerate().filter(|(_, case)| (mutant.applies)(case));
        applies.take(trials.most).for_each(|(case, _)| turns[case].push(place));
    }
    turns
}

fn try_case(trials: &Trials<'_>, golden: &GoldenCase, turn: &[usize]) -> Result<Vec<Finding>> {
    let cuts: Vec<Cut> = trials.dumps.iter().filter_map(|kind| kind.of(&golden.case)).collect();
    let on_case = OnCase { golden, weights: Wide::new(&golden.case), hints: trials.hints };
    let mut request = Request::new(golden.case.clone(), Trace::default());
    let mut findings = Vec::new();
    for &place in turn {
        for &precision in &trials.precisions {
            request.precision = Some(precision);
            let kills = on_case.mutant(&mut request, &cuts, trials.subjects.mutants[place], precision)?;
            findings.extend(kills.into_iter().map(|kill| Finding::Kill(Kill { mutant: place, ..kill })));
        }
    }
    for (place, benign) in trials.subjects.benign.iter().enumerate() {
        for &precision in &trials.precisions {
            if (benign.applies)(&golden.case, precision) {
                request.precision = Some(precision);
                let passes = on_case.benign(&mut request, &cuts, benign, precision)?;
                findings.extend(passes.into_iter().map(|pass| Finding::Pass(Pass { benign: place, ..pass })));
            }
        }
    }
    Ok(findings)
}
