//! Which keys a query sees, where that is more than the causal rule: padding, packed sequences, a mask from the caller.
//!
//! The kernels know the causal rule by themselves. Everything else becomes numbers \[B,S,T\] that are added to the scores: 0,
//! minus infinity, or what the caller gave.

use dsv2_reference::AttentionMask;
use dsv2_reference::model::ModelInput;
use ndarray::Array2;

use crate::{Error, Result};

/// Half the lowest fp32 number: what a caller's mask holds at or below it forbids.
const FORBIDDEN: f32 = f32::MIN / 2.0;

/// The numbers to add, \[B,S,T\] row by row, or none where the causal rule is all. Sequence b has `past[b]` cached tokens
/// and gets `new` more; T is the longest of all.
///
/// # Errors
/// If the mask does not have the shape of the batch, or holds NaN or plus infinity.
pub(super) fn added(input: &ModelInput<f32>, cached: bool, past: &[usize], new: usize) -> Result<Option<Vec<f32>>> {
    let batch = past.len();
    let keys = past.iter().max().map_or(0, |past| past + new);
    let from_rule = |sees: &dyn Fn(usize, usize, usize) -> bool| {
        let places = (0..batch * new * keys).map(|i| (i / (new * keys), i / keys % new, i % keys));
        let add =
            |(b, s, t): (usize, usize, usize)| if t <= past[b] + s && sees(b, s, t) { 0.0 } else { f32::NEG_INFINITY };
        Some(places.map(add).collect())
    };
    let wrong = |expected: String, found: String| Error::operand("forward", "attention_mask", expected, found);
    match (&input.attention_mask, &input.position_ids) {
        (Some(AttentionMask::Padding(real)), _) if real.dim() != (batch, keys) => {
            Err(wrong(format!("shape [{batch}, {keys}], cached and new tokens"), format!("{:?}", real.shape())))
        }
        (Some(AttentionMask::Padding(real)), _) if real.iter().all(|real| *real) => Ok(None),
        (Some(AttentionMask::Padding(real)), _) => Ok(from_rule(&|b, _, t| real[[b, t]])),
        (Some(AttentionMask::Additive(given)), _) => {
            let (rows, one, queries, columns) = given.dim();
            if (rows != 1 && rows != batch) || (queries != 1 && queries != new) || (one, columns) != (1, keys) {
                let expected = format!("shape [1 or {batch}, 1, 1 or {new}, {keys}]");
                return Err(wrong(expected, format!("{:?}", given.shape())));
            }
            if let Some(bad) = given.iter().find(|x| x.is_nan() || **x == f32::INFINITY) {
                return Err(wrong("no NaN and no plus infinity".into(), bad.to_string()));
            }
            let given = given.broadcast((batch, 1, new, keys)).expect("one for all, or one for each");
            Ok(Some(given.iter().map(|x| if *x <= FORBIDDEN { f32::NEG_INFINITY } else { *x }).collect()))
        }
        // Packed sequences are recognised in their positions, where there is neither a mask nor a cache.
        (None, Some(positions)) if !cached => {
            let packs = packs(positions);
            let row = |b: usize| b.min(packs.nrows() - 1);
            let one_pack = packs.iter().all(|pack| *pack == 0);
            Ok(if one_pack { None } else { from_rule(&|b, s, t| packs[[row(b), s]] == packs[[row(b), t]]) })
        }
        (None, _) => Ok(None),
    }
}

/// The number of each token's pack: a new one begins wherever the position does not rise by one.
fn packs(positions: &Array2<i64>) -> Array2<usize> {
    let mut packs = Array2::zeros(positions.dim());
    for ((b, s), position) in positions.indexed_iter().filter(|((_, s), _)| *s > 0) {
        packs[[b, s]] = packs[[b, s - 1]] + usize::from(Some(*position) != positions[[b, s - 1]].checked_add(1));
    }
    packs
}
