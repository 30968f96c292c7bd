//! What Transformers 5.23 says of the same texts, messages, logits and settings: golden/text.

mod chats;
mod generation;
mod logits;
mod stops;
mod tokens;

use std::path::PathBuf;

use serde_json::{Map, Value};

/// The content of a golden file.
fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../golden/text")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn ids(value: &Value) -> Vec<i64> {
    list(value).iter().map(|id| id.as_i64().unwrap()).collect()
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
