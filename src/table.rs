//! Tables for the terminal.

use comfy_table::{Attribute, Cell, CellAlignment, Color, LineStyle, Table, TableStyle};

/// Red, green, or yellow for what has no verdict.
pub fn mark(words: impl ToString, fails: bool, ran: bool) -> Cell {
    let cell = Cell::new(words);
    match (fails, ran) {
        (true, _) => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        (false, true) => cell.fg(Color::Green),
        (false, false) => cell.fg(Color::Yellow),
    }
}

/// An empty table: columns side by side, one line below the header.
pub fn table(styled: bool, header: &[&str]) -> Table {
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
pub fn align_right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
