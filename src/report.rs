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

use std::path::Path;

use dsv2_foreign::Text;
use dsv2_reference::file::set;

pub use html::html;
pub use junit::junit;
pub use text::{check_text, progress, verify_text};

use model::{Report, RunReport};

use crate::error::{Error, Result};
use crate::outcome::Item;

/// Writes report.json, junit.xml and report.html into the folder `dir`, all three or none
/// ([`set::replace`]; before the work that they are about, [`set::check`]).
///
/// # Errors
/// If one of them cannot be written.
pub fn write(dir: &Path, report: &Report) -> Result<()> {
    let json = Text::json(&format!("{:#}\n", report.json()));
    let xml = junit(report).map_err(|error| Error::io(dir.join("junit.xml"), "write")(std::io::Error::other(error)))?;
    let (xml, page) = (Text::markup(&xml), Text::markup(&html(report)));
    let files = [("report.json", json), ("junit.xml", xml), ("report.html", page)];
    Ok(set::replace(dir, &files.map(|(name, text)| (name, text.to_string())))?)
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
