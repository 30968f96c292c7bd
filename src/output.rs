//! Files and folders that appear whole or not at all: written beside their place, then renamed into it
//! ([`Unfinished`], which is also what something that is written piece by piece is put into).

use std::fs;
use std::path::Path;

pub use dsv2_reference::file::unfinished::Unfinished;

use crate::error::{Error, Result};

/// Writes a file. The folder it lies in must exist.
///
/// # Errors
/// If it cannot be written; nothing is left then, and a file that was there before stays as it was.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = Unfinished::beside(path)?;
    fs::write(new.path(), bytes).map_err(Error::io(path, "write"))?;
    Ok(new.finish()?)
}

/// Whether a file may be written at `path`: one is made beside it, and removed.
///
/// # Errors
/// If its folder does not exist or cannot be written to, or there is something at `path` that is no file.
pub fn check_place(path: &Path) -> Result<()> {
    Ok(Unfinished::beside(path).map(drop)?)
}

/// Makes a folder and lets `fill` write into it. An empty folder may be there already.
///
/// # Errors
/// If there is something else at `path`, the folder cannot be made, or `fill` fails; nothing is left then. What `fill` says of
/// a file is said of the one that it should have become.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(Error::file(path, "no folder, or an empty one", "a folder with something in it")),
        Err(refused) if refused.kind() == std::io::ErrorKind::NotFound => {}
        Err(refused) => return Err(Error::io(path, "write")(refused)),
    }
    let new = Unfinished::folder(path)?;
    fill(new.path()).map_err(|error| error.moved(new.path(), path))?;
    Ok(new.finish()?)
}

#[cfg(test)]
mod tests;
