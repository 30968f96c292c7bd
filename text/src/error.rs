//! Errors. Each names the thing at fault, what was expected and what was found, in one line.

use std::fmt::Display;
use std::path::Path;

use dsv2_foreign::{Foreign, Words};

/// The result of everything here that can be refused.
pub type Result<V, E = Error> = std::result::Result<V, E>;

/// Why a file, a text or a setting was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there, or does not hold what it should.
    #[error(transparent)]
    File(#[from] dsv2_reference::Error),
    /// A tokenizer cannot be made of what describes it.
    #[error("tokenizer: expected {}, found {}", Words(expected), Words(found))]
    Tokenizer {
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A number is the id of no token.
    #[error("token {id}: expected an id of the tokenizer's {size} tokens")]
    Token {
        /// The number.
        id: i64,
        /// How many tokens there are.
        size: usize,
    },
    /// A chat template cannot be read, or goes on for too long, or there is none.
    #[error("chat template: {}", Words(what))]
    Template {
        /// What is wrong, and in which line if that is known.
        what: String,
    },
    /// A chat template refused the messages, by `raise_exception`.
    #[error("chat template: {}", Words(message))]
    Raised {
        /// What it says.
        message: String,
    },
    /// A message is none.
    #[error("message {number}: expected {expected}, found {}", Words(found))]
    Message {
        /// The how manyth it is, from 1 on.
        number: usize,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A setting of the generation is impossible or not supported.
    #[error("generation config: `{}`: expected {}, found {}", Foreign(field), Words(expected), Words(found))]
    Setting {
        /// The field, as it is called in generation_config.json.
        field: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// What a step was given is impossible.
    #[error("{what}: expected {}, found {}", Words(expected), Words(found))]
    Input {
        /// What it is: "logits", "sequence".
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl Error {
    /// An [`Error::Tokenizer`].
    pub(crate) fn tokenizer(expected: impl Into<String>, found: impl Display) -> Self {
        Error::Tokenizer { expected: expected.into(), found: found.to_string() }
    }

    /// An [`Error::Template`].
    pub(crate) fn template(what: impl Display) -> Self {
        Error::Template { what: what.to_string() }
    }

    /// An [`Error::Setting`].
    pub(crate) fn setting(field: impl Into<String>, expected: impl Into<String>, found: impl Display) -> Self {
        Error::Setting { field: field.into(), expected: expected.into(), found: found.to_string() }
    }

    /// An [`Error::Input`].
    pub(crate) fn input(what: &'static str, expected: impl Into<String>, found: impl Display) -> Self {
        Error::Input { what, expected: expected.into(), found: found.to_string() }
    }

    /// An [`Error::File`] about the content of a file.
    pub(crate) fn file(path: &Path, expected: impl Into<String>, found: impl ToString) -> Self {
        Error::File(dsv2_reference::Error::file(path, expected, found))
    }
}
