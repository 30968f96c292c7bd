//! From config.json and back.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::DeepseekV2Config;
use crate::error::one_line;
use crate::{Error, Result, file, json};

impl DeepseekV2Config {
    /// Reads the text of a config.json.
    ///
    /// # Errors
    ///
    /// The text is not a JSON object, a key is there twice, or a field is impossible in every dialect.
    pub fn from_json_str(text: &str) -> Result<Self> {
        let value = json::parse(text.as_bytes());
        Self::from_value(value.map_err(|error| Error::config("the text", "a JSON object", json::no_json(&error)))?)
    }

    /// Reads a config.json.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is no JSON, a key is there twice, or a field is impossible in every dialect.
    pub fn from_file(path: &Path) -> Result<Self> {
        let value = json::read(path, file::CONFIG, "a JSON object")?;
        if !value.is_object() {
            return Err(Error::file(path, "a JSON object", one_line(&shortened(&value))));
        }
        Self::from_value(value)
    }

    /// Reads a parsed config.json.
    ///
    /// # Errors
    ///
    /// The value is not an object, or a field is impossible in every dialect.
    pub fn from_value(mut value: Value) -> Result<Self> {
        let Some(object) = value.as_object_mut() else {
            return Err(Error::config("the text", "a JSON object", shortened(&value)));
        };
        if object.get("rope_theta").is_some_and(Value::is_null) {
            return Err(Error::config("rope_theta", "a number > 0", "null"));
        }
        if let Some(experts) = object.shift_remove("num_experts") {
            let other = object.insert("n_routed_experts".into(), experts.clone());
            if other.is_some_and(|other| other != experts) {
                return Err(Error::config("num_experts", "the same as n_routed_experts", experts));
            }
        }
        // Derived, whatever the file says; `to_json` writes them anew.
        object.shift_remove("head_dim");
        object.shift_remove("qk_head_dim");

        let unread = take_unread(object);
        let vocab_size_by_default = !object.contains_key("vocab_size");

        let mut config: Self = read_field("", &value)?;
        config.extra.extend(unread);
        config.vocab_size_by_default = vocab_size_by_default;
        config.validate_in_every_dialect()?;
        Ok(config)
    }

    /// The content of a config.json that [`DeepseekV2Config::from_value`] reads back as `self`. Keys that it adds to
    /// the one that was read hold their defaults.
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("head_dim".into(), self.head_dim().into());
            object.insert("qk_head_dim".into(), self.qk_head_dim().into());
        }
        value
    }
}

/// Takes out the fields that only DeepSeek's code reads, where they are of another type than there: Transformers does not
/// look at them. Null takes the place of `moe_layer_freq`, which is 1 where it is missing.
fn take_unread(object: &mut Map<String, Value>) -> Map<String, Value> {
    let is_read = |field: &str, value: &Value| match field {
        "moe_layer_freq" => value.is_i64(),
        _ => value.is_string() || value.is_null(),
    };
    let mut unread = Map::new();
    for field in ["moe_layer_freq", "scoring_func"] {
        if let Some(value) = object.get_mut(field).filter(|value| !is_read(field, value)) {
            unread.insert(field.to_owned(), value.take());
        }
    }
    unread
}

/// Reads `value`, which stands at `place` in config.json (empty: the whole), and names the field that is at fault.
pub(super) fn read_field<V: DeserializeOwned>(place: &str, value: &Value) -> Result<V> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let found = error.path().iter().try_fold(value, |value, segment| match segment {
            serde_path_to_error::Segment::Map { key } => value.get(key),
            serde_path_to_error::Segment::Seq { index } => value.get(index),
            _ => None,
        });
        let message = error.inner().to_string();
        let expected = match message.rsplit_once(", expected ").map_or(message.as_str(), |(_, expected)| expected) {
            "usize" => "an integer >= 0",
            "i64" => "an integer",
            "f64" => "a number",
            "a boolean" => "true or false",
            "a map" => "an object",
            other => other,
        };
        let field = if place.is_empty() { path } else { format!("{place}.{path}") };
        Error::config(field, expected, found.map_or(message.clone(), shortened))
    })
}

/// The beginning of the value's JSON, all of it if it is short: errors are one line.
pub(super) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Reads a null as the type's default.
pub(super) fn null_is_default<'de, D: Deserializer<'de>, V: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<V, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
