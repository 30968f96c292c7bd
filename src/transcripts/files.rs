//! Transcripts and requests as files have them: a JSON object a line.

use std::path::Path;

use dsv2_reference::file;
use serde_json::Value;

use super::record::Transcript;
use crate::error::{Error, Result};

/// The longest file that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// The requests that a server is asked where nobody says: one for each kind of known bug.
const REQUESTS: &str = include_str!("requests.jsonl");

/// A transcript, and what it is called.
#[derive(Clone, Debug)]
pub struct Named {
    /// Where it comes from.
    pub name: String,
    /// What it is.
    pub transcript: Transcript,
}

/// Answers to one request, by where it comes from.
pub fn named(name: &str, answers: Vec<Transcript>) -> Vec<Named> {
    let several = answers.len() > 1;
    let each = (1..).zip(answers).map(|(number, transcript)| {
        let name = if several { format!("{name}, answer {number}") } else { name.to_owned() };
        Named { name, transcript }
    });
    each.collect()
}

/// The transcripts of a file, for a model with so many tokens.
///
/// # Errors
/// If the file cannot be read, has none, or a line is no transcript.
pub fn transcripts(path: &Path, vocabulary: usize) -> Result<Vec<Named>> {
    let text = file::read_text(path, LONGEST)?;
    let mut all = Vec::new();
    for (number, line) in lines(&text) {
        let answers = Transcript::from_json(line, vocabulary)
            .map_err(|(expected, found)| Error::file(path, format!("{expected} in line {number}"), found))?;
        all.extend(named(&format!("line {number}"), answers));
    }
    match all.is_empty() {
        true => Err(Error::file(path, "transcripts, one in each line", "none")),
        false => Ok(all),
    }
}

/// The requests of a file, the body of one in each line; without a file, those in the program.
///
/// # Errors
/// If it cannot be read, has none, or a line is no JSON object.
pub fn requests(path: Option<&Path>) -> Result<Vec<Value>> {
    let shown = path.unwrap_or(Path::new("the requests in the program"));
    let text = path.map_or_else(|| Ok(REQUESTS.to_owned()), |path| file::read_text(path, LONGEST))?;
    let object = |(number, line): (usize, &str)| {
        let expected = || format!("a JSON object in line {number}");
        match serde_json::from_str(line).map_err(|error| Error::file(shown, expected(), error))? {
            request @ Value::Object(_) => Ok(request),
            other => Err(Error::file(shown, expected(), other)),
        }
    };
    let requests = lines(&text).map(object).collect::<Result<Vec<_>>>()?;
    match requests.is_empty() {
        true => Err(Error::file(shown, "requests, one in each line", "none")),
        false => Ok(requests),
    }
}

/// The lines that have something in them, and their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty())
}
