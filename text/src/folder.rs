//! The JSON files of a checkpoint folder.

use std::path::Path;

use dsv2_reference::file;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest tokenizer.json that is read, in bytes. That of 100 thousand tokens has 5 million, that of 260 thousand 33.
pub(crate) const TOKENIZER: u64 = 128 << 20;

/// An object of JSON in a file, if there is such a file.
pub(crate) fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = text(path, file::CONFIG)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(Error::file(path, "an object of JSON", "another value")),
        Err(error) => Err(Error::file(path, "an object of JSON", error)),
    }
}

/// The text of a file, if there is such a file.
pub(crate) fn text(path: &Path, limit: u64) -> Result<Option<String>> {
    // A link into nothing, or a folder that may not be looked into, is no missing file: reading it says what is wrong.
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => Ok(Some(file::read_text(path, limit)?)),
    }
}
