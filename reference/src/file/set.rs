//! Files that belong together, as those of a report: all of a set are there, or all of the one before.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use super::unfinished::{Unfinished, undisturbed};
use crate::{Error, Result};

/// Whether [`replace`] may write to the folder `dir`: something is made there, or where it would be made, and removed.
///
/// # Errors
/// If it may not.
pub fn check(dir: &Path) -> Result<()> {
    let probe = |place: &Path| match Unfinished::folder(place) {
        Ok(_) => Ok(()),
        // what is said of the place is meant of the folder
        Err(Error::Io { action, source, .. }) => Err(Error::Io { path: dir.to_owned(), action, source }),
        Err(other) => Err(other),
    };
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => return probe(&dir.join("report")),
        Ok(_) => return Err(Error::file(dir, "a folder to write to", "something else")),
        Err(refused) if refused.kind() == ErrorKind::NotFound => {}
        // A path that is too long as a whole, a file in the place of a folder, links that lead to themselves
        Err(refused) => return Err(cannot(dir, "write")(refused)),
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
/// file of this set beside one of that. A name may be that of a file in a folder, `plots/a.svg`, which then belongs to the set
/// as a whole: it may hold no other kind of file.
///
/// A folder that is new, or holds nothing but such a set, is put there as a whole. Where it holds other things, or cannot be
/// renamed (it is mounted, or it is where the program runs), the old files are moved away before the new ones get their names.
///
/// # Errors
/// If a file cannot be written. A set that was there before stays as it was.
pub fn replace(dir: &Path, files: &[(&str, String)]) -> Result<()> {
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
        fs::create_dir_all(parent).map_err(cannot(dir, "create"))?;
        return filled(dir, dir, files)?.finish();
    }
    let names = names(files);
    names.iter().try_for_each(|name| check_folder_of_set(&dir.join(name), name, files))?;
    let mut entries = fs::read_dir(dir).map_err(cannot(dir, "read"))?.flatten();
    let ours_alone = entries.all(|entry| names.iter().any(|name| *name == entry.file_name()));
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
    let old = new.path().join(".old");
    fs::create_dir(&old).map_err(cannot(dir, "write"))?;
    let aside = names.iter().map(|name| (dir.join(name), old.join(name)));
    let aside = aside.filter(|(from, _)| fs::symlink_metadata(from).is_ok());
    let into = names.iter().map(|name| (new.path().join(name), dir.join(name)));
    undisturbed(|| rename_all(&aside.chain(into).collect::<Vec<_>>(), dir))
}

/// Renames all of them, or none.
fn rename_all(renames: &[(PathBuf, PathBuf)], dir: &Path) -> Result<()> {
    for (done, (from, to)) in renames.iter().enumerate() {
        if let Err(refused) = fs::rename(from, to) {
            renames[..done].iter().rev().for_each(|(from, to)| drop(fs::rename(to, from)));
            let shown = if from.parent() == Some(dir) { from } else { to };
            return Err(cannot(shown, "replace")(refused));
        }
    }
    Ok(())
}

/// The first part of each name, once.
fn names<'a>(files: &[(&'a str, String)]) -> Vec<&'a OsStr> {
    let mut names: Vec<&OsStr> = Vec::new();
    for file in files.iter().map(|(file, _)| *file) {
        if let Some(Component::Normal(name)) = Path::new(file).components().next()
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// A folder that is replaced as a whole holds nothing but files of the kinds that the set has in it.
fn check_folder_of_set(folder: &Path, name: &OsStr, files: &[(&str, String)]) -> Result<()> {
    let inside = files.iter().map(|(file, _)| Path::new(file)).filter(|file| file.starts_with(name) && *file != name);
    let kinds: Vec<Option<&OsStr>> = inside.map(Path::extension).collect();
    if kinds.is_empty() || !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(cannot(folder, "read"))?.flatten() {
        let path = entry.path();
        if !kinds.contains(&path.extension()) || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let kind = kinds[0].unwrap_or_default().display();
            let expected = format!("a folder of .{kind} files alone, which is replaced");
            return Err(Error::file(folder, expected, format!("`{}`", entry.file_name().display())));
        }
    }
    Ok(())
}

/// A folder that holds `files`, hidden beside `place`; messages speak of files in `shown`.
fn filled(place: &Path, shown: &Path, files: &[(&str, String)]) -> Result<Unfinished> {
    let new = Unfinished::folder(place)?;
    for (name, content) in files {
        let file = new.path().join(name);
        let made = match file.parent().map(fs::create_dir) {
            Some(Err(refused)) if refused.kind() != ErrorKind::AlreadyExists => Err(refused),
            _ => Ok(()),
        };
        made.and_then(|()| fs::write(&file, content)).map_err(cannot(&shown.join(name), "write"))?;
    }
    Ok(new)
}

/// The folders that would have to be made for `dir`, the innermost first.
fn missing(dir: &Path) -> Vec<PathBuf> {
    let above = dir.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    above.map(Path::to_owned).collect()
}

fn cannot(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, action, source }
}

#[cfg(test)]
mod tests;
