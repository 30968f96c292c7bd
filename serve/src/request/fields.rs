//! The fields of a request, each of which is taken once: what is left is unknown.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ApiError, Result};

/// Fields that are not taken yet. One that is null is one that is not there.
pub struct Fields(Map<String, Value>);

/// Fields that mean nothing here, whatever they say: marks of the client's own, and hints to a scheduler.
const WITHOUT_EFFECT: [&str; 9] = [
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "metadata",
    "store",
    "service_tier",
    "priority",
    "request_id",
    "parallel_tool_calls",
];

impl Fields {
    /// Those of a body.
    ///
    /// # Errors
    /// If it is no object of JSON.
    pub fn of(body: &[u8]) -> Result<Self> {
        let refused =
            |message: String| ApiError::new(axum::http::StatusCode::BAD_REQUEST, Some("invalid_json"), message);
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields.into_iter().filter(|(_, value)| !value.is_null()).collect())),
            Ok(_) => Err(refused("the body: expected an object of JSON, found another value".to_owned())),
            Err(error) => Err(refused(format!("the body: expected an object of JSON, found {error}"))),
        }
    }

    /// A field, if it is there.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.0.shift_remove(name) else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| ApiError::field(name, error))
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// If it is not, or is of another type.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        self.take(name)?.ok_or_else(|| ApiError::field(name, "expected, not found"))
    }

    /// A field that does nothing here, and may only say that nothing is wanted.
    ///
    /// # Errors
    /// If it says something else.
    pub fn refuse(&mut self, name: &str, off: &[Value]) -> Result<()> {
        match self.0.shift_remove(name) {
            Some(value) if !off.iter().any(|off| same(off, &value)) => {
                let off: Vec<String> = off.iter().map(Value::to_string).collect();
                let expected =
                    if off.is_empty() { "nothing".to_owned() } else { format!("nothing or {}", off.join(", ")) };
                let message = format_args!("expected {expected}, since others are not supported, found {value}");
                Err(ApiError::field(name, message).with_code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// No more fields are known.
    ///
    /// # Errors
    /// If there is one.
    pub fn end(self) -> Result<()> {
        match self.0.keys().find(|name| !WITHOUT_EFFECT.contains(&name.as_str())) {
            Some(name) => Err(ApiError::field(name, "this field is not known").with_code("unknown_parameter")),
            None => Ok(()),
        }
    }
}

/// 0 and 0.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}
