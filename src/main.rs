//! The command line of `dsv2`. Exit status: 0 all right; 1 what was examined does not conform; 2 the request or a file
//! is at fault, which one line on stderr says.

mod no_memory;
mod threads;

use std::io::Write;
use std::process::ExitCode;

use dsv2::cli::{self, Ended};
use dsv2::foreign::Text;
use dsv2_reference::file::ending;

fn main() -> ExitCode {
    // Without a thread to wait for signals, they end the program as they always do.
    let _ = ending::watch(|line| {
        refuse(&Text::message(line), 2);
    });
    if let Err(refused) = threads::make() {
        return refuse(&Text::message(&refused.to_string()), 2);
    }
    match cli::run(std::env::args_os()) {
        Ended { output: Ok(text), status } => print(&text, status),
        Ended { output: Err(line), status } => refuse(&line, status),
    }
}

/// Says in one line why not.
fn refuse(line: &Text, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "dsv2: {line}");
    ExitCode::from(status)
}

/// Prints to stdout and ends with `status`. A reader who has read enough is no fault; a full disk is.
fn print(text: &Text, status: u8) -> ExitCode {
    match cli::say_last(text) {
        Err(error) if !cli::has_left(&error) => refuse(&Text::message(&error.to_string()), 2),
        _ => ExitCode::from(status),
    }
}
