//! Errors. Each names the thing at fault, what was expected and what was found, in one line.

use std::fmt::Display;
use std::path::PathBuf;

pub(crate) use dsv2_foreign::one_line;
use dsv2_foreign::{Foreign, Place, Words};

/// The result of everything here that can be refused.
pub type Result<V, E = Error> = std::result::Result<V, E>;

/// Why a configuration, a checkpoint or an input was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of config.json is impossible, or contradicts another one.
    #[error("config: {}: expected {}, found {}", Foreign(field), Words(expected), Words(found))]
    Config {
        /// The field, as it is called in config.json.
        field: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A weight is missing, extra, of the wrong shape or type, or not finite.
    #[error("weight `{}`: expected {}, found {}", Foreign(name), Words(expected), Words(found))]
    Weight {
        /// The tensor, as it is called in the checkpoint.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An input of the forward pass is impossible.
    #[error("input `{}`: expected {}, found {}", Foreign(name), Words(expected), Words(found))]
    Input {
        /// The input, by the name of Hugging Face's argument.
        name: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A file's content is not what its format promises.
    #[error("{}: expected {}, found {}", Place(path), Words(expected), Words(found))]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A file cannot be read or written.
    #[error("{}: cannot {action}: {}", Place(path), Words(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted: "read", "write", ...
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// A [`Error::Config`]. What was found may be any text of a file: it is made one line, and cut off if it is long.
    pub fn config(field: impl Into<String>, expected: impl Into<String>, found: impl Display) -> Self {
        Error::Config { field: field.into(), expected: expected.into(), found: one_line(&found) }
    }
    /// A [`Error::Weight`].
    pub fn weight(name: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Error::Weight { name: name.into(), expected: expected.into(), found: found.to_string() }
    }
    /// A [`Error::Input`].
    pub fn input(name: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Error::Input { name: name.into(), expected: expected.into(), found: found.to_string() }
    }
    /// A [`Error::File`].
    pub fn file(path: impl Into<PathBuf>, expected: impl Into<String>, found: impl ToString) -> Self {
        Error::File { path: path.into(), expected: expected.into(), found: found.to_string() }
    }
}
