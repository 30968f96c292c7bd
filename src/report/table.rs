//! Tables for the terminal.

use comfy_table::{Attribute, Cell, CellAlignment, Color, LineStyle, Table, TableStyle};

use super::{judged, number, outcome};
use crate::judge::{Disposition, StageVerdict, Verdict};
use crate::verify::{Item, Outcome};

/// Words for a disposition.
pub(super) fn disposition(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Pass => "pass",
        Disposition::OverBudget => "FAIL: over budget",
        Disposition::NonFinite => "FAIL: NaN or infinity",
        Disposition::WrongShape => "FAIL: wrong shape",
        Disposition::WrongRouting => "FAIL: wrong experts",
        Disposition::Missing => "FAIL: missing",
        Disposition::NotHeld => "not held",
        Disposition::NotCompared => "not compared",
    }
}

/// The verdicts on all items: case, backend, type, stages compared, the worst stage with its error and budget. `styled` adds
/// colour, for a terminal.
pub fn verify_table(items: &[Item], styled: bool) -> String {
    let mut table =
        table(styled, &["case", "backend", "dtype", "stages", "worst stage", "", "error", "budget", "verdict"]);
    for column in [3, 6, 7] {
        align_right(&mut table, column);
    }
    for item in items {
        let verdict = judged(item);
        // of a failure, the stage where it begins
        let shown = verdict.and_then(|verdict| verdict.first_failure().or_else(|| verdict.worst()));
        let [stage, metric, error, budget] = stage_cells(shown);
        table.add_row([
            Cell::new(&item.case),
            Cell::new(item.backend),
            Cell::new(item.precision),
            Cell::new(verdict.map_or(0, Verdict::compared)),
            stage,
            metric,
            error,
            budget,
            mark(outcome(&item.outcome), item.outcome.fails(), matches!(item.outcome, Outcome::Judged(_))),
        ]);
    }
    table.trim_fmt()
}

/// The verdict on each stage that a candidate holds.
pub fn check_table(verdict: &Verdict, styled: bool) -> String {
    let mut table = table(styled, &["stage", "", "error", "budget", "verdict"]);
    for column in [2, 3] {
        align_right(&mut table, column);
    }
    for stage in verdict.stages.iter().filter(|stage| stage.disposition != Disposition::NotHeld) {
        let [name, metric, error, budget] = stage_cells(Some(stage));
        let (words, fails) = (disposition(stage.disposition), stage.disposition.fails());
        table.add_row([name, metric, error, budget, mark(words, fails, stage.disposition.compared())]);
    }
    table.trim_fmt()
}

fn stage_cells(stage: Option<&StageVerdict>) -> [Cell; 4] {
    let Some(stage) = stage else { return std::array::from_fn(|_| Cell::new("")) };
    let [metric, error, budget] = match stage.worst_metric() {
        Some((metric, error, budget)) => [metric.into(), number(error), number(budget)],
        None => Default::default(),
    };
    [Cell::new(&stage.stage), Cell::new(metric), Cell::new(error), Cell::new(budget)]
}

fn mark(words: impl ToString, fails: bool, ran: bool) -> Cell {
    let cell = Cell::new(words);
    match (fails, ran) {
        (true, _) => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        (false, true) => cell.fg(Color::Green),
        (false, false) => cell.fg(Color::Yellow),
    }
}

/// An empty table: columns side by side, one line below the header.
pub(crate) fn table(styled: bool, header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(header.to_vec());
    if styled {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    table
}

/// Aligns a column of numbers.
pub(crate) fn align_right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
