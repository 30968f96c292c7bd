//! Reading a whole file: config.json, an index, the record of a case.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

/// The content of the file `path`. Anything that is no file (a pipe would make us wait for ever) is refused.
///
/// # Errors
/// If there is no such file, it is none, or it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_up_to(path, u64::MAX)
}

/// The same of a file that no sensible program makes longer than `limit` bytes.
pub(crate) fn read_up_to(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let cannot = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let found = fs::metadata(path).map_err(cannot)?;
    if !found.is_file() {
        return Err(Error::file(path, "a file", what_is(&found)));
    }
    if found.len() > limit {
        return Err(Error::file(path, format!("at most {limit} bytes"), found.len()));
    }
    fs::read(path).map_err(cannot)
}

/// What a path leads to, for a message.
pub(crate) fn what_is(found: &fs::Metadata) -> &'static str {
    match (found.is_dir(), found.is_file()) {
        (true, _) => "a folder",
        (_, true) => "a file",
        _ => "neither a file nor a folder",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        File::create(&path).unwrap().set_len((1 << 25) + 1).unwrap();
        let refused = read_up_to(&path, 1 << 25).unwrap_err().to_string();
        assert!(refused.ends_with("config.json: expected at most 33554432 bytes, found 33554433"), "{refused}");
    }
}
