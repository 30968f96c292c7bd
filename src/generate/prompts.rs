//! What is to be gone on with, or answered.

use std::path::Path;

use dsv2_foreign::list;
use dsv2_reference::file;
use dsv2_text::{ChatOptions, Message};
use serde_json::Value;

use super::ModelFolder;
use crate::error::{Error, Result};
use crate::lines;

/// The largest file of prompts that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// The longest id of a prompt, in characters.
const LONGEST_ID: usize = 256;

/// What is fed for a prompt.
#[derive(Clone, Debug)]
pub struct Fed {
    /// What the line of a file calls it: a text or a whole number.
    pub id: Option<Value>,
    /// What the model is given to read.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<i64>,
}

/// A line of a file.
struct Line {
    id: Option<Value>,
    prompt: Prompt,
}

/// Something for a model to say more to.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A text that goes on.
    Text(String),
    /// A conversation in which it is the model's turn.
    Messages(Vec<Message>),
}

impl Prompt {
    /// What the model is given to read for each prompt of a file. A line is a text, empty lines are none. In a file whose name
    /// ends in `.jsonl` each line is JSON: a string, or an object with a `prompt` or with `messages`, and perhaps with an `id`.
    ///
    /// # Errors
    /// If the file cannot be read, is no UTF-8, has a line that is no prompt, or has none; as [`Prompt::fed`], with the line.
    pub fn fed_file(path: &Path, folder: &ModelFolder) -> Result<Vec<Fed>> {
        let fed = |(number, line): (usize, Line)| match line.prompt.fed(folder) {
            Ok(fed) => Ok(Fed { id: line.id, ..fed }),
            Err(error) => Err(Error::file(path, format!("a prompt in line {number}"), error)),
        };
        Line::read(path)?.into_iter().map(fed).collect()
    }

    /// What the model is given to read, and its tokens: a text as it is, a conversation as the model's template writes it.
    ///
    /// # Errors
    /// If there is no template, or it refuses the messages; if there are no tokens, one that the model does not know, or more
    /// than it can read.
    pub fn fed(&self, folder: &ModelFolder) -> Result<Fed> {
        match self {
            Prompt::Text(text) => fed(folder, text.clone(), true),
            Prompt::Messages(messages) => conversation(folder, messages),
        }
    }
}

impl Line {
    /// Those of a file, and their numbers.
    fn read(path: &Path) -> Result<Vec<(usize, Self)>> {
        let text = file::read_text(path, LARGEST)?;
        let json = path.extension().is_some_and(|extension| extension == "jsonl");
        let of_text = |line: &str| Line { id: None, prompt: Prompt::Text(line.to_owned()) };
        let line = |line: &str| if json { Line::from_json(line) } else { Ok(of_text(line)) };
        lines::each(path, &text, "prompts", line)
    }

    /// One line of JSON, or what was expected and found.
    fn from_json(line: &str) -> Result<Self, (String, String)> {
        let expected = || "a string, or an object with `prompt` or `messages`, and perhaps `id`".to_owned();
        let mut object = match serde_json::from_str(line).map_err(|error| (expected(), error.to_string()))? {
            Value::String(text) => return Ok(Line { id: None, prompt: Prompt::Text(text) }),
            Value::Object(object) => object,
            other => return Err((expected(), other.to_string())),
        };
        let [prompt, messages, id] = ["prompt", "messages", "id"].map(|key| object.remove(key));
        let prompt = match (prompt, messages) {
            // A setting or a tool would have no effect.
            _ if !object.is_empty() => return Err((expected(), format!("{}, too", list(object.keys(), 5)))),
            (Some(Value::String(text)), None) => Prompt::Text(text),
            (None, Some(messages)) => match Message::list(&messages.to_string()) {
                Ok(messages) => Prompt::Messages(messages),
                Err(error) => return Err(("messages".to_owned(), error.to_string())),
            },
            (prompt, messages) => {
                let found = [("prompt", prompt), ("messages", messages)];
                let found: Vec<&str> = found.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| *key).collect();
                return Err((expected(), if found.is_empty() { "neither".to_owned() } else { format!("{found:?}") }));
            }
        };
        Ok(Line { id: id.map(checked_id).transpose()?, prompt })
    }
}

/// An id that is said again as it was read: a number with a fraction, or a very large one, would be another.
fn checked_id(id: Value) -> Result<Value, (String, String)> {
    let found = match &id {
        Value::String(text) => match text.chars().count() {
            count if count <= LONGEST_ID => return Ok(id),
            count => format!("{count} characters"),
        },
        Value::Number(number) if number.is_i64() || number.is_u64() => return Ok(id),
        other => other.to_string(),
    };
    Err((format!("`id` as a text of at most {LONGEST_ID} characters or as a whole number of 64 bits"), found))
}

/// The same of a conversation. What a template wrote has its special tokens already.
///
/// # Errors
/// As [`Prompt::fed`].
pub fn conversation(folder: &ModelFolder, messages: &[Message]) -> Result<Fed> {
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    fed(folder, folder.template()?.render(messages, &options)?, false)
}

fn fed(folder: &ModelFolder, text: String, add_special_tokens: bool) -> Result<Fed> {
    folder.could_read(&text)?;
    let tokens = folder.tokenizer.encode(&text, add_special_tokens)?;
    if tokens.is_empty() || text.is_empty() {
        return Err(Error::request("prompt", "a text", "an empty one"));
    }
    folder.check(&tokens)?;
    Ok(Fed { id: None, text, tokens })
}
