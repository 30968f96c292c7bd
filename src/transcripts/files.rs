//! Transcripts and requests as files have them: a JSON object a line.

use std::path::Path;

use dsv2_reference::file;
use serde::Serialize;
use serde_json::Value;

use super::record::{Taken, Transcript};
use crate::error::Result;
use crate::lines;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// The requests that a server is asked where nobody says: one for each kind of known bug.
const REQUESTS: &str = include_str!("requests.jsonl");

/// What was asked and answered.
#[derive(Clone, Debug, Default)]
pub struct Transcripts {
    /// What can be judged.
    pub named: Vec<Named>,
    /// What cannot.
    pub unjudged: Vec<Unjudged>,
}

/// A transcript, and what it is called.
#[derive(Clone, Debug)]
pub struct Named {
    /// Where it comes from.
    pub name: String,
    /// What it is.
    pub transcript: Transcript,
}

/// A request of whose answer nothing can be said.
#[derive(Clone, Debug, Serialize)]
pub struct Unjudged {
    /// Where it comes from.
    pub name: String,
    /// What did not happen.
    pub how: How,
    /// Why.
    pub reason: String,
}

/// What did not happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It was not sent: no answer could be judged.
    NotAsked,
    /// The server refused it, or made an error.
    NotAnswered,
    /// It was answered, and no answer could be judged.
    NotJudged,
}

impl How {
    /// All of them.
    pub const ALL: [How; 3] = [How::NotAsked, How::NotAnswered, How::NotJudged];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            How::NotAsked => "not asked",
            How::NotAnswered => "not answered",
            How::NotJudged => "not judged",
        }
    }
}

impl Transcripts {
    /// One more: what was taken down under a name.
    pub fn add(&mut self, name: &str, taken: Taken) {
        match taken {
            Taken::Answers(answers) => {
                let several = answers.len() > 1;
                let named = (1..).zip(answers).map(|(number, transcript)| {
                    let name = if several { format!("{name}, answer {number}") } else { name.to_owned() };
                    Named { name, transcript }
                });
                self.named.extend(named);
            }
            Taken::NoAnswer(reason) => self.add_unjudged(name, How::NotAnswered, reason),
            Taken::NotJudged(reason) => self.add_unjudged(name, How::NotJudged, reason),
        }
    }

    /// One more of which nothing can be said.
    pub fn add_unjudged(&mut self, name: &str, how: How, reason: impl ToString) {
        self.unjudged.push(Unjudged { name: name.to_owned(), how, reason: reason.to_string() });
    }
}

/// The transcripts of a file, for a model with so many tokens.
///
/// # Errors
/// If the file cannot be read, has none, or a line is no transcript.
pub fn transcripts(path: &Path, vocabulary: usize) -> Result<Transcripts> {
    let text = file::read_text(path, LONGEST)?;
    let mut all = Transcripts::default();
    for (number, taken) in lines::each(path, &text, "transcripts", |line| Transcript::from_json(line, vocabulary))? {
        all.add(&format!("line {number}"), taken);
    }
    Ok(all)
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
