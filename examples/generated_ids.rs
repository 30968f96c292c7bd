//! Judges an engine by the tokens that it generated itself: no golden output is needed.
//!
//! ```text
//! cargo run --release --example generated_ids
//! ```
//!
//! The inputs are the prompt and the tokens that the engine generated, the dump is what it computed on the way. The logits
//! that the first new token was chosen from stand at the last token of the prompt; the last new token was never fed.

use std::error::Error;

use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::case::Case;
use dsv2::check::{Request, check};
use dsv2::golden::GoldenCases;
use dsv2::inputs::{AttentionMask, Inputs, LogitsToKeep, Tokens};
use dsv2::trace::Trace;
use dsv2::values::Values;
use dsv2_reference::{Dtype, NoTap};
use ndarray::{Array2, Axis, concatenate};

const NEW: usize = 6;

fn main() -> Result<(), Box<dyn Error>> {
    let prompt = Array2::from_shape_fn((1, 5), |(_, s)| [17, 3, 99, 42, 8][s]);
    for (engine, gap) in [("right", 0), ("counts positions from 1 after the prompt", 1)] {
        let (ids, logits) = generate(&prompt, gap)?;
        println!("{engine}: {:?}", ids.row(0).as_slice().unwrap_or_default());

        // All tokens but the last went in; logits were kept for the last `NEW` of these.
        let fed = ids.slice(ndarray::s![.., ..ids.ncols() - 1]).to_owned();
        let mut inputs = Inputs::new(Tokens::InputIds(fed));
        inputs.logits_to_keep = Some(LogitsToKeep::Last(NEW as i64));
        let candidate = Trace::default().with("lm_head", Values::Real(Dtype::F32, logits.into_dyn()));
        let checked = check(&Request::new(case(inputs)?, candidate))?;
        match checked.verdict.first_failure() {
            None => println!("  pass: {} stage", checked.verdict.compared()),
            Some(stage) => println!("  FAIL: first wrong stage {}", stage.stage),
        }
    }
    Ok(())
}

/// A model with V2-Lite's head sizes, and these inputs.
fn case(inputs: Inputs) -> dsv2::Result<Case> {
    let case = GoldenCases::embedded().load("real-lite")?.case;
    Case { chunks: vec![inputs.length()], inputs, ..case }.checked()
}

/// Stands for your engine: takes the likeliest token, `NEW` times. Returns all tokens, and the logits of each choice
/// `[1, NEW, V]`.
fn generate(prompt: &Array2<i64>, gap: i64) -> Result<(Array2<i64>, ndarray::Array3<f64>), Box<dyn Error>> {
    let (mut ids, mut rows) = (prompt.clone(), Vec::new());
    for _ in 0..NEW {
        let mut inputs = Inputs::new(Tokens::InputIds(ids.clone()));
        inputs.attention_mask = Some(AttentionMask::Padding(Array2::from_elem(ids.dim(), true)));
        let position = |s: usize| s as i64 + if s < prompt.ncols() { 0 } else { gap };
        inputs.position_ids = Some(Array2::from_shape_fn(ids.dim(), |(_, s)| position(s)));
        inputs.logits_to_keep = Some(LogitsToKeep::Last(1));
        let settings = Settings { precision: Precision::F32, ..Settings::default() };
        let trace = Reference.run(&case(inputs)?, &settings, &mut NoTap)?;
        let logits = trace.get("lm_head").and_then(Values::real).ok_or("no logits")?.clone();
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token as i64);
        ids = concatenate(Axis(1), &[ids.view(), Array2::from_elem((1, 1), best).view()])?;
        rows.push(logits.into_dimensionality::<ndarray::Ix3>()?);
    }
    let rows: Vec<_> = rows.iter().map(|row| row.view()).collect();
    Ok((ids, concatenate(Axis(1), &rows)?))
}
