//! Roundings in other places than the reference's: feed-forward networks.

use dsv2_reference::stage::table::*;
use ndarray::Array2;

use super::{Benign, narrow};
use crate::mutants::arithmetic::{exact, product, to_f32};
use crate::mutants::parts::Expert;
use crate::mutants::scene::{Scene, rows, shaped};

pub const BENIGN: &[Benign] = &[
    Benign::new("swiglu_unrounded", "gate and up are not rounded before they are multiplied (one fused kernel).")
        .when(narrow)
        .at(&[DOWN_PROJ], |s, at| {
            let activation = s.config().activation().ok()?;
            let gate = rows(s.unrounded(GATE_PROJ, at.layer)?)?.mapv(|x| activation.apply(x));
            let mut projection = s.projection(DOWN_PROJ, at.layer)?;
            projection.x = gate * rows(s.unrounded(UP_PROJ, at.layer)?)?;
            projection.apply(at.value, exact)
        }),
    Benign::new(
        "swiglu_rounded_each_op",
        "gate, up, the activation and the product are rounded, in every expert (Transformers' order).",
    )
    .when(narrow)
    .at(&[DOWN_PROJ], |s, at| {
        let activation = s.config().activation().ok()?;
        let gate = s.rows(GATE_PROJ, at.layer)?.mapv(|x| s.keep(activation.apply(x)));
        let mut projection = s.projection(DOWN_PROJ, at.layer)?;
        projection.x = (gate * s.rows(UP_PROJ, at.layer)?).mapv(|x| s.keep(x));
        projection.apply(at.value, exact)
    })
    .at(&[EXPERTS], |s, at| {
        let routed = s.routed(at.layer)?;
        routed.sum(at.value, |e, x| rounded_expert(s, &routed.experts[e], x))
    })
    .at(&[SHARED_EXPERTS], |s, at| {
        let (x, expert) = s.shared(at.layer)?;
        shaped(rounded_expert(s, &expert, &x), at.value)
    }),
    Benign::new(
        "combine_rounded",
        "What the experts give is rounded, weighted, rounded, and added up in the model's type.",
    )
    .when(narrow)
    .at(&[EXPERTS], |s, at| {
        let routed = s.routed(at.layer)?;
        let mut sum = Array2::<f64>::zeros(routed.x.dim());
        for ((token, slot), &chosen) in routed.choice.indexed_iter() {
            let weight = routed.weights[[token, slot]];
            let y = routed.experts[chosen as usize].forward(&routed.token(token), exact);
            sum.row_mut(token).zip_mut_with(&y.row(0), |sum, y| {
                *sum = s.keep(*sum + s.keep(weight * s.keep(*y)));
            });
        }
        shaped(sum, at.value)
    }),
    Benign::new("weight_before_down", "An expert's weight multiplies what goes into down_proj.").at(
        &[EXPERTS],
        |s, at| {
            let routed = s.routed(at.layer)?;
            let mut sum = Array2::zeros(routed.x.dim());
            for ((token, slot), &chosen) in routed.choice.indexed_iter() {
                let expert = &routed.experts[chosen as usize];
                let gated = expert.gated(&routed.token(token), exact);
                let weighted = gated.mapv(|x| to_f32(to_f32(x) * routed.weights[[token, slot]]));
                sum.row_mut(token).scaled_add(1.0, &product(weighted.view(), expert.down.view(), exact).row(0));
            }
            shaped(sum, at.value)
        },
    ),
];

/// Rounds after every step. (A routed expert's result is rounded before it is weighted.)
fn rounded_expert(scene: &Scene<'_>, expert: &Expert, x: &Array2<f64>) -> Array2<f64> {
    let keep = |x: f64| scene.keep(x);
    let biased = |y: Array2<f64>, i: usize| match &expert.biases[i] {
        Some(bias) => y + bias,
        None => y,
    };
    let gate = biased(product(x.view(), expert.gate.view(), exact), 0).mapv(keep);
    let up = biased(product(x.view(), expert.up.view(), exact), 1).mapv(keep);
    let gated = (gate.mapv(|x| keep(expert.activation.apply(x))) * up).mapv(keep);
    biased(product(gated.view(), expert.down.view(), exact), 2).mapv(keep)
}
