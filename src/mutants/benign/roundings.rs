//! Roundings in other places than the reference's: norms, the residual stream, attention.

use dsv2_reference::stage::table::*;
use ndarray::{Array2, Array4, ArrayD, Axis, s};

use super::{Benign, narrow};
use crate::mutants::At;
use crate::mutants::arithmetic::{exact, mean_square, product, rms_norm, to_f32};
use crate::mutants::parts::rotate;
use crate::mutants::scene::{Scene, rows, shaped};

const NORMS: &[&str] = &[INPUT_LAYERNORM, Q_A_LAYERNORM, KV_A_LAYERNORM, POST_ATTENTION_LAYERNORM, NORM];

pub const BENIGN: &[Benign] = &[
    Benign::new(
        "norm_rounded_twice",
        "Norms round the normed value before it is multiplied by the gain (Transformers' order).",
    )
    .at(NORMS, |s, at| {
        s.normed(at, |x, w, eps| {
            let scale = to_f32(1.0 / to_f32(mean_square(x) + eps).sqrt());
            x.mapv(|x| s.keep(to_f32(x * scale))) * w
        })
    }),
    Benign::new("norm_gain_first", "Norms multiply by the gain before they divide.").at(NORMS, |s, at| {
        s.normed(at, |x, w, eps| {
            let root = to_f32(to_f32(mean_square(x) + eps).sqrt());
            (&x * w).mapv(|y| to_f32(to_f32(y) / root))
        })
    }),
    Benign::new("residual_wide", "The residual stream is not rounded between layers.")
        .when(narrow)
        .at(&[INPUT_LAYERNORM, POST_ATTENTION_LAYERNORM, NORM], norm_of_wide_stream)
        .at(&[LAYER], |s, at| shaped(wide_middle(s, at.layer)? + s.feed_forward(at.layer)?, at.value)),
    Benign::new("middle_rounded", "The residual stream is rounded after attention too.")
        .when(narrow)
        .at(&[POST_ATTENTION_LAYERNORM], |s, at| {
            let mut input = s.norm_input(POST_ATTENTION_LAYERNORM, at.layer)?;
            input.rows.mapv_inplace(|x| s.keep(x));
            input.each(at.value, rms_norm)
        })
        .at(&[LAYER], |s, at| {
            let middle = s.middle(at.layer)?.mapv(|x| s.keep(x));
            shaped(middle + s.feed_forward(at.layer)?, at.value)
        }),
    Benign::new(
        "norm_of_unrounded",
        "Norms of latents and rotations read what a projection computed before it was rounded (one fused kernel).",
    )
    .when(narrow)
    .at(&[Q_A_LAYERNORM, KV_A_LAYERNORM], |s, at| {
        let mut input = s.norm_input(at.kind, at.layer)?;
        let source = if at.kind == Q_A_LAYERNORM { Q_A_PROJ } else { KV_A_PROJ };
        let width = input.gain.len();
        input.rows = rows(s.unrounded(source, at.layer)?)?.slice_move(s![.., ..width]);
        input.each(at.value, rms_norm)
    })
    .at(&[K_PE], |s, at| {
        let both = s.unrounded(KV_A_PROJ, at.layer)?.clone().into_dimensionality::<ndarray::Ix3>().ok()?;
        rotate(s.rotary()?, both.slice_move(s![.., .., s.config().kv_lora_rank..]).insert_axis(Axis(1)))
    }),
    Benign::new(
        "scores_rounded_each_op",
        "q·k is rounded, then the scaled score, then the masked one (Transformers' eager attention).",
    )
    .when(narrow)
    .at(&[ATTN_SCORES], |s, at| {
        let scale = s.softmax_scale()?;
        let scores = s.heads(at.layer)?.scores().mapv(|score| s.keep(s.keep(score) * scale));
        Some((scores + s.bias()?).into_dyn())
    }),
    Benign::new("weights_wide", "The attention weights are not rounded before they meet the values.").when(narrow).at(
        &[ATTN_OUTPUT],
        |s, at| {
            let weights = s.unrounded(ATTN_WEIGHTS, at.layer)?.clone().into_dimensionality().ok()?;
            s.attend_with(&weights, &s.values(at.layer)?)
        },
    ),
    Benign::new(
        "absorbed_rounded",
        "Attention on the latents, where the query and the result are rounded in latent space too.",
    )
    .when(narrow)
    .absorbed()
    .at(&[ATTN_SCORES], latent_scores)
    .at(&[ATTN_OUTPUT], latent_attention),
];

/// The stream after attention, of a stream that is not rounded between layers.
fn wide_middle(scene: &Scene<'_>, layer: usize) -> Option<Array2<f64>> {
    Some(wide_stream(scene, layer)? + scene.rows(O_PROJ, layer)?)
}

fn wide_stream(scene: &Scene<'_>, layer: usize) -> Option<Array2<f64>> {
    match layer.checked_sub(1) {
        None => scene.stream(0),
        Some(before) => rows(scene.unrounded(LAYER, before)?),
    }
}

fn norm_of_wide_stream(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    let mut input = scene.norm_input(at.kind, at.layer)?;
    input.rows = match at.kind {
        POST_ATTENTION_LAYERNORM => wide_middle(scene, at.layer)?,
        NORM => wide_stream(scene, scene.config().num_hidden_layers)?,
        _ => wide_stream(scene, at.layer)?,
    };
    input.each(at.value, rms_norm)
}

/// Scores from a rounded latent query.
fn latent_scores(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    let n = scene.config().qk_nope_head_dim;
    let (q_nope, latents) = (scene.queries(at.layer)?.slice_move(s![.., .., .., ..n]), scene.latents(at.layer)?);
    let (q_pe, keys) = (scene.real4(Q_PE, at.layer)?, scene.rotated_keys(at.layer)?);
    let (batch, heads, length, _) = q_nope.dim();
    let mut scores = Array4::zeros((batch, heads, length, latents.len_of(Axis(1))));
    for h in 0..heads {
        let (w_uk, _) = scene.absorbed_weights(at.layer, h)?;
        for b in 0..batch {
            let query = q_nope.slice(s![b, h, .., ..]).dot(&w_uk).mapv(|x| scene.keep(x));
            let latent = product(query.view(), latents.index_axis(Axis(0), b), exact);
            let rotated = product(q_pe.slice(s![b, h, .., ..]), keys.index_axis(Axis(0), b), exact);
            scores.slice_mut(s![b, h, .., ..]).assign(&(latent + rotated));
        }
    }
    scene.masked(scores)
}

/// Values from a rounded sum of latents.
fn latent_attention(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    let (weights, latents) = (scene.real4(ATTN_WEIGHTS, at.layer)?, scene.latents(at.layer)?);
    let (batch, heads, length, _) = weights.dim();
    let mut output = Array4::zeros((batch, length, heads, scene.config().v_head_dim));
    for h in 0..heads {
        let (_, w_uv) = scene.absorbed_weights(at.layer, h)?;
        for b in 0..batch {
            let context = weights.slice(s![b, h, .., ..]).dot(&latents.index_axis(Axis(0), b));
            let context = context.mapv(|x| scene.keep(x));
            output.slice_mut(s![b, .., h, ..]).assign(&product(context.view(), w_uv.view(), exact));
        }
    }
    shaped(output, at.value)
}
