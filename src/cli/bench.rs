//! `dsv2 bench-report` and `dsv2 bench-compare`.

use std::path::PathBuf;

use clap::Args;
use dsv2::report::changes_text;
use dsv2::{Error, Result};
use dsv2_bench_report::compare::{Change, compare};
use dsv2_bench_report::{Results, report};

use super::{Done, styled};

#[derive(Args)]
pub struct BenchReportArgs {
    /// Files of results: of `cargo bench`, of peers/measure.py
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// The folder for REPORT.md, REPORT.json and report-plots/
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
}

#[derive(Args)]
pub struct BenchCompareArgs {
    /// The older results
    old: PathBuf,
    /// The newer results
    new: PathBuf,
    /// Show every measurement, not only those that changed
    #[arg(long)]
    all: bool,
}

pub fn report(args: &BenchReportArgs) -> Result<Done> {
    let mut runs = Vec::new();
    for path in &args.results {
        runs.extend(Results::read(path)?.runs);
    }
    report::write(&Results::new(runs), &args.output)?;
    Ok(Done { output: args.output.join("REPORT.md").display().to_string(), conforms: true })
}

pub fn compare_files(args: &BenchCompareArgs) -> Result<Done> {
    let changes = compare(&Results::read(&args.old)?, &Results::read(&args.new)?);
    if changes.iter().all(|change| change.ratio().is_none()) {
        let expected = format!("a measurement that {} has as well", args.old.display());
        return Err(Error::file(&args.new, expected, "none"));
    }
    let conforms = !changes.iter().any(Change::is_regression);
    Ok(Done { output: changes_text(&changes, args.all, styled()), conforms })
}
