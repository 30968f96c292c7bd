//! Where golden cases lie: in the program itself, or in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use tempfile::TempDir;

use super::GoldenCase;
use crate::error::{Error, Result};

/// The cases that the published package leaves out, because they are large (`include` in Cargo.toml).
const NOT_PACKAGED: [&str; 2] = ["trained-tiny-greedy", "trained-tiny-grouped"];

static CASES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/golden/cases");

/// A set of golden cases.
#[derive(Clone, Debug)]
pub struct GoldenCases {
    root: Option<PathBuf>,
    names: Vec<String>,
}

impl GoldenCases {
    /// The cases that are part of the program.
    pub fn embedded() -> Self {
        let name = |dir: &Dir<'_>| dir.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let mut names: Vec<String> = CASES.dirs().filter_map(name).collect();
        names.sort();
        GoldenCases { root: None, names }
    }

    /// The cases in a folder: each of its folders that holds a case.json.
    ///
    /// # Errors
    /// If the folder cannot be read or has no case in it.
    pub fn at(root: &Path) -> Result<Self> {
        let mut names = Vec::new();
        for entry in fs::read_dir(root).map_err(Error::io(root, "read"))? {
            let entry = entry.map_err(Error::io(root, "read"))?;
            if entry.path().join("case.json").is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        if names.is_empty() {
            return Err(Error::file(root, "folders with a case.json", "none"));
        }
        names.sort();
        Ok(GoldenCases { root: Some(root.to_owned()), names })
    }

    /// The names of all cases, in the order of the alphabet.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Loads a case.
    ///
    /// # Errors
    /// If there is no such case, or it is at fault.
    pub fn load(&self, name: &str) -> Result<GoldenCase> {
        if !self.names.iter().any(|other| other == name) {
            let expected = match NOT_PACKAGED.contains(&name) {
                true => {
                    "a golden case of this build (the published package lacks this one; the repository has it: --golden golden/cases)"
                }
                false => "the name of a golden case",
            };
            return Err(Error::request("CASE", expected, format!("{name:?}")));
        }
        let folder = match &self.root {
            Some(root) => Folder::Disk { name: name.to_owned(), path: root.join(name) },
            None => Folder::Embedded { name: name.to_owned() },
        };
        GoldenCase::load(folder).map_err(|error| error.in_case(name))
    }
}

/// The folder of one case.
#[derive(Clone, Debug)]
pub enum Folder {
    /// In the program.
    Embedded {
        /// The name of the case.
        name: String,
    },
    /// On disk.
    Disk {
        /// The name of the case.
        name: String,
        /// The folder.
        path: PathBuf,
    },
}

impl Folder {
    /// The name of the case.
    pub fn name(&self) -> &str {
        match self {
            Folder::Embedded { name } | Folder::Disk { name, .. } => name,
        }
    }

    /// What messages call a file in it.
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Folder::Embedded { .. } => PathBuf::from(file),
            Folder::Disk { path, .. } => path.join(file),
        }
    }

    /// The content of a file in it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, file: &str) -> Result<Vec<u8>> {
        match self {
            Folder::Disk { path, .. } => Ok(dsv2_reference::file::read(&path.join(file))?),
            Folder::Embedded { name } => {
                let found = CASES.get_file(format!("{name}/{file}"));
                let found = found.ok_or_else(|| Error::file(file, "a file of the case", "no such file"))?;
                Ok(found.contents().to_vec())
            }
        }
    }

    /// A folder in it, as one on disk; it is there as long as the second value.
    ///
    /// # Errors
    /// If there is none, or it cannot be unpacked.
    pub fn on_disk(&self, folder: &str) -> Result<(PathBuf, Option<TempDir>)> {
        match self {
            Folder::Disk { path, .. } => Ok((path.join(folder), None)),
            Folder::Embedded { name } => {
                let temporary = tempfile::tempdir().map_err(Error::io("a temporary folder", "create"))?;
                self.copy(&format!("{name}/{folder}"), temporary.path())?;
                Ok((temporary.path().to_owned(), Some(temporary)))
            }
        }
    }

    /// Writes the files of an embedded folder into `to`.
    fn copy(&self, from: &str, to: &Path) -> Result<()> {
        let dir = CASES.get_dir(from).ok_or_else(|| Error::file(from, "a folder of the case", "no such folder"))?;
        for file in dir.files() {
            let target = to.join(file.path().file_name().unwrap_or_default());
            fs::write(&target, file.contents()).map_err(Error::io(&target, "write"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_case_loads() {
        let golden = GoldenCases::embedded();
        assert!(golden.names().len() > 30);
        for name in golden.names() {
            let case = golden.load(name).unwrap();
            assert_eq!(case.name(), name);
        }
    }

    /// `include` in Cargo.toml leaves out what the message names, and nothing else.
    #[test]
    fn a_case_that_the_package_lacks_is_said_to_be_in_the_repository() {
        let manifest: toml::Table = include_str!("../../Cargo.toml").parse().unwrap();
        let include = manifest["package"]["include"].as_array().unwrap();
        let left_out: Vec<glob::Pattern> = include
            .iter()
            .filter_map(|pattern| pattern.as_str().unwrap().strip_prefix("!/golden/cases/"))
            .map(|pattern| glob::Pattern::new(pattern).unwrap())
            .collect();
        let golden = GoldenCases::embedded();
        let absent: Vec<&String> =
            golden.names.iter().filter(|name| left_out.iter().any(|p| p.matches(name))).collect();
        assert_eq!(absent, NOT_PACKAGED);

        let packaged = GoldenCases { root: None, names: vec!["v2".into()] };
        let refused = packaged.load("trained-tiny-greedy").err().unwrap().to_string();
        assert!(refused.contains("the repository has it"), "{refused}");
    }

    #[test]
    fn unknown_cases_and_empty_folders_are_refused() {
        let refused = GoldenCases::embedded().load("nope").err().unwrap().to_string();
        assert_eq!(refused, "CASE: expected the name of a golden case, found \"nope\"");
        let room = tempfile::tempdir().unwrap();
        assert!(
            GoldenCases::at(room.path())
                .unwrap_err()
                .to_string()
                .ends_with("expected folders with a case.json, found none")
        );
        assert!(GoldenCases::at(&room.path().join("nowhere")).is_err());
    }
}
