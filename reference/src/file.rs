//! Reading a whole file: config.json, an index, the record of a case; or mapping one that holds tensors.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::weights::safetensors_file::SharedBytes;
use crate::{Error, Result};

/// The content of the file `path`. Anything that is no file (a pipe would make us wait for ever) is refused.
///
/// # Errors
/// If there is no such file, it is none, or it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_up_to(path, u64::MAX)
}

/// The bytes of the file `path`, mapped into memory: a page is read when it is first touched. `what` says in a message what
/// kind of file was expected.
///
/// # Errors
/// If there is no such file, it is none, or it cannot be read.
pub fn map(path: &Path, what: &str) -> Result<SharedBytes> {
    let cannot = |source| Error::Io { path: path.to_owned(), action: "read", source };
    match fs::metadata(path) {
        // Opening a pipe would wait for somebody to write to it.
        Ok(found) if !found.is_file() => return Err(Error::file(path, "a file", what_is(&found))),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::file(path, what, "no such file")),
        Err(error) => return Err(cannot(error)),
    }
    let file = File::open(path).map_err(cannot)?;
    // SAFETY: nobody may change or shorten the file while it is mapped. A program cannot enforce that, but this
    // crate keeps to it: it never writes into a file that exists, it puts a new one in its place by renaming.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(cannot)?;
    Ok(Arc::new(map))
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
