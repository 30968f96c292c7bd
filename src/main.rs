//! The command line of `dsv2`. Exit status: 0 all right; 1 what was examined does not conform; 2 the request or a file
//! is at fault, which one line on stderr says.

mod cli;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) if !refused.use_stderr() => {
            print(&refused.to_string());
            return ExitCode::SUCCESS;
        }
        Err(refused) => {
            // clap explains at length, after a blank line
            let text = refused.to_string();
            let first = text.split("\n\n").next().unwrap_or(&text);
            return refuse(first.trim_start_matches("error: "));
        }
    };
    match cli.run() {
        Ok(cli::Done { output, conforms }) => {
            print(&output);
            if conforms { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(message: &str) -> ExitCode {
    let words: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let _ = writeln!(std::io::stderr(), "dsv2: {}", words.join(" "));
    ExitCode::from(2)
}

/// Prints to stdout. A reader who has read enough (`dsv2 | head`) is no fault.
fn print(text: &str) {
    match writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n')) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let _ = writeln!(std::io::stderr(), "dsv2: cannot write to stdout: {error}");
        }
        _ => {}
    }
}
