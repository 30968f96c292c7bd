//! `dsv2 verify`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use dsv2::backend::Precision;
use dsv2::verify::{Item, Plan, verify};
use dsv2::{Error, Result, golden, output, report};

use super::progress::Progress;
use super::{Attention, BackendName, Done, GoldenArgs, precision, styled};

/// The arguments of `dsv2 verify`.
#[derive(Args, Default)]
pub struct VerifyArgs {
    /// Only cases whose name matches, such as 'mask-*'
    #[arg(long = "case", value_name = "GLOB")]
    cases: Option<String>,
    /// Only this backend
    #[arg(long, value_enum)]
    backend: Option<BackendName>,
    /// Only this type: f64, f32 or bf16 [default: f64 and f32]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// Which form of attention
    #[arg(long, value_enum, default_value = "expanded")]
    attention: Attention,
    /// Write report.json, with every number, to this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    #[command(flatten)]
    golden: GoldenArgs,
}

pub fn run(args: &VerifyArgs) -> Result<Done> {
    let suite = args.golden.suite()?;
    let pattern = golden::pattern("--case", args.cases.as_deref().unwrap_or("*"))?;
    let cases: Vec<String> = suite.names().iter().filter(|name| pattern.matches(name)).cloned().collect();
    if cases.is_empty() {
        return Err(Error::request("--case", "a pattern that matches a golden case", format!("\"{pattern}\"")));
    }
    let plan = Plan {
        suite: &suite,
        cases,
        backends: vec![args.backend.unwrap_or(BackendName::Reference).backend()],
        precisions: args.dtype.map_or_else(|| vec![Precision::F64, Precision::F32], |dtype| vec![dtype]),
        attention: args.attention.into(),
    };

    args.report.as_deref().map(output::make_report_folder).transpose()?;
    let start = Instant::now();
    let mut progress = Progress::new(plan.cases.len() * plan.backends.len() * plan.precisions.len());
    let tell = |item: &Item| {
        let outcome = report::outcome(&item.outcome);
        progress.step(&format!("{} {} {}: {outcome}", item.case, item.backend, item.precision));
    };
    let items = verify(&plan, tell)?;
    drop(progress);
    if let Some(dir) = &args.report {
        output::write_report(dir, &report::verify_json(&items))?;
    }
    let mut parts = vec![report::verify_table(&items, styled())];
    let failures: Vec<String> = items.iter().filter_map(report::verify_failure).collect();
    if !failures.is_empty() {
        parts.push(failures.join("\n"));
    }
    parts.push(report::totals(&items, start.elapsed()));
    Ok(Done { output: parts.join("\n\n"), conforms: !items.iter().any(|item| item.outcome.fails()) })
}
