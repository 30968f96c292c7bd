//! Sums in another order, softmax chunk by chunk.

use dsv2_reference::stage::table::*;
use ndarray::{Array1, Array4, ArrayD, Axis, s};

use super::{Benign, any};
use crate::mutants::arithmetic::{Dot, blocked, pairwise, reversed, sequential, to_f32, unfused};
use crate::mutants::scene::Scene;
use crate::mutants::scene::shaped;
use crate::mutants::{At, Variant, real};

/// Everything that is a sum of products of weights.
const PRODUCTS: &[&str] = &[
    Q_PROJ,
    Q_A_PROJ,
    Q_B_PROJ,
    KV_A_PROJ,
    KV_B_PROJ,
    O_PROJ,
    GATE_PROJ,
    UP_PROJ,
    DOWN_PROJ,
    ROUTER_LOGITS,
    EXPERTS,
    SHARED_EXPERTS,
    LM_HEAD,
    SCORE,
];

macro_rules! order {
    ($id:literal, $what:literal, $dot:expr) => {
        Benign::of($id, $what, any, Variant { acts: &[real(PRODUCTS, |s, at| summed(s, at, $dot))] })
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
    Benign {
        id: "online_softmax",
        what: "Keys come four at a time, with a running maximum; scores and weights are never stored.",
        applies: any,
        absorbed: false,
        absent: &[".attn_scores", ".attn_weights"],
        variant: Some(Variant { acts: &[real(&[ATTN_OUTPUT], |s, at| online(s, at, f64::exp, 1.0))] }),
    },
    Benign {
        id: "online_softmax_exp2",
        what: "The same with powers of two.",
        applies: any,
        absorbed: false,
        absent: &[".attn_scores", ".attn_weights"],
        variant: Some(Variant {
            acts: &[real(&[ATTN_OUTPUT], |s, at| online(s, at, f64::exp2, std::f64::consts::LOG2_E))],
        }),
    },
];

/// Any product of weights, summed by `dot`.
fn summed(scene: &Scene<'_>, at: At<'_>, dot: Dot) -> Option<ArrayD<f64>> {
    match at.kind {
        EXPERTS => {
            let routed = scene.routed(at.layer)?;
            routed.sum(at.value, |e, x| routed.experts[e].forward(x, dot))
        }
        SHARED_EXPERTS => {
            let (x, expert) = scene.shared(at.layer)?;
            shaped(expert.forward(&x, dot), at.value)
        }
        kind => scene.projection(kind, at.layer)?.apply(at.value, dot),
    }
}

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
