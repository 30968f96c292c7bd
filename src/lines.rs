//! Texts with one thing in each line.

use std::path::Path;

use crate::error::{Error, Result};

/// The `things` of a text that lies at `path`, as `read` makes them of lines, and the numbers of these; empty lines are none.
/// `read` says otherwise what it expected and what it found.
///
/// # Errors
/// If a line is none, with its number; if there is none.
pub fn each<T>(
    path: &Path,
    text: &str,
    things: &str,
    read: impl Fn(&str) -> Result<T, (String, String)>,
) -> Result<Vec<(usize, T)>> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let numbered = |(number, line)| match read(line) {
        Ok(thing) => Ok((number, thing)),
        Err((expected, found)) => Err(Error::file(path, format!("{expected} in line {number}"), found)),
    };
    let all = lines.map(numbered).collect::<Result<Vec<_>>>()?;
    match all.is_empty() {
        true => Err(Error::file(path, format!("{things}, one in each line"), "none")),
        false => Ok(all),
    }
}
