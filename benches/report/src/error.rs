use std::path::PathBuf;

use dsv2_foreign::{Foreign, Place, Words};

/// What can go wrong with a file of results.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {}", Place(path), Words(source))]
    Io {
        /// Which file.
        path: PathBuf,
        /// Its words.
        source: std::io::Error,
    },
    /// The file is not one of results.
    #[error("{}: expected {}, found {}", Place(path), Words(expected), Words(found))]
    Format {
        /// Which file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A plot could not be drawn.
    #[error("plot \"{}\": {}", Foreign(title), Words(message))]
    Plot {
        /// Which one.
        title: String,
        /// Why.
        message: String,
    },
}

/// With this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the file that an error of the operating system is about.
pub(crate) fn at(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.to_owned(), source }
}
