//! Files and folders that appear whole or not at all: written beside their place, then renamed into it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes a file. The folder it lies in must exist.
///
/// # Errors
/// If it cannot be written; nothing is left then, and a file that was there before stays as it was.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    check_place(path)?;
    let mut file = builder().tempfile_in(parent(path)).map_err(Error::io(path, "write"))?;
    file.write_all(bytes).map_err(Error::io(path, "write"))?;
    file.persist(path).map_err(|refused| Error::io(path, "write")(refused.error))?;
    Ok(())
}

/// Whether a file may be written at `path`, as far as that can be said before writing it.
///
/// # Errors
/// If its folder does not exist, or there is something at `path` that is no file.
pub fn check_place(path: &Path) -> Result<()> {
    // Renaming would put a plain file in the place of, say, /dev/null.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::file(path, "a file to write", "something else"));
    }
    let folder = parent(path);
    match fs::metadata(&folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::file(path, "a folder to write to", "a file in its place")),
        Err(refused) => Err(Error::io(path, "write")(refused)),
    }
}

/// Makes a folder and lets `fill` write into it. An empty folder may be there already.
///
/// # Errors
/// If there is something else at `path`, the folder cannot be made, or `fill` fails; nothing is left then.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(Error::file(path, "no folder, or an empty one", "a folder with something in it")),
        Err(refused) if refused.kind() == std::io::ErrorKind::NotFound => check_place(path)?,
        Err(refused) => return Err(Error::io(path, "write")(refused)),
    }
    let folder =
        tempfile::Builder::new().prefix(".dsv2-").tempdir_in(parent(path)).map_err(Error::io(path, "write"))?;
    fill(folder.path())?;
    fs::rename(folder.path(), path).map_err(Error::io(path, "write"))?;
    let _ = folder.keep();
    Ok(())
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Temporary files are for their owner only; these are to become ordinary files.
fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".dsv2-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("a");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(room.path()), ["a"]);
    }

    #[test]
    fn a_path_that_cannot_be_written_leaves_nothing() {
        let room = tempfile::tempdir().unwrap();
        let refused = write_file(&room.path().join("nowhere/a"), b"x").unwrap_err().to_string();
        assert!(refused.contains("nowhere/a: cannot write: "), "{refused}");
        fs::create_dir(room.path().join("taken")).unwrap();
        assert!(write_file(&room.path().join("taken"), b"x").is_err());
        assert_eq!(names(room.path()), ["taken"]);
    }

    #[test]
    fn a_folder_appears_filled_or_not_at_all() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("folder");
        let failing = write_folder(&path, |new| {
            fs::write(new.join("half"), b"x").unwrap();
            Err(Error::request("--x", "y", "z"))
        });
        assert!(failing.is_err());
        assert_eq!(names(room.path()), Vec::<String>::new());

        fs::create_dir(&path).unwrap();
        write_folder(&path, |new| write_file(&new.join("inside"), b"x")).unwrap();
        assert_eq!(names(&path), ["inside"]);
        let refused = write_folder(&path, |_| unreachable!("it is not empty")).unwrap_err().to_string();
        assert!(
            refused.ends_with("expected no folder, or an empty one, found a folder with something in it"),
            "{refused}"
        );
        assert_eq!(names(room.path()), ["folder"]);
    }
}
