//! Files and folders that appear whole or not at all: written under a hidden name beside the place they shall have, then
//! renamed into it.
//!
//! The name is `.NAME.PID-N.partial`, and whoever writes holds a lock on it. So what a killed program left is known: it has
//! such a name and nobody holds the lock. The next to write to the same place removes it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::what_is;
use crate::{Error, Result};

/// What this program has begun to write and not finished.
static BEGUN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn begun() -> MutexGuard<'static, Vec<PathBuf>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes whatever has been begun. Nothing can be begun or finished afterwards: threads that try wait until the program ends.
pub fn remove_all() {
    let begun = begun();
    // A thread may still be writing a new file into a folder.
    for _ in 0..10 {
        begun.iter().for_each(|path| remove(path));
    }
    std::mem::forget(begun);
}

/// Does something that a signal that ends the program waits for.
pub(super) fn undisturbed<R>(work: impl FnOnce() -> R) -> R {
    let _begun = begun();
    work()
}

fn remove(path: &Path) {
    let _ = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
}

/// A file or folder that is being written under another name, beside the place it shall have. It is gone if it is dropped
/// before [`Unfinished::finish`], and if the program ends by a signal.
#[derive(Debug)]
pub struct Unfinished {
    target: PathBuf,
    path: PathBuf,
    /// Open and locked, which says that somebody is writing. A system that cannot open a folder has no lock on it.
    held: Option<File>,
}

impl Unfinished {
    /// An empty file that shall become `target`.
    ///
    /// # Errors
    /// If there can be none: its folder is missing or cannot be written to, the name is too long, or there is something at
    /// `target` that is no file.
    pub fn beside(target: &Path) -> Result<Self> {
        match fs::metadata(target) {
            // Renaming would put a plain file in the place of, say, /dev/null.
            Ok(found) if !found.is_file() => return Err(Error::file(target, "a file to write", what_is(&found))),
            // A name that is too long, a link that leads to itself
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(cannot(target, "write", source)),
            _ => {}
        }
        Self::begin(target, |path| File::create_new(path).map(Some))
    }

    /// An empty folder that shall become `target`.
    ///
    /// # Errors
    /// As [`Unfinished::beside`]; what is at `target` is looked at when it is finished.
    pub fn folder(target: &Path) -> Result<Self> {
        match fs::metadata(target) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(cannot(target, "write", source)),
            _ => {}
        }
        Self::begin(target, |path| fs::create_dir(path).map(|()| File::open(path).ok()))
    }

    /// An empty folder among the temporary files, for this program alone and until it ends.
    ///
    /// # Errors
    /// If there can be none.
    pub fn scratch() -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let place = std::env::temp_dir().join("dsv2");
        Self::begin(&place, |path| builder.create(path).map(|()| File::open(path).ok()))
    }

    fn begin(target: &Path, make: impl Fn(&Path) -> io::Result<Option<File>>) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let Some(prefix) = hidden_prefix(target) else {
            return Err(Error::file(target, "a path that ends in a name", "none"));
        };
        let folder = folder_of(target);
        remove_leftovers(&folder, &prefix);
        loop {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let mut name = prefix.clone();
            name.push(format!("{}-{count}.partial", std::process::id()));
            let path = folder.join(name);
            let mut begun = begun();
            let held = match make(&path) {
                Ok(held) => held,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(cannot(target, "write", source)),
            };
            // Somebody may take it for a leftover before it is locked; then another one is made.
            let taken = held.as_ref().is_some_and(|held| matches!(held.try_lock(), Err(fs::TryLockError::WouldBlock)));
            if !taken && fs::symlink_metadata(&path).is_ok() {
                begun.push(path.clone());
                return Ok(Unfinished { target: target.to_owned(), path, held });
            }
        }
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, in place of a file or an empty folder. It is on the disk then.
    ///
    /// # Errors
    /// If that cannot be done; then all is as it was before it was begun.
    pub fn finish(self) -> Result<()> {
        self.sync()?;
        self.place(|from, to| fs::rename(from, to))
    }

    /// Gives the folder its name, in place of another folder, which is removed, in one step.
    ///
    /// # Errors
    /// If that cannot be done, which some file systems and mounted folders cannot; then the other folder is as it was.
    pub fn replace_folder(self) -> Result<()> {
        self.sync()?;
        #[cfg(unix)]
        let exchanged = {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let _begun = begun();
            let exchanged = renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::EXCHANGE);
            exchanged.map_err(io::Error::from)
        };
        #[cfg(not(unix))]
        let exchanged = Err(io::ErrorKind::Unsupported.into());
        // What is dropped then is the old one.
        exchanged.map_err(|source| cannot(&self.target, "replace", source))
    }

    fn place(&self, rename: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<()> {
        let begun = begun();
        rename(&self.path, &self.target).map_err(|source| cannot(&self.target, "replace", source))?;
        drop(begun);
        // Not every file system can write a folder's entries on demand.
        let _ = File::open(folder_of(&self.target)).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Has everything written to the disk, so that a name never stands for less after a power cut.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn sync(&self) -> Result<()> {
        sync(&self.path, self.held.as_ref()).map_err(|source| cannot(&self.target, "write", source))
    }
}

fn sync(path: &Path, open: Option<&File>) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            sync(&entry?.path(), None)?;
        }
        return Ok(());
    }
    match open {
        Some(file) => file.sync_all(),
        None => File::open(path)?.sync_all(),
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut begun = begun();
        begun.retain(|path| *path != self.path);
        // After `finish` there is nothing left under this name. Otherwise an error is being reported already.
        remove(&self.path);
    }
}

