//! A message of a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The names that the thoughts of a model go by. Templates read the first; they get it from the others.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message: an object with a role and a content, and whatever else a template may read (`tool_calls`, `name`,
/// `reasoning_content`). Nothing of it is lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message of text.
    pub fn new(role: &str, content: &str) -> Self {
        let fields = [("role", role), ("content", content)];
        Message(fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect())
    }

    /// The messages of a JSON text: a list of objects.
    ///
    /// # Errors
    /// If it is none.
    pub fn list(json: &str) -> Result<Vec<Self>> {
        let refused = |number, found: String| Error::Message { number, expected: "a list of messages", found };
        let list = match serde_json::from_str(json) {
            Ok(Value::Array(list)) => list,
            Ok(other) => return Err(refused(1, other.to_string())),
            Err(error) => return Err(refused(1, error.to_string())),
        };
        (1..).zip(list).map(|(number, value)| Self::from_value(number, value)).collect()
    }

    /// The `number`-th message (from 1 on), which is an object.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_value(number: usize, value: Value) -> Result<Self> {
        match value {
            Value::Object(fields) => Ok(Message(fields)),
            other => Err(Error::Message {
                number,
                expected: "an object with a role and a content",
                found: other.to_string(),
            }),
        }
    }

    /// Who says it.
    pub fn role(&self) -> Option<&str> {
        self.0.get("role")?.as_str()
    }

    /// What is said, if it is a text and no list of parts.
    pub fn text(&self) -> Option<&str> {
        self.0.get("content")?.as_str()
    }

    /// All that it holds.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The same with another field.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// What a template sees: no field that is null, and thoughts under the names that templates know.
    pub(super) fn as_templates_see_it(&self) -> Map<String, Value> {
        let mut fields: Map<String, Value> = self
            .0
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name).cloned()) else { return fields };
        if !fields.contains_key("thinking") {
            fields = [("thinking".to_owned(), reasoning.clone())].into_iter().chain(fields).collect();
        }
        fields.insert("reasoning_content".to_owned(), reasoning);
        fields
    }
}
