//! What a person or a program gets to read of a verdict.

mod json;
pub(crate) mod table;

pub use json::{check_json, verify_json};
pub use table::{check_table, verify_table};

use std::time::Duration;

use crate::judge::{StageVerdict, Verdict};
use crate::verify::{Item, Outcome};

/// A number of an error or a budget.
pub fn number(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.1e}") }
}

/// What is wrong with a stage, in one line.
pub fn describe_failure(stage: &StageVerdict) -> String {
    let mut line = stage.stage.clone();
    match (&stage.note, stage.worst_metric()) {
        (Some(note), _) => line += &format!(": {note}"),
        (None, Some((metric, error, budget))) => {
            line += &format!(": {metric} error {}, budget {}", number(error), number(budget));
        }
        (None, None) => line += &format!(": {}", table::disposition(stage.disposition)),
    }
    if let (None, Some(element)) = (&stage.note, &stage.element) {
        line += &format!("; at {:?} got {}, want {}", element.index, value(element.got), value(element.want));
    }
    line
}

fn value(x: f64) -> String {
    if x.is_finite() { format!("{x:.6}") } else { x.to_string() }
}

/// The line about a failed item: which it is, and the first wrong stage.
pub fn verify_failure(item: &Item) -> Option<String> {
    let of = format!("{} {} {}", item.case, item.backend, item.precision);
    match &item.outcome {
        Outcome::Judged(verdict) => {
            Some(format!("FAIL {of}: first wrong stage {}", describe_failure(verdict.first_failure()?)))
        }
        Outcome::Refused(error) => Some(format!("FAIL {of}: refused: {error}")),
        Outcome::NotRun(_) => None,
    }
}

/// How it went, in one word or a few.
pub fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::NotRun(reason) => format!("not run: {reason}"),
        outcome if outcome.fails() => "FAIL".into(),
        _ => "pass".into(),
    }
}

/// One line that sums everything up.
pub fn totals(items: &[Item], elapsed: Duration) -> String {
    let failed = items.iter().filter(|item| item.outcome.fails()).count();
    let not_run = items.iter().filter(|item| matches!(item.outcome, Outcome::NotRun(_))).count();
    let passed = items.len() - failed - not_run;
    let stages: usize = items.iter().map(|item| judged(item).map_or(0, Verdict::compared)).sum();
    let mut cases: Vec<&str> = items.iter().map(|item| item.case.as_str()).collect();
    cases.dedup();
    format!(
        "{} runs of {} cases: {passed} pass, {failed} fail, {not_run} not run; {stages} stages compared in {:.1} s",
        items.len(),
        cases.len(),
        elapsed.as_secs_f64()
    )
}

fn judged(item: &Item) -> Option<&Verdict> {
    if let Outcome::Judged(verdict) = &item.outcome { Some(verdict) } else { None }
}

#[cfg(test)]
mod tests;