fn folder_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// What the hidden names of `target` begin with: `.NAME.`, with as much of the name as leaves room for the rest.
fn hidden_prefix(target: &Path) -> Option<OsString> {
    const LONGEST: usize = 200;
    let name = target.file_name()?;
    let mut hidden = OsString::from(".");
    match name.len() <= LONGEST {
        true => hidden.push(name),
        false => {
            let name = name.to_string_lossy();
            hidden.push(&name[..name.floor_char_boundary(LONGEST)]);
        }
    }
    hidden.push(".");
    Some(hidden)
}

/// Removes what programs that were killed have left in `folder` under a name that begins with `prefix`.
fn remove_leftovers(folder: &Path, prefix: &OsString) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let rest = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let Some(number) = rest.and_then(|rest| rest.strip_suffix(b".partial")) else { continue };
        let is_ours = number.contains(&b'-') && number.iter().all(|&b| b.is_ascii_digit() || b == b'-');
        if !is_ours || entry.file_type().map_or(true, |kind| !kind.is_file() && !kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let Ok(left) = File::open(&path) else { continue };
        if left.try_lock().is_ok() {
            remove(&path);
        }
    }
}

fn cannot(path: &Path, action: &'static str, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_once_it_is_finished() {
        let room = tempfile::tempdir().unwrap();
        let target = room.path().join("a");
        for content in ["one", "two"] {
            let new = Unfinished::beside(&target).unwrap();
            fs::write(new.path(), content).unwrap();
            new.finish().unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), content);
            drop(Unfinished::beside(&target).unwrap());
            assert_eq!(names(room.path()), ["a"]);
        }
    }

    #[test]
    fn a_folder_takes_the_place_of_an_empty_one_or_of_another() {
        let room = tempfile::tempdir().unwrap();
        let target = room.path().join("a");
        fs::create_dir(&target).unwrap();
        let filled = |name: &str| {
            let new = Unfinished::folder(&target).unwrap();
            fs::write(new.path().join(name), "").unwrap();
            new
        };
        filled("x").finish().unwrap();
        assert_eq!(names(&target), ["x"]);
        assert!(filled("y").finish().is_err());
        assert_eq!(names(&target), ["x"]);
        if filled("z").replace_folder().is_ok() {
            assert_eq!(names(&target), ["z"]);
        }
        assert_eq!(names(room.path()), ["a"]);
    }

    #[test]
    fn what_a_killed_program_left_is_removed_and_nothing_else() {
        let room = tempfile::tempdir().unwrap();
        let target = room.path().join("a");
        let living = Unfinished::beside(&target).unwrap();
        for left in [".a.1-0.partial", ".b.1-0.partial", ".a.x-0.partial", ".a.1-0.partial.txt"] {
            fs::write(room.path().join(left), "").unwrap();
        }
        fs::create_dir(room.path().join(".a.7-3.partial")).unwrap();
        fs::write(room.path().join(".a.7-3.partial/inside"), "").unwrap();
        drop(Unfinished::beside(&target).unwrap());
        assert!(living.path().exists(), "somebody is writing it");
        drop(living);
        assert_eq!(names(room.path()), [".a.1-0.partial.txt", ".a.x-0.partial", ".b.1-0.partial"]);
    }

    #[test]
    fn the_longest_name_that_a_system_takes_can_be_written() {
        let room = tempfile::tempdir().unwrap();
        for (length, fits) in [(255, true), (256, false)] {
            for name in ["x".repeat(length), "\u{e4}".repeat(length / 2) + &"x".repeat(length % 2)] {
                let target = room.path().join(name);
                match Unfinished::beside(&target) {
                    Ok(new) => {
                        assert!(fits);
                        new.finish().unwrap();
                    }
                    Err(refused) => {
                        assert!(!fits);
                        assert!(refused.to_string().starts_with(&format!("{}: cannot write", target.display())));
                    }
                }
            }
        }
    }
}
