//! Who may attend to whom: the causal rule, padding, packed sequences, and masks given from outside.
//!
//! Query `q` (counted from the end of the cache, which holds `past` tokens) may see key `t` iff
//!
//! ```text
//! t <= past + q   and   attention_mask[b, t]   and   segment[b, q] = segment[b, t]
//! ```
//!
//! The result is an additive bias \[B or 1,H or 1,S,T\]: 0 where allowed, minus infinity where not.

use ndarray::{Array2, Array4};

use crate::{Error, Real, Result};

/// A mask from the caller.
#[derive(Debug, Clone)]
pub enum AttentionMask<T> {
    /// \[B,past+S\]: which tokens are real (`true`) and which are padding. The causal rule is added to it.
    ///
    /// **Trap.** Transformers fills a mask that is shorter than the keys with *false* on the right: passing only the
    /// new token's mask while decoding hides the new keys silently (logits off by 4). Here a wrong length is an error.
    Padding(Array2<bool>),
    /// \[B or 1,H or 1,S or 1,T\], added to the scores as it is; no causal rule is added. An entry at or below half the lowest
    /// finite fp32 number means forbidden. A boolean 4-D mask is not taken: Transformers' eager attention *adds* it as
    /// 0/1 (off by 4.3).
    Additive(Array4<T>),
}

/// The bias of one forward pass: `length` new tokens of each of `batch` sequences, after `past` cached ones, in `heads`
/// heads.
///
/// `packed_positions`: position ids, if packed sequences are to be recognised in them (no cache object, no mask).
///
/// # Errors
/// If the mask does not have the shape above, or holds NaN or plus infinity.
pub fn attention_bias<T: Real>(
    mask: Option<&AttentionMask<T>>,
    packed_positions: Option<&Array2<i64>>,
    (batch, heads, length, past): (usize, usize, usize, usize),
) -> Result<Array4<T>> {
    let keys = past + length;
    match mask {
        Some(AttentionMask::Additive(bias)) => given_bias(bias, (batch, heads, length, keys)),
        Some(AttentionMask::Padding(real)) if real.dim() != (batch, keys) => {
            let expected = format!("shape [{batch}, {keys}] (cached and new tokens)");
            Err(Error::input("attention_mask", expected, format!("shape {:?}", real.shape())))
        }
        Some(AttentionMask::Padding(real)) => {
            Ok(bias_where((batch, length, keys), |b, q, t| t <= past + q && real[[b, t]]))
        }
        None => match packed_positions.map(segments) {
            Some(segment) => Ok(bias_where((segment.nrows(), length, keys), |b, q, t| {
                t <= past + q && segment[[b, q]] == segment[[b, t]]
            })),
            None => Ok(bias_where((1, length, keys), |_, q, t| t <= past + q)),
        },
    }
}

fn bias_where<T: Real>(
    (rows, length, keys): (usize, usize, usize),
    allow: impl Fn(usize, usize, usize) -> bool,
) -> Array4<T> {
    Array4::from_shape_fn(
        (rows, 1, length, keys),
        |(b, _, q, t)| {
            if allow(b, q, t) { T::zero() } else { T::neg_infinity() }
        },
    )
}

fn given_bias<T: Real>(bias: &Array4<T>, shape: (usize, usize, usize, usize)) -> Result<Array4<T>> {
    let (batch, heads, length, keys) = shape;
    let (rows, planes, queries, columns) = bias.dim();
    let one_or = |found, all| found == 1 || found == all;
    if !one_or(rows, batch) || !one_or(planes, heads) || !one_or(queries, length) || columns != keys {
        let expected = format!("shape [1 or {batch}, 1 or {heads}, 1 or {length}, {keys}]");
        return Err(Error::input("attention_mask", expected, format!("shape {:?}", bias.shape())));
    }
    if let Some(bad) = bias.iter().find(|x| x.is_nan() || **x == T::infinity()) {
        return Err(Error::input("attention_mask", "no NaN and no plus infinity", bad));
    }
    let forbidden = T::from_f32(f32::MIN / 2.0);
    let every_query = bias.broadcast((rows, planes, length, keys)).expect("one query, or all");
    Ok(every_query.mapv(|x| if x <= forbidden { T::neg_infinity() } else { x }))
}

/// Which packed sequence each token belongs to: every step of the position ids other than +1 begins a new one. \[B,S\]
/// -> \[B,S\].
///
/// **Trap.** So gapped positions (0, 2, 4) make each token its own sequence; Transformers reads them so exactly if
/// neither a mask nor a cache is given. Pass a mask of ones to have gaps taken as gaps.
fn segments(position_ids: &Array2<i64>) -> Array2<usize> {
    let mut segment = Array2::zeros(position_ids.dim());
    for (mut segment, positions) in segment.rows_mut().into_iter().zip(position_ids.rows()) {
        for s in 1..positions.len() {
            segment[s] = segment[s - 1] + usize::from(positions[s - 1].checked_add(1) != Some(positions[s]));
        }
    }
    segment
}

/// Position ids where the caller gives none: 0, 1, 2, ... after the cached tokens, \[1,S\].
///
/// **Trap.** They are *not* derived from the mask, in Transformers' forward pass either: with left padding the first
/// real token does not have position 0. (Rotary scores depend on differences only, so it makes no difference to the
/// real tokens.)
pub fn default_position_ids(length: usize, past: usize) -> Array2<i64> {
    Array2::from_shape_fn((1, length), |(_, s)| (past + s) as i64)
}
