//! What `compare` says.

use comfy_table::{Attribute, Cell, CellAlignment, Color, LineStyle, Table, TableStyle};
use dsv2_bench_report::compare::{Change, Verdict};
use dsv2_foreign::Foreign;

/// Each measurement of two files: old, new, their ratio, how many times worse it may be, the verdict; then a line of totals.
/// Those that stayed as they were are shown only if `all` are wanted. `styled` adds colour, for a terminal.
pub fn text(changes: &[Change], all: bool, styled: bool) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(["measurement", "unit", "old", "new", "new / old", "allowed", "verdict"]);
    if styled {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    for column in table.column_iter_mut().skip(2).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let stayed = |change: &&Change| matches!(change.verdict, Verdict::Same | Verdict::NotJudged);
    for change in changes.iter().filter(|change| all || !stayed(change)) {
        let value = |value: Option<f64>| value.map_or("-".into(), significant);
        let judged = change.old.is_some() && change.new.is_some() && change.verdict != Verdict::NotJudged;
        table.add_row([
            Cell::new(Foreign(&change.id)),
            Cell::new(Foreign(&change.unit)),
            Cell::new(value(change.old)),
            Cell::new(value(change.new)),
            Cell::new(change.ratio().map_or("-".into(), |ratio| format!("{ratio:.3}"))),
            Cell::new(if judged { format!("{:.3}", change.allowed) } else { "-".into() }),
            mark(change, judged),
        ]);
    }
    let count = |verdict| changes.iter().filter(|change| change.verdict == verdict).count();
    let shown = if table.is_empty() { String::new() } else { table.trim_fmt() + "\n\n" };
    format!(
        "{shown}{} measurements: {} same, {} better, {} worse, {} gone, {} new, {} not judged",
        changes.len(),
        count(Verdict::Same),
        count(Verdict::Better),
        count(Verdict::Worse),
        count(Verdict::Gone),
        count(Verdict::New),
        count(Verdict::NotJudged)
    )
}

/// Red, green, or yellow for what has no verdict.
fn mark(change: &Change, judged: bool) -> Cell {
    let cell = Cell::new(change.verdict);
    match (change.is_regression(), judged) {
        (true, _) => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        (false, true) => cell.fg(Color::Green),
        (false, false) => cell.fg(Color::Yellow),
    }
}

/// Five digits.
fn significant(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e6).contains(&size) => {
            let digits = (4 - size.log10().floor() as i32).clamp(0, 7) as usize;
            let text = format!("{value:.digits$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
        }
        _ => format!("{value:.4e}"),
    }
}
