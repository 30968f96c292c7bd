//! What a person or a program gets to read of a verdict.
//!
//! ```text
//! Checked, Item -> model::Report -> text       tables and lines for the terminal
//!                                -> JSON       golden/schema/report.schema.json
//!                                -> junit      for continuous integration
//!                                -> html       one page that needs nothing else
//! ```

mod changes;
mod describe;
mod html;
mod junit;
pub mod model;
mod notes;
pub(crate) mod table;
mod text;

pub use changes::changes_text;
pub use html::html;
pub use junit::junit;
pub use text::{check_text, progress, verify_text};

use model::{Report, RunReport};

use crate::verify::Item;

/// The line about an item that fails: which it is, and the first wrong stage.
pub fn verify_failure(item: &Item) -> Option<String> {
    text::run_failure(&RunReport::from(item))
}

/// The JSON Schema of all reports.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Report).to_value()
}

#[cfg(test)]
mod tests;
