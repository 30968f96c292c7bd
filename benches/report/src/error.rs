use std::path::Path;

use dsv2_foreign::{Foreign, Words};

/// What can go wrong with a file of results.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written, or is not one of results.
    #[error(transparent)]
    File(#[from] dsv2_reference::Error),
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

impl Error {
    /// The operating system refused to `action` a file; for `map_err`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| dsv2_reference::Error::Io { path: path.to_owned(), action, source }.into()
    }
}
