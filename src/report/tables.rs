//! The tables of a verification and of a check.

use comfy_table::Cell;
use dsv2_foreign::{Foreign, Words};

use super::describe::{conclusion, disposition, number};
use super::model::{CheckReport, DecidedBy, RunReport, VerifyReport};
use crate::judge::Disposition;
use crate::outcome::Conclusion;
use crate::table::{align_right, mark, table};

/// Each run: case, backend, type, stages compared, the worst stage with its error and budget. `styled` adds colour, for a
/// terminal.
pub fn verify_table(report: &VerifyReport, styled: bool) -> String {
    let mut table =
        table(styled, &["case", "backend", "dtype", "stages", "worst stage", "", "error", "budget", "verdict"]);
    for column in [3, 6, 7] {
        align_right(&mut table, column);
    }
    for run in &report.runs {
        let stage = run.telling_stage();
        let shown = stage.and_then(|stage| Some((stage.decided_by?, stage.shown()?)));
        let [metric, error, budget] = shown.map_or_else(Default::default, |(decided_by, shown)| {
            let error = if decided_by == DecidedBy::Local { shown.local } else { shown.propagated };
            [shown.metric.name().to_owned(), error.map(number).unwrap_or_default(), number(shown.budget)]
        });
        table.add_row([
            Cell::new(Foreign(&run.case)),
            Cell::new(&run.backend),
            Cell::new(&run.dtype),
            Cell::new(run.compared.stages),
            Cell::new(stage.map_or("", |stage| &stage.stage)),
            Cell::new(metric),
            Cell::new(error),
            Cell::new(budget),
            mark(verdict(run), fails(run.conclusion), run.conclusion == Conclusion::Pass),
        ]);
    }
    table.trim_fmt()
}

/// How a run went, and why there is no verdict if there is none.
fn verdict(run: &RunReport) -> String {
    match (run.conclusion, &run.reason) {
        (Conclusion::NotSupported | Conclusion::NotJudged, Some(reason)) => {
            format!("{}: {}", conclusion(run.conclusion), Words(reason))
        }
        _ => conclusion(run.conclusion).to_owned(),
    }
}

fn fails(conclusion: Conclusion) -> bool {
    matches!(conclusion, Conclusion::Fail | Conclusion::Crashed)
}

/// The verdict on each stage that a candidate holds, by the measure that tells most.
pub fn check_table(report: &CheckReport, styled: bool) -> String {
    let mut table = table(styled, &["stage", "", "local error", "budget", "propagated error", "verdict"]);
    for column in [2, 3, 4] {
        align_right(&mut table, column);
    }
    for stage in report.stages.iter().filter(|stage| stage.disposition != Disposition::NotHeld) {
        let [metric, local, budget, propagated] = stage.shown().map_or_else(Default::default, |shown| {
            let error = |error: Option<f64>| error.map(number).unwrap_or_default();
            [shown.metric.name().to_owned(), error(shown.local), number(shown.budget), error(shown.propagated)]
        });
        let (fails, compared) = (stage.disposition.fails(), stage.disposition.compared());
        table.add_row([
            Cell::new(&stage.stage),
            Cell::new(metric),
            Cell::new(local),
            Cell::new(budget),
            Cell::new(propagated),
            mark(disposition(stage.disposition), fails, compared),
        ]);
    }
    table.trim_fmt()
}
