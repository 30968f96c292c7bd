//! Transcripts and requests as files have them: a JSON object a line.

use std::path::Path;

use dsv2_reference::file;
use serde_json::Value;

use super::record::Transcript;
use crate::error::Result;
use crate::lines;

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
    let all = lines::each(path, &text, "transcripts", |line| Transcript::from_json(line, vocabulary))?;
    Ok(all.into_iter().flat_map(|(number, answers)| named(&format!("line {number}"), answers)).collect())
}

/// The requests of a file, the body of one in each line; without a file, those in the program.
///
/// # Errors
/// If it cannot be read, has none, or a line is no JSON object.
pub fn requests(path: Option<&Path>) -> Result<Vec<Value>> {
    let shown = path.unwrap_or(Path::new("the requests in the program"));
    let text = path.map_or_else(|| Ok(REQUESTS.to_owned()), |path| file::read_text(path, LONGEST))?;
    let object = |line: &str| match serde_json::from_str(line) {
        Ok(request @ Value::Object(_)) => Ok(request),
        Ok(other) => Err(("a JSON object".to_owned(), other.to_string())),
        Err(error) => Err(("a JSON object".to_owned(), error.to_string())),
    };
    Ok(lines::each(shown, &text, "requests", object)?.into_iter().map(|(_, request)| request).collect())
}
