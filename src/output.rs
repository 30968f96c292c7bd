//! Files and folders that appear whole or not at all: written beside their place, then renamed into it
//! ([`Unfinished`], which is also what something that is written piece by piece is put into).

use std::fs;
use std::path::{Path, PathBuf};

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

/// Whether [`replace_files`] may write to the folder `dir`: something is made there, or where it would be made, and removed.
///
/// # Errors
/// If it may not.
pub fn check_folder(dir: &Path) -> Result<()> {
    let probe = |place: &Path| match Unfinished::folder(place) {
        Ok(_) => Ok(()),
        Err(refused) => Err(Error::from(refused).moved(place, dir)),
    };
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => return probe(&dir.join("report")),
        Ok(_) => return Err(Error::file(dir, "a folder to write to", "something else")),
        Err(_) => {}
    }
    let missing = missing(dir);
    let above = missing.last().and_then(|outermost| outermost.parent()).unwrap_or(Path::new(""));
    // Whether a name is too long can be said before the folder above it is there.
    missing.iter().try_for_each(|folder| match folder.file_name() {
        Some(name) => probe(&above.join(name)),
        None => Err(Error::file(dir, "a path without `..` behind what there is not", "one")),
    })
}

/// Puts `files` (name and content) into the folder `dir`, in place of an earlier set of the same names: there is never one
/// file of this set beside one of that.
///
/// A folder that is new, or holds nothing but such a set, is put there as a whole. Where it holds other things, or cannot be
/// renamed (it is mounted, or it is where the program runs), the old files are removed before the new ones get their names.
///
/// # Errors
/// If a file cannot be written. A set that was there before stays as it was.
pub fn replace_files(dir: &Path, files: &[(&str, String)]) -> Result<()> {
    let made = missing(dir);
    let written = put(dir, files);
    if written.is_err() {
        // Whatever was made on the way to it is empty.
        made.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
    written
}

fn put(dir: &Path, files: &[(&str, String)]) -> Result<()> {
    // A link leads to the folder that is meant.
    let dir = &fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    if !dir.exists() {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(Error::io(dir, "create"))?;
        return Ok(filled(dir, dir, files)?.finish()?);
    }
    let theirs = |name: &std::ffi::OsStr| files.iter().any(|(file, _)| name == *file);
    let mut entries = fs::read_dir(dir).map_err(Error::io(dir, "read"))?.flatten();
    let ours_alone = entries.all(|entry| theirs(&entry.file_name()));
    if ours_alone
        && std::env::current_dir().is_ok_and(|here| !here.starts_with(dir))
        && let Ok(new) = filled(dir, dir, files)
        && fs::metadata(dir).and_then(|found| fs::set_permissions(new.path(), found.permissions())).is_ok()
        && new.replace_folder().is_ok()
    {
        return Ok(());
    }
    let new = filled(&dir.join("report"), dir, files)?;
    new.sync()?;
    for (name, _) in files {
        match fs::remove_file(dir.join(name)) {
            Err(refused) if refused.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(dir.join(name), "replace")(refused));
            }
            _ => {}
        }
    }
    for (name, _) in files {
        fs::rename(new.path().join(name), dir.join(name)).map_err(Error::io(dir.join(name), "write"))?;
    }
    Ok(())
}

/// A folder that holds `files`, hidden beside `place`; messages speak of files in `shown`.
fn filled(place: &Path, shown: &Path, files: &[(&str, String)]) -> Result<Unfinished> {
    let new = Unfinished::folder(place)?;
    for (name, content) in files {
        fs::write(new.path().join(name), content).map_err(Error::io(shown.join(name), "write"))?;
    }
    Ok(new)
}

/// The folders that would have to be made for `dir`, the innermost first.
fn missing(dir: &Path) -> Vec<PathBuf> {
    let above = dir.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    above.map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests;
