//! Errors. Each names the thing at fault, what was expected and what was found, in one line.

use std::fmt::Display;
use std::path::PathBuf;

/// The result of everything here that can be refused.
pub type Result<V, E = Error> = std::result::Result<V, E>;

/// Why a configuration, a checkpoint or an input was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of config.json is impossible, or contradicts another one.
    #[error("config: {field}: expected {expected}, found {found}")]
    Config {
        /// The field, as it is called in config.json.
        field: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A weight is missing, extra, of the wrong shape or type, or not finite.
    #[error("weight `{name}`: expected {expected}, found {found}")]
    Weight {
        /// The tensor, as it is called in the checkpoint.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An input of the forward pass is impossible.
    #[error("input `{name}`: expected {expected}, found {found}")]
    Input {
        /// The input, by the name of Hugging Face's argument.
        name: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A file's content is not what its format promises.
    #[error("{}: expected {expected}, found {found}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A file cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
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

/// `text` fit for a one-line message: control characters (a file can put them into a name) escaped, the end cut off
/// if it is longer than any sensible name.
pub(crate) fn one_line(text: &(impl Display + ?Sized)) -> String {
    const LONGEST: usize = 300;
    let (mut line, mut length) = (String::new(), 0);
    for c in text.to_string().chars() {
        let shown = if c.is_control() { c.escape_default().to_string() } else { c.into() };
        length += shown.chars().count();
        if length > LONGEST {
            return line + "...";
        }
        line += &shown;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_made_one_line_of_a_sensible_length() {
        assert_eq!(one_line("a\n\u{7f}\u{e4}"), "a\\n\\u{7f}\u{e4}");
        assert_eq!(one_line(&"x".repeat(300)), "x".repeat(300));
        assert_eq!(one_line(&"x".repeat(301)), "x".repeat(300) + "...");
        // A fuzzer found that escapes made the line six times as long.
        assert_eq!(one_line(&"\u{7f}".repeat(200)), "\\u{7f}".repeat(50) + "...");
    }
}
