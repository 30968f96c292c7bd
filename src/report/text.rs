//! Reports for the terminal.

use std::time::Duration;

use dsv2_foreign::{Foreign, Text};

use super::describe::{check_word, conclusion, few, inconclusive};
use super::model::{CheckReport, RunReport, VerifyReport};
use super::notes::{Note, causes, remarks};
use super::tables::{check_table, verify_table};
use crate::check;
use crate::outcome::{Conclusion, Item};

/// How many lines of a note the terminal shows.
const LINES_OF_A_NOTE: usize = 3;

/// A check: the table of its stages, what else there is to know, and the verdict. `styled` adds colour.
pub fn check_text(report: &CheckReport, styled: bool) -> String {
    let found = match (&report.failure, &report.inconclusive) {
        (Some(failure), _) => format!("first wrong stage {failure}"),
        (None, Some(open)) => inconclusive(open),
        (None, None) if report.verdict == check::Conclusion::NotJudged => "nothing could be compared".to_owned(),
        (None, None) => {
            let stages = report.compared.stages;
            let (noun, them) = if stages == 1 { ("stage", "it") } else { ("stages", "them") };
            format!("{stages} {noun}, as {} computes {them}", report.dtype)
        }
    };
    let verdict = format!("{}: {}", check_word(report.verdict), Text::message(&found));
    let notes = |notes: Vec<Note>| notes.iter().map(note).collect::<Vec<_>>().join("\n");
    let parts = [check_table(report, styled), notes(remarks(report)), notes(causes(report)), verdict];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn note(Note { title, lines }: &Note) -> String {
    let names = few(lines.iter().map(String::as_str), LINES_OF_A_NOTE);
    Text::message(&format!("{title}: {names}")).to_string()
}

/// A verification: the table of its runs, a line for each that fails, and the totals. `styled` adds colour.
pub fn verify_text(report: &VerifyReport, elapsed: Duration, styled: bool) -> String {
    let failures: Vec<String> = report.runs.iter().filter_map(run_failure).collect();
    let parts = [verify_table(report, styled), failures.join("\n"), totals(report, elapsed)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

/// A line of progress: which item, and how it went.
pub fn progress(item: &Item) -> String {
    let words = conclusion(item.outcome.conclusion());
    format!("{} {} {}: {words}", Foreign(&item.case), item.backend, item.precision)
}

/// The line about a run that fails, or would without a waiver.
pub(super) fn run_failure(run: &RunReport) -> Option<String> {
    let of = format!("{} {} {}", Foreign(&run.case), run.backend, run.dtype);
    let failure = Text::message(run.failure.as_ref()?);
    Some(match &run.waiver {
        Some(waiver) => {
            let (reason, link) = (Foreign(&waiver.reason), Foreign(&waiver.link));
            format!("waived until {} {of}: {reason} ({link}); {failure}", waiver.expires)
        }
        None => format!("FAIL {of}: {failure}"),
    })
}

/// One line that sums everything up.
fn totals(report: &VerifyReport, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    format!("{}; {} stages compared in {seconds:.1} s", counts(report), compared(report))
}

/// How many runs came to which conclusion.
pub(super) fn counts(report: &VerifyReport) -> String {
    let count = |of: &[Conclusion]| report.runs.iter().filter(|run| of.contains(&run.conclusion)).count();
    let mut cases: Vec<&str> = report.runs.iter().map(|run| run.case.as_str()).collect();
    cases.dedup();
    let mut line = format!(
        "{} runs of {} cases: {} pass, {} fail, {} not run",
        report.runs.len(),
        cases.len(),
        count(&[Conclusion::Pass]),
        count(&[Conclusion::Fail, Conclusion::Crashed]),
        count(&[Conclusion::NotSupported]),
    );
    for (of, word) in [(Conclusion::NotJudged, "not judged"), (Conclusion::Waived, "waived")] {
        if count(&[of]) > 0 {
            line += &format!(", {} {word}", count(&[of]));
        }
    }
    line
}

/// How many stages were compared in all runs.
fn compared(report: &VerifyReport) -> usize {
    report.runs.iter().map(|run| run.compared.stages).sum()
}
