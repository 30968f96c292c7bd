//! Reading a whole file: config.json, an index, the record of a case.

use std::fs;
use std::path::Path;

use crate::safetensors_file::what_is;
use crate::{Error, Result};

/// The content of the file `path`. Anything that is no file (a pipe would make us wait for ever) is refused.
///
/// # Errors
/// If there is no such file, it is none, or it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let found = fs::metadata(path).map_err(cannot)?;
    if !found.is_file() {
        return Err(Error::file(path, "a file", what_is(&found)));
    }
    fs::read(path).map_err(cannot)
}
