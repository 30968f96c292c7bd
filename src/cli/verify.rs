//! `dsv2 verify`.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use dsv2::backend::{Backend, OnDevice, OnRanks, Precision, Settings};
use dsv2::memory::{self, Size};
use dsv2::outcome::Item;
use dsv2::report::model::{PassOrFail, Report, VerifyReport};
use dsv2::verify::{Plan, need, verify};
use dsv2::waivers::Waivers;
use dsv2::{Error, Result, report};
use dsv2_optimized::Summation;
use dsv2_reference::file::set;

use super::progress::Progress;
use super::{Attention, BackendName, Done, GoldenArgs, for_people, precision, styled};

/// The arguments of `dsv2 verify`.
#[derive(Args, Default)]
pub struct VerifyArgs {
    /// Only cases whose name matches, such as 'mask-*'
    #[arg(long = "case", value_name = "GLOB")]
    cases: Option<String>,
    /// Only this backend [default: every one that there is]
    #[arg(long, value_enum, conflicts_with = "races")]
    backend: Option<BackendName>,
    /// Under the emulator's race detector, which takes about ten times as long
    #[arg(long)]
    races: bool,
    /// On the emulator, with tensor cores that add up in this way: how those of a card do is not documented
    #[arg(long, value_enum, value_name = "HOW", conflicts_with_all = ["races", "backend"])]
    sums: Option<Sums>,
    /// The CUDA kernels over P times Q emulated devices: heads and columns in P parts, the experts in Q blocks
    #[arg(long, value_name = "PxQ", conflicts_with_all = ["races", "backend", "sums"])]
    ranks: Option<OnRanks>,
    /// Only this type: f64, f32 or bf16 [default: f64 and f32; on the kernels f32 and bf16]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// Which form of attention
    #[arg(long, value_enum, default_value = "expanded")]
    attention: Attention,
    /// Write report.json (every number), junit.xml (for continuous integration) and report.html (to be read) to this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Failures that are accepted for now: a waivers.toml (see golden/RUNNER.md)
    #[arg(long, value_name = "FILE")]
    waivers: Option<PathBuf>,
    /// Refuse if more memory than this is needed, such as 8GB or 512MiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Size>,
    #[command(flatten)]
    golden: GoldenArgs,
}

/// How tensor cores add up, by the name of the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sums {
    /// In f64, rounded once
    Wide,
    /// Blocks of 8 products and the sum before them, aligned to the largest, 2 bits below its last one kept
    #[value(name = "aligned-8-2")]
    Aligned8,
    /// The same of 16 products
    #[value(name = "aligned-16-2")]
    Aligned16,
}

impl Sums {
    fn backend(self) -> &'static OnDevice {
        match self {
            Sums::Wide => &OnDevice::EmulatorAdding(Summation::Wide),
            Sums::Aligned8 => &OnDevice::EmulatorAdding(Summation::Aligned { terms: 8, extra_bits: 2 }),
            Sums::Aligned16 => &OnDevice::EmulatorAdding(Summation::Aligned { terms: 16, extra_bits: 2 }),
        }
    }
}

pub fn run(args: &VerifyArgs) -> Result<Done> {
    let (golden, cases) = args.golden.cases(args.cases.as_deref())?;
    let mut plan = Plan {
        golden: &golden,
        cases,
        candidates: candidates(args)?,
        attention: args.attention.into(),
        at_a_time: usize::MAX,
        waivers: args.waivers.as_deref().map(Waivers::read).transpose()?.unwrap_or_default(),
    };

    some_case_runs(&plan, args)?;
    args.report.as_deref().map(set::check).transpose()?;
    let (at_a_time, takes) = memory::side_by_side(need::of_cases(&plan)?, memory::within(args.memory_limit));
    super::plan(takes, args.memory_limit)?;
    plan.at_a_time = at_a_time;
    let start = Instant::now();
    let mut progress = Progress::new(plan.cases.len() * plan.candidates.len());
    let tell = |item: &Item| progress.step(&report::progress(item));
    let items = verify(&plan, tell)?;
    drop(progress);
    let report = VerifyReport::new(&items);
    let output = report::verify_text(&report, start.elapsed(), styled());
    let conforms = report.verdict == PassOrFail::Pass;
    if let Some(dir) = &args.report {
        report::write(dir, &Report::Verify(report))?;
    }
    Ok(Done { output: for_people(&output), conforms })
}

/// That what is asked for can be done with one case at least: of nothing everything would pass.
fn some_case_runs(plan: &Plan<'_>, args: &VerifyArgs) -> Result<()> {
    let mut why = None;
    for name in &plan.cases {
        let case = plan.golden.outline(name)?.case;
        for &(backend, precision) in &plan.candidates {
            let settings = Settings { precision, attention: plan.attention, ..Settings::default() };
            match backend.cannot_run(&case, &settings) {
                Some(reason) => why = why.or(Some(format!("{name}: {reason}"))),
                None => return Ok(()),
            }
        }
    }
    let (option, expected) = match args.ranks {
        Some(_) => ("--ranks", "a split that one of the cases can have"),
        None => ("--case", "a case that can run as asked for"),
    };
    Err(Error::request(option, expected, format!("none: {}", why.unwrap_or_default())))
}

/// What is asked for; else every backend there is, in every type that it has.
fn candidates(args: &VerifyArgs) -> Result<Vec<(&'static dyn Backend, Precision)>> {
    if let (Some(BackendName::Cuda), Err(reason)) = (args.backend, OnDevice::gpu()) {
        return Err(Error::request("--backend", "a CUDA device", reason));
    }
    let backends: Vec<&'static dyn Backend> = match (args.backend, args.sums) {
        _ if args.races => vec![&OnDevice::Emulator { races: true }],
        (_, Some(sums)) => vec![sums.backend()],
        // One for the whole run of the program.
        _ if args.ranks.is_some() => args.ranks.into_iter().map(|ranks| &*Box::leak(Box::new(ranks)) as _).collect(),
        (Some(name), _) => vec![name.backend()],
        (None, None) => BackendName::present().map(|name| name.backend() as _).collect(),
    };
    let types = |backend: &'static dyn Backend| match args.dtype {
        // a type that only some have is asked of them alone, unless somebody named the backend
        Some(dtype) if args.backend.is_some() || backend.name() == "reference" => vec![dtype],
        Some(dtype) => backend.precisions().iter().copied().filter(|precision| *precision == dtype).collect(),
        None => backend.precisions().to_vec(),
    };
    let of_backend = |backend| types(backend).into_iter().map(move |dtype| (backend, dtype));
    let candidates: Vec<_> = backends.into_iter().flat_map(of_backend).collect();
    // Of nothing everything would pass.
    match args.dtype {
        Some(dtype) if candidates.is_empty() => {
            Err(Error::request("--dtype", "a type of the emulator, f32 or bf16", dtype))
        }
        _ => Ok(candidates),
    }
}
