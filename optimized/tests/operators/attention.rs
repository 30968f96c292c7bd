//! Attention of one head, step by step, as the tests of its operators take it for the truth; and the rules for who sees
//! whom.

use dsv2_optimized::{Result, Tensor};
use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::{matmul, matmul_t};
use dsv2_reference::arithmetic::softmax::{log_sum_exp, softmax};
use ndarray::{Array1, Array2, ArrayView2};

use crate::harness::Output;

/// What attention gives for S queries and T keys.
pub struct Attention<T> {
    /// \[S,T\]: scaled and masked.
    pub scores: Array2<T>,
    /// \[S,T\]
    pub weights: Array2<T>,
    /// \[S,v\]
    pub out: Array2<T>,
    /// \[S\]: natural logarithm.
    pub lse: Array1<T>,
}

/// query \[S,d\], keys \[T,d\], values \[T,v\], bias \[S,T\]. `round` is applied where Transformers stores a number:
/// the scores, the scaled scores, the weights and the output. (It does not store the other two results.)
pub fn attend<T: Real>(
    query: ArrayView2<f32>,
    keys: ArrayView2<f32>,
    values: ArrayView2<f32>,
    bias: &Array2<f32>,
    scale: f32,
    round: impl Fn(T) -> T,
) -> Attention<T> {
    let widen = |x: &f32| T::from_f32(*x);
    let bias = bias.map(|x| if *x <= f32::MIN / 2.0 { T::neg_infinity() } else { widen(x) });
    let products = matmul_t(query.map(widen).view(), keys.map(widen).view());
    let scale = T::from_f32(scale);
    let scores = products.mapv(|x| x * scale) + &bias;
    let mut weights = products.mapv(|x| round(round(x) * scale)) + &bias;
    weights.rows_mut().into_iter().for_each(softmax);
    weights.mapv_inplace(&round);
    let out = matmul(weights.view(), values.map(widen).view()).mapv(&round);
    let empty = |row: &ndarray::ArrayView1<T>| row.iter().all(|x| *x == T::neg_infinity());
    let lse = scores.rows().into_iter().map(|row| if empty(&row) { T::neg_infinity() } else { log_sum_exp(row) });
    Attention { lse: lse.collect(), scores, weights, out }
}

/// Who sees whom, \[S,T\]: the causal rule for queries that are the last of `length` keys; or an additive mask, which
/// hides some that are causal, shows some that are not, and weighs. Of a short sequence it hides everything.
pub fn bias(tokens: usize, length: usize, masked: bool) -> Array2<f32> {
    Array2::from_shape_fn((tokens, length), |(s, t)| {
        let causal = t + tokens <= length + s;
        match (masked, causal, t % 5) {
            (false, true, _) => 0.0,
            (false, false, _) => f32::NEG_INFINITY,
            (true, _, _) if length < 3 || t < 2 => f32::MIN,
            (true, false, 1) | (true, true, 4) => f32::NEG_INFINITY,
            (true, _, remainder) => 0.25 * remainder as f32,
        }
    })
}

/// Sequence `b` of a batch, out and lse, has the bits of the sequence that is alone in `want`.
pub fn same_sequence(
    name: &'static str,
    got: &(Tensor, Tensor),
    b: usize,
    want: &(Tensor, Tensor),
) -> Result<[Output; 2]> {
    let one = |got: &Tensor, want| Output::same(name, &got.narrow(0, b..b + 1)?, want);
    Ok([one(&got.0, &want.0)?, one(&got.1, &want.1)?])
}
