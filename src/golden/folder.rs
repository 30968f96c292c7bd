//! Where golden cases lie: in the program itself, or in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::{GoldenCase, Outline};
use crate::error::{Error, Result};
use crate::values::{self, Values};
use dsv2_reference::file::{self, unfinished::Unfinished};
use include_dir::{Dir, include_dir};

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
            // Whatever it is: what is no file is refused by name when it is read.
            if fs::symlink_metadata(entry.path().join("case.json")).is_ok() {
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
        GoldenCase::load(self.folder(name)?).map_err(|error| error.in_case(name))
    }

    /// What a case is to run, before anything large of it is read.
    ///
    /// # Errors
    /// As [`GoldenCases::load`].
    pub fn outline(&self, name: &str) -> Result<Outline> {
        Outline::read(&self.folder(name)?).map_err(|error| error.in_case(name))
    }

    fn folder(&self, name: &str) -> Result<Folder> {
        if !self.names.iter().any(|other| other == name) {
            let expected = match NOT_PACKAGED.contains(&name) {
                true => {
                    "a golden case of this build (the published package lacks this one; the repository has it: --golden golden/cases)"
                }
                false => "the name of a golden case",
            };
            return Err(Error::request("CASE", expected, format!("{name:?}")));
        }
        Ok(match &self.root {
            Some(root) => Folder::Disk { name: name.to_owned(), path: root.join(name) },
            None => Folder::Embedded { name: name.to_owned() },
        })
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

    /// The content of its case.json.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn case_json(&self) -> Result<Vec<u8>> {
        match self {
            Folder::Disk { .. } => Ok(file::read(&self.path("case.json"), file::CONFIG)?),
            Folder::Embedded { name } => Ok(embedded(name, "case.json")?.to_vec()),
        }
    }

    /// The tensors of a file in it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn tensors(&self, file: &str) -> Result<Vec<(String, Values)>> {
        match self {
            Folder::Disk { .. } => values::read(&self.path(file)),
            Folder::Embedded { name } => values::parse(&self.path(file), embedded(name, file)?.to_vec()),
        }
    }

    /// The config.json of a checkpoint in it.
    ///
    /// # Errors
    /// If it cannot be read, or is no JSON.
    pub fn config_of(&self, checkpoint: &str) -> Result<serde_json::Value> {
        let file = format!("{checkpoint}/config.json");
        let (path, bytes) = match self {
            Folder::Disk { .. } => {
                let path = self.on_disk(checkpoint)?.0.join("config.json");
                (path.clone(), file::read(&path, file::CONFIG)?)
            }
            Folder::Embedded { name } => (self.path(&file), embedded(name, &file)?.to_vec()),
        };
        serde_json::from_slice(&bytes).map_err(|error| Error::file(path, "a JSON object", error))
    }

    /// Copies a file in it to the new file `to`.
    ///
    /// # Errors
    /// If it cannot be read, or the other not be written.
    pub fn copy(&self, file: &str, to: &Path) -> Result<()> {
        match self {
            Folder::Disk { .. } => Ok(file::copy(&self.path(file), to, to)?),
            Folder::Embedded { name } => fs::write(to, embedded(name, file)?).map_err(Error::io(to, "write")),
        }
    }

    /// A folder in it, as one on disk; it is there as long as the second value.
    ///
    /// # Errors
    /// If there is none, it or a file in it is a link that leads out of the case, or it cannot be unpacked.
    pub fn on_disk(&self, folder: &str) -> Result<(PathBuf, Option<Unfinished>)> {
        match self {
            Folder::Disk { path, .. } => {
                let inside = path.join(folder);
                stays_in(path, &inside)?;
                for entry in fs::read_dir(&inside).map_err(Error::io(&inside, "read"))? {
                    stays_in(path, &entry.map_err(Error::io(&inside, "read"))?.path())?;
                }
                Ok((inside, None))
            }
            Folder::Embedded { name } => {
                let temporary = Unfinished::scratch()?;
                unpack(&format!("{name}/{folder}"), temporary.path())?;
                Ok((temporary.path().to_owned(), Some(temporary)))
            }
        }
    }
}

/// A case must not make us read, or copy, files elsewhere.
fn stays_in(case: &Path, inside: &Path) -> Result<()> {
    let [case, leads_to] = [case, inside].map(|path| fs::canonicalize(path).map_err(Error::io(path, "read")));
    match leads_to? {
        path if path.starts_with(case?) => Ok(()),
        path => {
            Err(Error::file(inside, "what lies in the folder of the case", format!("a link to {}", path.display())))
        }
    }
}

/// The content of a file of an embedded case.
fn embedded(name: &str, file: &str) -> Result<&'static [u8]> {
    let found = CASES.get_file(format!("{name}/{file}"));
    Ok(found.ok_or_else(|| Error::file(file, "a file of the case", "no such file"))?.contents())
}

/// Writes the files of an embedded folder into `to`.
fn unpack(from: &str, to: &Path) -> Result<()> {
    let dir = CASES.get_dir(from).ok_or_else(|| Error::file(from, "a folder of the case", "no such folder"))?;
    for file in dir.files() {
        let target = to.join(file.path().file_name().unwrap_or_default());
        fs::write(&target, file.contents()).map_err(Error::io(&target, "write"))?;
    }
    Ok(())
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
