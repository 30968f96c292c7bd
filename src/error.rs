//! Why a request was refused. Each error is one line: what, where, expected, found.

use std::path::{Path, PathBuf};

pub use dsv2_foreign::one_line;
use dsv2_foreign::{Foreign, Words};

/// The result of everything here that can be refused.
pub type Result<V, E = Error> = std::result::Result<V, E>;

/// A request or an input file at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model, its checkpoint or its inputs.
    #[error(transparent)]
    Reference(#[from] dsv2_reference::Error),
    /// The CUDA model: a device, a kernel, or an operand that does not fit.
    #[error(transparent)]
    Device(#[from] dsv2_optimized::Error),
    /// An operator, a workload, or a tensor of one.
    #[error(transparent)]
    Operator(#[from] dsv2_operators::Error),
    /// A tokenizer, a template, or a rule by which text is made.
    #[error(transparent)]
    Text(#[from] dsv2_text::Error),
    /// A golden case at fault.
    #[error("golden case `{}`: {source}", Foreign(case))]
    Case {
        /// The case.
        case: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A command that is another program's now.
    #[error("{command} is another program now: `{now}`")]
    Moved {
        /// The command.
        command: &'static str,
        /// What to run in its place.
        now: &'static str,
    },
    /// An option of a request that cannot be met.
    #[error("{}: expected {}, found {}", Foreign(option), Words(expected), Words(found))]
    Request {
        /// The option, as it is called on the command line.
        option: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl Error {
    /// A [`Error::Request`].
    pub fn request(option: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Error::Request { option: option.into(), expected: expected.into(), found: found.to_string() }
    }

    /// A file whose content is not what its format promises.
    pub fn file(path: impl Into<PathBuf>, expected: impl Into<String>, found: impl ToString) -> Self {
        dsv2_reference::Error::file(path, expected, found).into()
    }

    /// An input of the forward pass that is impossible.
    pub fn input(name: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        dsv2_reference::Error::input(name, expected, found).into()
    }

    /// A file that cannot be read or written; for `map_err`.
    pub fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| dsv2_reference::Error::Io { path, action, source }.into()
    }

    /// The same error, said of what lies in the folder `to` and not in `from`.
    #[must_use]
    pub fn moved(self, from: &Path, to: &Path) -> Self {
        use dsv2_reference::Error::{File, Io};
        let there = |path: PathBuf| match path.strip_prefix(from) {
            Ok(inside) if inside.as_os_str().is_empty() => to.to_owned(),
            Ok(inside) => to.join(inside),
            Err(_) => path,
        };
        match self {
            Error::Reference(File { path, expected, found }) => Error::file(there(path), expected, found),
            Error::Reference(Io { path, action, source }) => Error::io(there(path), action)(source),
            Error::Case { case, source } => source.moved(from, to).in_case(&case),
            other => other,
        }
    }

    /// The same error, said of a golden case.
    pub fn in_case(self, case: &str) -> Self {
        Error::Case { case: case.to_owned(), source: Box::new(self) }
    }
}
