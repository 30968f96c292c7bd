//! `dsv2 mutants`.

use std::time::Instant;

use clap::Args;
use dsv2::backend::Precision;
use dsv2::memory::{self, Size};
use dsv2::mutants::benign::benign;
use dsv2::mutants::catalogue;
use dsv2::score::{Finding, Outcome, Score, Subjects, Trials, dumps, need, report, run as run_trials};
use dsv2::{Error, Result, golden};
use dsv2_foreign::Text;

use super::progress::Progress;
use super::{Done, GoldenArgs, for_people, precision, styled};

/// The arguments of `dsv2 mutants`.
#[derive(Args)]
pub struct MutantsArgs {
    /// Only cases whose name matches, such as 'v2*'
    #[arg(long = "case", value_name = "GLOB")]
    cases: Option<String>,
    /// Only known bugs and correct variants whose name matches, such as 'group_*'
    #[arg(long = "mutant", value_name = "GLOB")]
    mutants: Option<String>,
    /// Only this type [default: f32 and bf16]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// Kinds of dump, with commas between them: all (every stage), logits, last-token, hidden-states, hooks; or each
    #[arg(long = "dump", value_name = "KIND", value_delimiter = ',', default_value = "all")]
    dumps: Vec<String>,
    /// Judge the hints on what is found, too: what they name, and on how many failures there is one
    #[arg(long)]
    hints: bool,
    /// Print one JSON object in place of tables
    #[arg(long)]
    json: bool,
    /// Refuse if more memory than this is needed, such as 8GB or 512MiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Size>,
    #[command(flatten)]
    golden: GoldenArgs,
}

pub fn run(args: &MutantsArgs) -> Result<Done> {
    let (golden, cases) = args.golden.cases(args.cases.as_deref())?;
    let pattern = golden::pattern("--mutant", args.mutants.as_deref().unwrap_or("*"))?;
    let subjects = Subjects {
        mutants: catalogue().filter(|mutant| pattern.matches(mutant.id)).collect(),
        benign: benign().filter(|benign| pattern.matches(benign.id)).collect(),
    };
    if subjects.mutants.is_empty() && subjects.benign.is_empty() {
        return Err(Error::request("--mutant", "a pattern that matches a mutant", format!("\"{pattern}\"")));
    }
    let dumps = dumps::named(&args.dumps)?;
    let precisions = args.dtype.map_or_else(|| vec![Precision::F32, Precision::Bf16], |dtype| vec![dtype]);
    let mut trials = Trials {
        golden: &golden,
        cases,
        precisions: precisions.clone(),
        dumps,
        hints: args.hints,
        subjects,
        most: usize::MAX,
        at_a_time: usize::MAX,
    };
    let (at_a_time, takes) = need::at_a_time(&trials, memory::within(args.memory_limit))?;
    super::plan(takes, args.memory_limit)?;
    trials.at_a_time = at_a_time;

    let start = Instant::now();
    let mut progress = Progress::new(trials.cases.len());
    let findings = run_trials(&trials, |case, findings| {
        let killed = |finding: &&Finding| matches!(finding, Finding::Kill(kill) if kill.outcome == Outcome::Killed);
        let runs = findings.iter().filter(|finding| matches!(finding, Finding::Kill(_))).count();
        progress.step(&format!("{case}: {} of {runs} runs of mutants found", findings.iter().filter(killed).count()));
    })?;
    drop(progress);
    let score = Score::new(&trials, &findings);
    let conforms = score.good();
    if args.json {
        return Ok(Done { output: Text::json(&report::json(&score).to_string()), conforms });
    }
    let mut parts = Vec::new();
    if !score.mutants.is_empty() {
        parts.push(report::mutants_table(&score, &precisions, styled()));
        parts.push(report::weakest_table(&score, styled()));
    }
    if !score.benign.is_empty() {
        parts.push(report::benign_table(&score, styled()));
    }
    if args.dumps != ["all"] {
        parts.push(report::dumps_table(&score, styled()));
    }
    if args.hints {
        parts.push(report::hints_table(&score, styled()));
    }
    let faults = report::faults(&score);
    if !faults.is_empty() {
        parts.push(faults.join("\n"));
    }
    if trials.dumps.iter().any(|kind| kind.is(&dumps::ALL)) {
        parts.push(report::totals(&score));
    }
    parts.push(format!("{:.1} s", start.elapsed().as_secs_f64()));
    Ok(Done { output: for_people(&parts.join("\n\n")), conforms })
}
