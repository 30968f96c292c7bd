//! JSON files of checkpoints, read strictly: of a key that is there twice, one program takes the first value and
//! another the last.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::one_line;
use crate::{Error, Result, file};

/// Reads the JSON file `path` of at most `limit` bytes; `expected` is what messages say that it should hold.
///
/// # Errors
/// If it cannot be read, is longer than any sensible one, or is no JSON.
pub(crate) fn read(path: &Path, limit: u64, expected: &str) -> Result<Value> {
    let bytes = file::read(path, limit)?;
    parse(&bytes).map_err(|error| Error::file(path, expected, no_json(&error)))
}

/// Reads a JSON text. No object in it may have a key twice.
pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Strict>(text).map(|Strict(value)| value)
}

/// What a message says was found in place of JSON.
pub(crate) fn no_json(error: &serde_json::Error) -> String {
    format!("no JSON: {}", one_line(error))
}

/// A JSON value without a key that is there twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some((key, Strict(value))) = object.next_entry::<String, Strict>()? {
            if values.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{key}` twice")));
            }
            values.insert(key, value);
        }
        Ok(values.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_json_there_is_is_read_as_it_stands() {
        let text = r#"{"b": [null, true, -1, 18446744073709551615, 0.5, "x\n\u00e4", {}], "a": {"b": [], "c": 1e300}}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), plain);
        assert_eq!(parse(text.as_bytes()).unwrap().to_string(), plain.to_string(), "in the order of the text");
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        let refused = |text: &str| no_json(&parse(text.as_bytes()).unwrap_err());
        assert_eq!(refused(r#"{"a": 1, "a": 1}"#), "no JSON: the key `a` twice at line 1 column 16");
        assert_eq!(refused(r#"[{"x": {"a\n": 1, "a\n": 2}}]"#), "no JSON: the key `a\\n` twice at line 1 column 27");
        assert!(parse(br#"[{"a": 1}, {"a": 1}]"#).is_ok());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "[1,]", "NaN", "1e999", "{} {}", "\u{feff}{}", "\"\\ud800\""] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"\"\xff\"").is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
