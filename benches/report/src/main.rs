//! `dsv2-bench-report`: makes a report of files of results, or compares two of them. Exit status: 0 all right;
//! 1 something has become worse by more than chance; 2 the request or a file is at fault, which one line on stderr says.

mod changes;
#[path = "../../../src/no_memory.rs"]
mod no_memory;

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dsv2_bench_report::compare::{Change, compare};
use dsv2_bench_report::{Result, Results, report};
use dsv2_foreign::{Place, Text};
use dsv2_reference::file::{ending, set};

/// The report of what benchmarks measured, and the gate between two runs
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make REPORT.md, with plots, of what benchmarks measured
    Report {
        /// Files of results: of `cargo bench`, of the peers' run.py
        #[arg(required = true, value_name = "FILE")]
        results: Vec<PathBuf>,
        /// The folder for REPORT.md, REPORT.json and report-plots/
        #[arg(long, value_name = "DIR", default_value = "target/bench")]
        output: PathBuf,
    },
    /// Compare two files of results; status 1 if something has become worse by more than chance
    Compare {
        /// The older results
        old: PathBuf,
        /// The newer results
        new: PathBuf,
        /// Show every measurement, not only those that changed
        #[arg(long)]
        all: bool,
    },
}

fn main() -> ExitCode {
    // Without a thread to wait for signals, they end the program as they always do.
    let _ = ending::watch(|line| {
        refuse(line);
    });
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) if !refused.use_stderr() => return print(&Text::lines(&refused.to_string()), ExitCode::SUCCESS),
        Err(refused) => {
            // clap explains at length, after a blank line
            let text = refused.to_string();
            let first = text.split("\n\n").next().unwrap_or(&text);
            return refuse(first.trim_start_matches("error: "));
        }
    };
    let done = match cli.command {
        Command::Report { results, output } => {
            write_report(&results, &output).map(|report| (Text::lines(&Place(&report).to_string()), ExitCode::SUCCESS))
        }
        Command::Compare { old, new, all } => compare_files(&old, &new).map(|changes| {
            let worse = changes.iter().any(Change::is_regression);
            let text = changes::text(&changes, all, styled());
            let text = if styled() { Text::coloured(&text) } else { Text::lines(&text) };
            (text, if worse { ExitCode::from(1) } else { ExitCode::SUCCESS })
        }),
    };
    match done {
        Ok((text, status)) => print(&text, status),
        Err(error) => refuse(&error.to_string()),
    }
}

/// One report of all files. Returns where it is.
fn write_report(files: &[PathBuf], output: &Path) -> Result<PathBuf> {
    set::check(output)?;
    let mut runs = Vec::new();
    for path in files {
        runs.extend(Results::read(path)?.runs);
    }
    report::write(&Results::new(runs), output)?;
    Ok(output.join("REPORT.md"))
}

fn compare_files(old: &Path, new: &Path) -> Result<Vec<Change>> {
    let changes = compare(&Results::read(old)?, &Results::read(new)?);
    if changes.iter().all(|change| change.ratio().is_none()) {
        let expected = format!("a measurement that {} has as well", Place(old));
        return Err(dsv2_reference::Error::file(new, expected, "none").into());
    }
    Ok(changes)
}

/// Whether stdout is a terminal that wants colour.
fn styled() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Says in one line why not.
fn refuse(message: &str) -> ExitCode {
    let line = Text::message(message);
    let _ = writeln!(std::io::stderr(), "dsv2-bench-report: {line}");
    ExitCode::from(2)
}

/// Prints to stdout and ends with `status`. A reader who has read enough (`| head`) is no fault; a full disk is.
fn print(text: &Text, status: ExitCode) -> ExitCode {
    match writeln!(std::io::stdout(), "{}", text.as_str().trim_end_matches('\n')) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => refuse(&format!("stdout: cannot write: {error}")),
        _ => status,
    }
}
