//! Writes a dump, as any program in any language might, and has it judged.
//!
//! ```text
//! cargo run --release --example check_dump
//! ```
//!
//! `dsv2 check` does the same from the command line.

use std::error::Error;
use std::path::Path;

use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::case::Case;
use dsv2::check::{Conclusion, Request, check};
use dsv2::golden::GoldenCases;
use dsv2::materialize::{Feed, materialize};
use dsv2::mutants::explain::{Question, explain};
use dsv2::trace::Trace;
use dsv2_reference::{Dialect, Real, StageValue, Tap};

fn main() -> Result<(), Box<dyn Error>> {
    // The model and its inputs: a golden case, written as a Hugging Face folder. Any checkpoint and any inputs will do.
    let folder = tempfile::tempdir()?;
    let v2 = folder.path().join("v2");
    materialize(&GoldenCases::embedded().load("v2")?, &v2, Feed::Whole)?;
    let (model, inputs) = (v2.join("model"), v2.join("case/inputs.safetensors"));

    for (program, bug) in [("right", 1.0), ("without the shared experts", 0.0)] {
        let dump = folder.path().join("dump.safetensors");
        run_and_dump(&Case::open(&model, &inputs, Dialect::Hf, None)?, bug, &dump)?;

        let request = Request::new(Case::open(&model, &inputs, Dialect::Hf, None)?, Trace::read(&dump)?);
        let checked = check(&request)?;
        println!("{program}: {} stages of {} compared", checked.verdict.compared(), checked.precision);
        match checked.verdict.first_failure() {
            None if checked.conclusion() == Conclusion::Pass => println!("  pass"),
            None => println!("  no verdict: {:?}", checked.inconclusive),
            Some(stage) => {
                let l2 = |metrics: Option<dsv2::metrics::Metrics>| metrics.map_or(f64::NAN, |metrics| metrics.l2);
                println!("  FAIL: first wrong stage {}", stage.stage);
                println!("  local error {:.1e}, budget {:.1e}", l2(stage.local), l2(stage.budget));
                println!("  propagated error {:.1e}", l2(stage.propagated));
                // Every known bug is tried: which of them computes exactly what the dump holds?
                let question = Question::new(&checked.case, &checked.candidate, checked.precision);
                for found in explain(&question, |_, _, _| {})? {
                    for bug in found.changes {
                        println!("  explained by `{}`: {}", bug.mutant, bug.what);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Stands for your program: runs the model and writes the tensors that it can get at, under the names of Hugging Face's
/// modules. This one has the layers' outputs, what the attention adds, and logits.
fn run_and_dump(case: &Case, shared_experts: f64, dump: &Path) -> dsv2::Result<()> {
    let wanted = |name: &str| {
        let layer = name.strip_prefix("model.layers.").is_some_and(|rest| !rest.contains('.'));
        layer || name.ends_with(".self_attn.o_proj") || name == "lm_head"
    };
    let settings = Settings { precision: Precision::F32, stages: Some(&wanted), ..Settings::default() };
    Reference.run(case, &settings, &mut Scaled(shared_experts))?.write(dump)
}

/// Multiplies what the shared experts add.
struct Scaled(f64);

impl<T: Real> Tap<T> for Scaled {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if let (true, StageValue::Real(mut output)) = (name.ends_with(".shared_experts"), value) {
            output.mapv_inplace(|x| x * T::from_f64(self.0));
        }
    }
}
