//! One line about one thing: a stage that fails, a run that fails, a number.

use dsv2_foreign::Text;
use dsv2_reference::stage::table::LAYER;

use super::model::{Compared, DecidedBy, ElementReport, Shown, StageReport};
use crate::check::{self, Inconclusive};
use crate::judge::Disposition;
use crate::outcome::{Conclusion, Outcome};

/// How many of the tensors to add a line names.
const TENSORS_TO_ADD: usize = 8;

/// A number of an error or a budget.
pub fn number(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.1e}") }
}

/// The two sides of an element, with as many digits as it takes to tell them apart.
pub fn got_and_want(element: &ElementReport) -> String {
    let (got, want) = (element.got.0, element.want.0);
    let fixed = |x: f64, digits: usize| match x.abs() {
        small if small < 1e9 => format!("{x:.digits$}"),
        large if large.is_finite() => format!("{x:.digits$e}"),
        _ => x.to_string(),
    };
    let sides = |digits: &usize| (fixed(got, *digits), fixed(want, *digits));
    let told_apart = [6, 9, 12].iter().map(sides).find(|(got, want)| got != want);
    let (got, want) = told_apart.unwrap_or_else(|| (format!("{got:e}"), format!("{want:e}")));
    format!("got {got}, want {want}")
}

/// What is wrong with a stage.
pub fn failure(stage: &StageReport) -> String {
    let what = match (&stage.note, stage.shown()) {
        (Some(note), _) => note.clone(),
        (None, Some(shown)) => errors(stage, &shown),
        (None, None) => disposition(stage.disposition).to_owned(),
    };
    let mut line = format!("{}: {what}", stage.stage);
    if let (None, Some(element)) = (&stage.note, &stage.element) {
        line += &format!("; at {:?} {}", element.index, got_and_want(element));
    }
    line
}

/// The errors of a stage by its worst measure: first the one that decides, and its budget, then the other.
pub fn errors(stage: &StageReport, shown: &Shown) -> String {
    let named = |name: &str, error: Option<f64>| error.map(|error| format!("{name} error {}", number(error)));
    let (local, propagated) = (named("local", shown.local), named("propagated", shown.propagated));
    let (first, second) = match stage.decided_by {
        Some(DecidedBy::Propagated) => (propagated, local),
        _ => (local, propagated),
    };
    let budget = format!("budget {}", number(shown.budget));
    let parts: Vec<String> = [first, Some(budget), second].into_iter().flatten().collect();
    format!("{} {}", shown.metric.name(), parts.join(", "))
}

/// Words for a disposition.
pub fn disposition(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Pass => "pass",
        Disposition::OverBudget => "FAIL: over budget",
        Disposition::Inconclusive => "inconclusive: over budget",
        Disposition::NonFinite => "FAIL: NaN or infinity",
        Disposition::WrongShape => "FAIL: wrong shape",
        Disposition::WrongRouting => "FAIL: wrong experts",
        Disposition::Missing => "FAIL: missing",
        Disposition::NotHeld => "not held",
        Disposition::NotCompared => "not compared",
    }
}

/// What is wrong with a run, if something is. `first` is the first stage of it that fails.
pub fn outcome_failure(outcome: &Outcome, first: Option<&StageReport>) -> Option<String> {
    match outcome {
        Outcome::Judged(_) => first.map(|stage| format!("first wrong stage {}", failure(stage))),
        Outcome::Refused(error) => Some(format!("refused: {}", Text::message(error))),
        Outcome::Crashed(message) => Some(format!("crashed: {}", Text::message(message))),
        Outcome::Waived(outcome, _) => outcome_failure(outcome, first),
        Outcome::NotSupported(_) | Outcome::NotJudged(_) => None,
    }
}

/// What a check comes to, in a word or two.
pub fn check_word(verdict: check::Conclusion) -> &'static str {
    match verdict {
        check::Conclusion::Pass => "pass",
        check::Conclusion::Fail => "FAIL",
        check::Conclusion::Inconclusive => "INCONCLUSIVE",
        check::Conclusion::NotJudged => "NOT JUDGED",
    }
}

/// How much was compared.
pub fn compared(compared: Compared) -> String {
    let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    format!("{} ({})", count(compared.stages, "stage"), count(compared.elements, "number"))
}

/// Why a dump cannot be decided, and what to add to it.
pub fn inconclusive(Inconclusive { reason, add }: &Inconclusive) -> String {
    let add = few(add.iter().map(String::as_str), TENSORS_TO_ADD);
    format!("{reason}; to decide it, add to the dump: {add}")
}

/// A conclusion in a word or two.
pub fn conclusion(conclusion: Conclusion) -> &'static str {
    match conclusion {
        Conclusion::Pass => "pass",
        Conclusion::Fail => "FAIL",
        Conclusion::NotSupported => "not supported",
        Conclusion::NotJudged => "not judged",
        Conclusion::Crashed => "CRASHED",
        Conclusion::Waived => "waived",
    }
}

/// The first few of many.
pub fn few<'a>(names: impl ExactSizeIterator<Item = &'a str>, most: usize) -> String {
    let more = names.len().saturating_sub(most);
    let mut line = names.take(most).collect::<Vec<_>>().join(", ");
    if more > 0 {
        line += &format!(" and {more} more");
    }
    line
}

/// The kind of a stage without what all have in common.
pub fn short_kind(kind: &str) -> String {
    match kind.strip_prefix(LAYER) {
        Some("") => "layer output".to_owned(),
        Some(rest) => rest.trim_start_matches('.').to_owned(),
        None => kind.trim_start_matches("model.").replace(".*", ""),
    }
}
