//! Every golden case against the reference: one test for each case, type and form of attention, named after the case.
//!
//! `cargo test --test parity v2-lite` runs those of one case.

use dsv2::backend::{Precision, Reference};
use dsv2::golden::Suite;
use dsv2::report::verify_failure;
use dsv2::verify::{Item, Outcome, run};
use dsv2_reference::{AttentionForm, NoTap};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let suite = Suite::embedded();
    let mut trials = Vec::new();
    for case in suite.names() {
        for precision in [Precision::F64, Precision::F32, Precision::Bf16] {
            for attention in [AttentionForm::Expanded, AttentionForm::Absorbed] {
                let (suite, case) = (suite.clone(), case.clone());
                let name = format!("{case}::{precision}::{attention:?}").to_lowercase();
                trials.push(Trial::test(name, move || reproduces(&suite, &case, precision, attention)));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Every stage of the case is within its budget, and none is missing.
fn reproduces(suite: &Suite, case: &str, precision: Precision, attention: AttentionForm) -> Result<(), Failed> {
    let golden = suite.load(case)?;
    let outcome = run(&golden, &Reference, precision, attention, &mut NoTap);
    let stages = golden.expected.len();
    let absent =
        if attention == AttentionForm::Absorbed { golden.file.config["num_hidden_layers"].as_u64() } else { None };
    match &outcome {
        Outcome::Judged(verdict) if verdict.passes() => {
            let expected = stages - absent.unwrap_or(0) as usize; // the absorbed form has no `kv_b_proj`
            if verdict.compared() == expected {
                return Ok(());
            }
            Err(format!("{} of {expected} stages were compared", verdict.compared()).into())
        }
        _ => {
            let item =
                Item { case: case.to_owned(), backend: "reference", precision, outcome, elapsed: Default::default() };
            Err(verify_failure(&item).unwrap_or_else(|| "did not run".to_owned()).into())
        }
    }
}
