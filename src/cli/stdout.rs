//! Writing to stdout: for every command, what is refused there has the same words.

use std::io::{ErrorKind, IsTerminal, Write};

use dsv2::{Error, Result};
use dsv2_foreign::Text;

/// Whether a person reads stdout as it is written.
pub fn is_read_live() -> bool {
    std::io::stdout().is_terminal()
}

/// Writes to stdout now.
///
/// # Errors
/// If it cannot be written: the disk is full, or nobody reads any more ([`has_left`]).
pub fn say(text: &Text) -> Result<()> {
    write(text.as_str())
}

/// Writes to stdout what a command leaves to say, as whole lines; nothing, if that is all it leaves.
///
/// # Errors
/// If it cannot be written.
pub fn say_last(text: &Text) -> Result<()> {
    match text.as_str() {
        "" => Ok(()),
        text => write(&format!("{}\n", text.trim_end_matches('\n'))),
    }
}

fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(Error::io("stdout", "write"))
}

/// Whether nobody reads stdout any more (`dsv2 | head`), which is no fault.
pub fn has_left(error: &Error) -> bool {
    use dsv2_reference::Error::Io;
    matches!(error, Error::Reference(Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe)
}
