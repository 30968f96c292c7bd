//! What the fuzz targets share: an allocator that counts, what is asked of every reader, and a small model to read
//! into.

pub mod files;
pub mod memory;
pub mod model;

/// What is asked of a message: one line that a terminal may print, and no copy of the file.
///
/// # Panics
/// If it is not.
pub fn check_message(error: &impl std::fmt::Display) {
    let line = error.to_string();
    check_line(&line);
    assert!(line.chars().count() < 1500, "a message of {} characters: {line}", line.chars().count());
}

/// What is asked of anything that is said of a file: no control character reaches the terminal.
///
/// # Panics
/// If one would.
pub fn check_line(line: &str) {
    assert!(!line.is_empty() && !line.chars().any(char::is_control), "no single line: {line:?}");
}
