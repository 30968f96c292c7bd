//! The command line of `dsv2`, without a process.

use dsv2::cli::{self, Ended};
use pyo3::prelude::*;

use crate::device::wait;
use crate::errors::{RequestError, internal};

/// Does what `dsv2 ARGS` does. What it would print, and its exit status: 0 it is all right, 1 it is not.
///
/// Raises RequestError with the line that `dsv2` would have said, where its status would be 2. Ctrl-C returns at once;
/// what was begun is ended in the background.
#[pyfunction]
pub fn command(py: Python<'_>, args: Vec<String>) -> PyResult<(String, u8)> {
    let words = std::iter::once("dsv2".to_owned()).chain(args);
    let words: Vec<String> = words.collect();
    let (send, mut receive) = std::sync::mpsc::channel();
    let work = std::thread::Builder::new().name("dsv2".into()).stack_size(16 << 20).spawn(move || {
        // Nobody listens any more after Ctrl-C.
        let _ = send.send(cli::run(words));
    })?;
    let Ended { output, status } = match wait(py, &mut receive)? {
        Some(ended) => ended,
        None => return Err(work.join().err().map_or_else(|| internal(&"no answer"), |panic| internal(&*panic))),
    };
    output.map(|text| (text.as_str().to_owned(), status)).map_err(|line| RequestError::new_err(line.to_string()))
}
