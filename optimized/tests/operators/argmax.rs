//! Greedy decoding: ties, NaN, infinities, both zeros; the largest logit at every kind of place.

use std::sync::Arc;

use dsv2_optimized::operators::argmax::{argmax, meetings};
use dsv2_optimized::{Device, Element, Result, Variant};
use ndarray::{Array2, Axis, s};

use crate::harness::{Case, KINDS, Output, output, random, upload};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, variant) in KINDS {
        // (vocabulary, columns of the matrix that the logits are a slice of)
        for (vocab, columns) in [(1, 1), (2, 2), (37, 40), (40, 48), (1000, 1001), (9000, 9000), (102_400, 102_400)] {
            // One thread for a whole vocabulary shows nothing new, and takes long.
            if variant == Variant::Naive && vocab > 10_000 {
                continue;
            }
            cases.push(Case {
                name: format!("argmax/{variant}/{element}/vocab={vocab},columns={columns}"),
                module: "argmax",
                // Of the larger ones that of two blocks for a row.
                watched: vocab <= 40 || vocab == 9000,
                run: Box::new(move |device| compared(device, variant, element, vocab, columns)),
            });
        }
    }
    cases
}

/// Rows that are each hard in their way.
fn logits(vocab: usize) -> Array2<f32> {
    let x = random("logits", [10, vocab], 1.0);
    let mut x = x.mapv(|x| if x == 0.0 { 0.5 } else { x });
    let last = vocab - 1;
    x[[0, last]] = 9.0;
    x[[1, 0]] = 9.0;
    x.row_mut(2).mapv_inplace(|x| (x * 2.0).round()); // ties
    x.row_mut(3).fill(-7.0);
    x.row_mut(4).fill(f32::NEG_INFINITY);
    x.row_mut(5)[vocab / 2] = f32::INFINITY;
    x.row_mut(6)[vocab / 3] = f32::NAN;
    x.row_mut(6)[last] = f32::NAN;
    x.row_mut(6)[vocab / 2] = -f32::NAN;
    x.row_mut(6)[0] = f32::INFINITY;
    x.row_mut(7).mapv_inplace(|x| -x.abs()); // the two zeros are equal
    x.row_mut(7)[vocab / 3] = -0.0;
    x.row_mut(7)[last] = 0.0;
    x.row_mut(8).mapv_inplace(|x| -x.abs()); // the largest is negative
    x
}

/// The first of the largest, NaN above all.
fn largest(row: impl IntoIterator<Item = f32>) -> usize {
    let mut best: Option<(usize, f32)> = None;
    for (token, logit) in row.into_iter().enumerate() {
        if best.is_none_or(|(_, top)| !top.is_nan() && (logit.is_nan() || logit > top)) {
            best = Some((token, logit));
        }
    }
    best.expect("a token").0
}

fn compared(
    device: &Arc<dyn Device>,
    variant: Variant,
    element: Element,
    vocab: usize,
    columns: usize,
) -> Result<Vec<Output>> {
    let logits = logits(vocab);
    let mut whole = Array2::from_elem((logits.nrows(), columns), f32::NAN);
    whole.slice_mut(s![.., columns - vocab..]).assign(&logits);
    let (rows, mut outputs) = (logits.nrows(), vec![]);
    let meetings = meetings(device, rows)?;
    // Once more on the rows in reverse: each meets where another row has left what it found.
    for (name, order) in [("tokens", Vec::from_iter(0..rows)), ("tokens in reverse", Vec::from_iter((0..rows).rev()))] {
        let view = upload(device, element, &whole.select(Axis(0), &order))?.narrow(1, columns - vocab..columns)?;
        let tokens = output(device, Element::I32, &[rows])?;
        argmax(variant, &view, &meetings, &tokens)?;
        outputs.push(Output::exactly(
            name,
            &tokens,
            order.iter().map(|row| largest(logits.row(*row).to_vec()) as f64),
        )?);
    }
    Ok(outputs)
}
