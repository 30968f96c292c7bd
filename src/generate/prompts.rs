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
    /// ends in `.jsonl` each line is JSON: a string, or an object with a `prompt` or with `messages`.
    ///
    /// # Errors
    /// If the file cannot be read, is no UTF-8, has a line that is no prompt, or has none; as [`Prompt::fed`], with the line.
    pub fn fed_file(path: &Path, folder: &ModelFolder) -> Result<Vec<(String, Vec<i64>)>> {
        let prompts = Self::read(path)?;
        let fed = |(line, prompt): &(usize, Self)| {
            prompt.fed(folder).map_err(|error| Error::file(path, format!("a prompt in line {line}"), error))
        };
        prompts.iter().map(fed).collect()
    }

    /// The prompts of a file, and the lines that they stand in.
    fn read(path: &Path) -> Result<Vec<(usize, Self)>> {
        let text = file::read_text(path, LARGEST)?;
        let json = path.extension().is_some_and(|extension| extension == "jsonl");
        let prompt = |line: &str| if json { Prompt::from_json(line) } else { Ok(Prompt::Text(line.to_owned())) };
        lines::each(path, &text, "prompts", prompt)
    }

    /// One line of JSON, or what was expected and found.
    fn from_json(line: &str) -> Result<Self, (String, String)> {
        let expected = || "a string, or an object with `prompt` or `messages`".to_owned();
        match serde_json::from_str(line).map_err(|error| (expected(), error.to_string()))? {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Object(mut object) => match (object.remove("prompt"), object.remove("messages")) {
                // A setting or a tool would have no effect.
                _ if !object.is_empty() => Err((expected(), format!("{}, too", list(object.keys(), 5)))),
                (Some(Value::String(text)), None) => Ok(Prompt::Text(text)),
                (None, Some(messages)) => match Message::list(&messages.to_string()) {
                    Ok(messages) => Ok(Prompt::Messages(messages)),
                    Err(error) => Err(("messages".to_owned(), error.to_string())),
                },
                (prompt, messages) => {
                    let found = [("prompt", prompt), ("messages", messages)];
                    let found: Vec<&str> =
                        found.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| *key).collect();
                    Err((expected(), if found.is_empty() { "neither".to_owned() } else { format!("{found:?}") }))
                }
            },
            other => Err((expected(), other.to_string())),
        }
    }

    /// What the model is given to read, and its tokens: a text as it is, a conversation as the model's template writes it.
    ///
    /// # Errors
    /// If there is no template, or it refuses the messages; if there are no tokens, one that the model does not know, or more
    /// than it can read.
    pub fn fed(&self, folder: &ModelFolder) -> Result<(String, Vec<i64>)> {
        match self {
            Prompt::Text(text) => fed(folder, text.clone(), true),
            Prompt::Messages(messages) => conversation(folder, messages),
        }
    }
}

/// The same of a conversation. What a template wrote has its special tokens already.
///
/// # Errors
/// As [`Prompt::fed`].
pub fn conversation(folder: &ModelFolder, messages: &[Message]) -> Result<(String, Vec<i64>)> {
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    fed(folder, folder.template()?.render(messages, &options)?, false)
}

fn fed(folder: &ModelFolder, text: String, add_special_tokens: bool) -> Result<(String, Vec<i64>)> {
    let tokens = folder.tokenizer.encode(&text, add_special_tokens)?;
    if tokens.is_empty() || text.is_empty() {
        return Err(Error::request("prompt", "a text", "an empty one"));
    }
    folder.check(&tokens)?;
    Ok((text, tokens))
}
