//! The command line of `dsv2`. Exit status: 0 all right; 1 what was examined does not conform; 2 the request or a file
//! is at fault, which one line on stderr says.

mod cli;
mod threads;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use dsv2_reference::file::ending;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) if !refused.use_stderr() => {
            return print(&refused.to_string(), ExitCode::SUCCESS);
        }
        Err(refused) => {
            // clap explains at length, after a blank line
            let text = refused.to_string();
            let first = text.split("\n\n").next().unwrap_or(&text);
            return refuse(first.trim_start_matches("error: "));
        }
    };
    // Without a thread to wait for signals, they end the program as they always do.
    let _ = ending::watch(|line| {
        refuse(line);
    });
    if let Err(refused) = threads::make() {
        return refuse(&refused.to_string());
    }
    match cli.run() {
        Ok(cli::Done { output, conforms }) => {
            print(&output, if conforms { ExitCode::SUCCESS } else { ExitCode::from(1) })
        }
        Err(error) => refuse(&error.to_string()),
    }
}

/// Says in one line why not.
fn refuse(message: &str) -> ExitCode {
    let words: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let _ = writeln!(std::io::stderr(), "dsv2: {}", dsv2::one_line(&words.join(" ")));
    ExitCode::from(2)
}

/// Prints to stdout and ends with `status`. A reader who has read enough (`dsv2 | head`) is no fault; a full disk is.
fn print(text: &str, status: ExitCode) -> ExitCode {
    match writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n')) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => refuse(&format!("cannot write to stdout: {error}")),
        _ => status,
    }
}
