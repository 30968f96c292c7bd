//! The whole suite on a backend of yours, as a test target of its own.
//!
//! ```toml
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! ```no_run
//! // tests/conformance.rs
//! # use dsv2::backend::Reference as MyBackend;
//! dsv2::conformance_suite!(MyBackend);
//! ```
//!
//! `cargo test --test conformance v2-lite` runs what has that in its name. There is one test for each golden case, type and
//! form of attention, and one for each case with whole numbers ([`crate::integers`]). What the backend says that it cannot
//! run is shown as ignored, with its reason, and never counts as passed. A second argument names a file of waivers
//! ([`crate::waivers`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dsv2_reference::AttentionForm;
use dsv2_reference::tap::NoTap;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::backend::{Backend, Settings};
use crate::golden::{GoldenCase, GoldenCases};
use crate::outcome::{Conclusion, Item, Outcome};
use crate::precision::Precision;
use crate::report::verify_failure;
use crate::waivers::Waivers;
use crate::{integers, verify};

/// Makes the `main` of a test target that runs the whole suite on a [`Backend`]; see [`crate::conformance`].
#[macro_export]
macro_rules! conformance_suite {
    ($backend:expr) => {
        fn main() -> std::process::ExitCode {
            static BACKEND: &dyn $crate::backend::Backend = &$backend;
            $crate::conformance::main(BACKEND, None)
        }
    };
    ($backend:expr, $waivers:expr) => {
        fn main() -> std::process::ExitCode {
            static BACKEND: &dyn $crate::backend::Backend = &$backend;
            $crate::conformance::main(BACKEND, Some(std::path::Path::new($waivers)))
        }
    };
}

/// The types and forms of attention in which each golden case is run.
const PRECISIONS: [Precision; 3] = [Precision::F64, Precision::F32, Precision::Bf16];
const FORMS: [AttentionForm; 2] = [AttentionForm::Expanded, AttentionForm::Absorbed];

/// Runs the suite with the arguments of `cargo test`.
pub fn main(backend: &'static dyn Backend, waivers: Option<&Path>) -> std::process::ExitCode {
    let waivers = match waivers.map(Waivers::read).transpose() {
        Ok(waivers) => Arc::new(waivers.unwrap_or_default()),
        Err(error) => {
            eprintln!("{error}");
            return std::process::ExitCode::from(2);
        }
    };
    let golden = GoldenCases::embedded();
    let mut trials = Vec::new();
    for name in golden.names() {
        match golden.load(name) {
            Ok(golden) => trials.extend(of_case(backend, Arc::new(golden), &waivers)),
            Err(error) => trials.push(Trial::test(name.clone(), move || Err(error.to_string().into()))),
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn of_case(backend: &'static dyn Backend, golden: Arc<GoldenCase>, waivers: &Arc<Waivers>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for precision in PRECISIONS {
        for attention in FORMS {
            let settings = Settings { precision, attention, ..Settings::default() };
            let compared = move |golden: &GoldenCase| verify::run(golden, backend, precision, attention, &mut NoTap);
            let whole = move |golden: &GoldenCase| integers::run(golden, backend, precision, attention, &mut NoTap);
            let form = format!("{precision}::{attention:?}").to_lowercase();
            for (name, run) in
                [(form.clone(), Run::from(Box::new(compared))), (format!("{form}::integers"), Box::new(whole))]
            {
                let test = Test { name: format!("{}::{name}", golden.name()), precision, run };
                trials.push(test.trial(backend, &golden, waivers, &settings));
            }
        }
    }
    trials
}

type Run = Box<dyn Fn(&GoldenCase) -> Outcome + Send>;

struct Test {
    name: String,
    precision: Precision,
    run: Run,
}

impl Test {
    fn trial(
        self,
        backend: &'static dyn Backend,
        golden: &Arc<GoldenCase>,
        waivers: &Arc<Waivers>,
        settings: &Settings<'_>,
    ) -> Trial {
        let Test { name, precision, run } = self;
        if let Some(reason) = backend.cannot_run(&golden.case, settings) {
            return Trial::test(name, || Ok(())).with_kind(format!("not supported: {reason}")).with_ignored_flag(true);
        }
        let (golden, waivers) = (golden.clone(), waivers.clone());
        Trial::test(name, move || {
            let outcome = waivers.apply(backend.name(), golden.name(), run(&golden));
            passed(Item {
                case: golden.name().to_owned(),
                backend: backend.name(),
                precision,
                outcome,
                elapsed: Duration::ZERO,
            })
        })
    }
}

/// A pass, or a waived failure, which is told.
fn passed(item: Item) -> Result<(), Failed> {
    match item.outcome.conclusion() {
        Conclusion::Pass => Ok(()),
        Conclusion::Waived => {
            eprintln!("{}", verify_failure(&item).unwrap_or_default());
            Ok(())
        }
        _ => Err(verify_failure(&item).or(item.outcome.reason().map(str::to_owned)).unwrap_or_default().into()),
    }
}
