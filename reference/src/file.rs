//! Files, as far as anything here touches them: read up to a limit, mapped, or written so that they appear whole.
//!
//! Whatever a path leads to, reading it ends: only regular files are read, they are opened without waiting (for a pipe one
//! would wait for ever), and no more than a stated number of bytes is taken, whatever the file's length is said to be (files
//! of /proc say 0 and have no end).

pub mod ending;
mod map;
pub mod set;
pub mod unfinished;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use crate::{Error, Result};
pub use map::map;

/// The longest config.json and case.json that are read, in bytes. The longest known config, of a quantised model that lists
/// its modules one by one, has 1.7 million.
pub const CONFIG: u64 = 4 << 20;

/// The longest index of a checkpoint. That of the 236 billion parameters has 3 million bytes.
pub const INDEX: u64 = 32 << 20;

/// The content of the regular file `path`, which has at most `limit` bytes.
///
/// # Errors
/// If there is no such file, it is none, it is longer, or it cannot be read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let cannot = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let file = open(path).map_err(|refused| match refused {
        Refused::Other(what) => Error::file(path, "a file", what),
        Refused::Io(source) => cannot(source),
    })?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot)?;
    match bytes.len() as u64 > limit {
        true => Err(Error::file(path, format!("at most {limit} bytes"), "more")),
        false => Ok(bytes),
    }
}

/// The same of a file of text.
///
/// # Errors
/// Also if it is no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let text = String::from_utf8(read(path, limit)?);
    text.map_err(|error| Error::file(path, "text in UTF-8", error.utf8_error()))
}

/// Copies the regular file `from` to the new file `to`, which messages call `shown`.
///
/// # Errors
/// If one cannot be read or the other not be written.
pub fn copy(from: &Path, to: &Path, shown: &Path) -> Result<()> {
    let mut source = open(from).map_err(|refused| match refused {
        Refused::Other(what) => Error::file(from, "a file", what),
        Refused::Io(source) => Error::Io { path: from.to_owned(), action: "read", source },
    })?;
    let cannot = |source| Error::Io { path: shown.to_owned(), action: "write", source };
    let length = source.metadata().map_err(cannot)?.len();
    let mut target = File::create_new(to).map_err(cannot)?;
    io::copy(&mut (&mut source).take(length), &mut target).map_err(cannot)?;
    Ok(())
}

/// Why a file was not opened.
enum Refused {
    /// It is this, and no file.
    Other(&'static str),
    /// The system's answer.
    Io(io::Error),
}

/// Opens a regular file, and nothing else, without waiting.
fn open(path: &Path) -> Result<File, Refused> {
    let regular = |found: &fs::Metadata| match found.is_file() {
        true => Ok(()),
        false => Err(Refused::Other(what_is(found))),
    };
    // Before: opening a device may do something to it. After: what has been opened is what counts.
    regular(&fs::metadata(path).map_err(Refused::Io)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(Refused::Io)?;
    regular(&file.metadata().map_err(Refused::Io)?)?;
    Ok(file)
}

/// What a path leads to, for a message.
pub(crate) fn what_is(found: &fs::Metadata) -> &'static str {
    match (found.is_dir(), found.is_file()) {
        (true, _) => return "a folder",
        (_, true) => return "a file",
        _ => {}
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    "neither a file nor a folder"
}

#[cfg(test)]
mod tests;
