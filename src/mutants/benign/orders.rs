//! Sums in another order, softmax chunk by chunk.

use dsv2_reference::stage::table::*;
use ndarray::{Array1, Array4, ArrayD, Axis, s};

use super::Benign;
use crate::mutants::At;
use crate::mutants::arithmetic::{blocked, pairwise, reversed, sequential, to_f32, unfused};
use crate::mutants::parts::PROJECTIONS;
use crate::mutants::scene::Scene;
use crate::mutants::scene::shaped;

macro_rules! order {
    ($id:literal, $what:literal, $dot:expr) => {
        Benign::new($id, $what)
            .at(PROJECTIONS, |s, at| s.summed(at, $dot))
            .at(&[ROUTER_LOGITS, EXPERTS, SHARED_EXPERTS], |s, at| s.summed(at, $dot))
    };
}

pub const BENIGN: &[Benign] = &[
    order!("sum_sequential", "Sums run from the first product to the last.", sequential),
    order!("sum_reversed", "Sums run from the last product to the first.", reversed),
    order!("sum_unfused", "Products are rounded before they are added.", unfused),
    order!("sum_blocks_16", "Sums of blocks of 16 products.", blocked::<16>),
    order!("sum_blocks_64", "Sums of blocks of 64 products.", blocked::<64>),
    order!("sum_blocks_128", "Sums of blocks of 128 products.", blocked::<128>),
    order!("sum_pairwise", "Sums of halves, of their halves, and so on.", pairwise),
    Benign::new(
        "online_softmax",
        "Keys come four at a time, with a running maximum; scores and weights are never stored.",
    )
    .without(&[".attn_scores", ".attn_weights"])
    .at(&[ATTN_OUTPUT], |s, at| online(s, at, f64::exp, 1.0)),
    Benign::new("online_softmax_exp2", "The same with powers of two.")
        .without(&[".attn_scores", ".attn_weights"])
        .at(&[ATTN_OUTPUT], |s, at| online(s, at, f64::exp2, std::f64::consts::LOG2_E)),
];

/// Softmax and the sum of values in one pass over blocks of keys, in fp32; weights are stored as the model's numbers are.
fn online(scene: &Scene<'_>, at: At<'_>, exp: fn(f64) -> f64, unit: f64) -> Option<ArrayD<f64>> {
    let scores = scene.unrounded(ATTN_SCORES, at.layer)?.clone().into_dimensionality::<ndarray::Ix4>().ok()?;
    let values = scene.values(at.layer)?;
    let (batch, heads, length, keys) = scores.dim();
    let width = values.len_of(Axis(3));
    let mut output = Array4::zeros((batch, length, heads, width));
    for ((b, h), q) in ndarray::indices((batch, heads)).into_iter().flat_map(|bh| (0..length).map(move |q| (bh, q))) {
        let (mut largest, mut sum, mut acc) = (f64::NEG_INFINITY, 0.0, Array1::<f64>::zeros(width));
        for block in (0..keys).step_by(4) {
            let block = block..(block + 4).min(keys);
            let top = block.clone().map(|t| to_f32(scores[[b, h, q, t]] * unit)).fold(largest, f64::max);
            if top == f64::NEG_INFINITY {
                continue;
            }
            let shrink = to_f32(exp(largest - top));
            (largest, sum) = (top, to_f32(sum * shrink));
            acc.mapv_inplace(|x| to_f32(x * shrink));
            for t in block {
                let p = to_f32(exp(to_f32(scores[[b, h, q, t]] * unit) - top));
                sum = to_f32(sum + p);
                let p = scene.keep(p);
                acc.zip_mut_with(&values.slice(s![b, h, t, ..]), |x, v| *x = to_f32(*x + p * v));
            }
        }
        if sum > 0.0 {
            output.slice_mut(s![b, q, h, ..]).assign(&acc.mapv(|x| to_f32(x / sum)));
        }
    }
    shaped(output, at.value)
}
