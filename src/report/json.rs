//! The same for programs: JSON.

use serde_json::{Value, json};

use super::judged;
use crate::judge::{StageVerdict, Verdict};
use crate::verify::{Item, Outcome};

/// The object of `check --json`.
pub fn check_json(verdict: &Verdict) -> Value {
    json!({
        "verdict": if verdict.passes() { "pass" } else { "fail" },
        "first_failing_stage": verdict.first_failure().map(|stage| &stage.stage),
        "stages": verdict.stages.iter().map(stage).collect::<Vec<_>>(),
    })
}

/// The report of `verify`: the same for each item.
pub fn verify_json(items: &[Item]) -> Value {
    let fails = items.iter().any(|item| item.outcome.fails());
    json!({
        "verdict": if fails { "fail" } else { "pass" },
        "runs": items.iter().map(item_json).collect::<Vec<_>>(),
    })
}

fn item_json(item: &Item) -> Value {
    let (verdict, reason) = match &item.outcome {
        Outcome::NotRun(reason) => ("not run", Some(reason)),
        Outcome::Refused(reason) => ("fail", Some(reason)),
        outcome if outcome.fails() => ("fail", None),
        _ => ("pass", None),
    };
    json!({
        "case": item.case,
        "backend": item.backend,
        "dtype": item.precision.to_string(),
        "verdict": verdict,
        "reason": reason,
        "first_failing_stage": judged(item).and_then(Verdict::first_failure).map(|stage| &stage.stage),
        "seconds": item.elapsed.as_secs_f64(),
        "stages": judged(item).map_or(&[][..], |verdict| &verdict.stages).iter().map(stage).collect::<Vec<_>>(),
    })
}

/// One stage. `local` is null: what is measured is the propagated error.
fn stage(stage: &StageVerdict) -> Value {
    json!({
        "stage": stage.stage,
        "disposition": stage.disposition,
        "local": null,
        "propagated": stage.error,
        "budget": stage.budget,
        "element": stage.element,
        "note": stage.note,
    })
}
