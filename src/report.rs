//! What a person or a program gets to read of a verdict.
//!
//! ```text
//! Checked, Item -> model::Report -> text       tables and lines for the terminal
//!                                -> JSON       golden/schema/report.schema.json
//!                                -> junit      for continuous integration
//!                                -> html       one page that needs nothing else
//! ```

mod describe;
mod html;
mod junit;
pub mod model;
mod notes;
mod tables;
mod text;

use std::fs;
use std::path::Path;

use dsv2_foreign::Text;

pub use html::html;
pub use junit::junit;
pub use text::{check_text, progress, verify_text};

use model::{Report, RunReport};

use crate::error::{Error, Result};
use crate::outcome::Item;
use crate::output;

/// Makes the folder of a report, before the work that the report is about.
///
/// # Errors
/// If it cannot be made.
pub fn make_folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir, "create"))
}

/// Writes report.json, junit.xml and report.html into the folder `dir`.
///
/// # Errors
/// If one of them cannot be written.
pub fn write(dir: &Path, report: &Report) -> Result<()> {
    let whole = |name: &str, text: Text| output::write_file(&dir.join(name), text.as_str().as_bytes());
    whole("report.json", Text::json(&format!("{:#}\n", report.json())))?;
    let xml = dir.join("junit.xml");
    let text = junit(report).map_err(|error| Error::io(&xml, "write")(std::io::Error::other(error)))?;
    whole("junit.xml", Text::markup(&text))?;
    whole("report.html", Text::markup(&html(report)))
}

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
