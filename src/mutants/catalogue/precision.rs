//! The right function with too little precision. The judge has to notice in f32; in bf16 most of it is honest noise.

use dsv2_reference::config::RopeType;
use dsv2_reference::stage::table::*;
use ndarray::{Array1, ArrayD, ArrayView1, Axis};

use super::norm::STREAM_NORMS;
use super::tables::{embedding, far, of_angles};
use super::{always, cached, low_rank_queries, moe, rope};
use crate::case::Case;
use crate::mutants::arithmetic::{
    Dot, bf16_accumulator, mean_square, rms_norm, tf32, to_bf16, to_f16, to_fp8, truncated,
};
use crate::mutants::scene::{Scene, shaped};
use crate::mutants::{At, Class, Mutant, Step, Variant, real};

const fn imprecise(id: &'static str, applies: fn(&Case) -> bool, what: &'static str, acts: &'static [Step]) -> Mutant {
    Mutant { id, class: Class::Precision, what, report: None, applies, variant: Variant { acts } }
}

/// Every stage that is one matrix product, and a head's.
const PROJECTIONS: &[&str] =
    &[Q_PROJ, Q_A_PROJ, Q_B_PROJ, KV_A_PROJ, KV_B_PROJ, O_PROJ, GATE_PROJ, UP_PROJ, DOWN_PROJ, LM_HEAD, SCORE];

/// Products and sums within a layer.
const SUMS: &[&str] =
    &[Q_PROJ, Q_A_PROJ, Q_B_PROJ, KV_A_PROJ, KV_B_PROJ, O_PROJ, GATE_PROJ, UP_PROJ, DOWN_PROJ, EXPERTS, SHARED_EXPERTS];

pub const MUTANTS: &[Mutant] = &[
    imprecise(
        "rope_bf16_tables",
        |case| case.inputs.length() > 1,
        "Cosine and sine are rounded to bf16.",
        &[real(&[COS, SIN], |_, at| Some(at.value.mapv(to_bf16)))],
    ),
    imprecise(
        "rope_wide_angle",
        |case| far(case, 10_000) && rope(case).is_some_and(|rope| rope.rope_type != RopeType::Dynamic),
        "Angles are not rounded to fp32, as everybody else's are.",
        &[real(&[COS, SIN], |s, at| {
            let embedding = embedding(s, |_| {})?;
            let (frequencies, factor) = (embedding.inv_freq(), embedding.attention_factor());
            let angle = |position, i: usize| position as f64 * f64::from(frequencies[i]);
            Some(of_angles(s, at, factor, frequencies.len(), angle))
        })],
    ),
    imprecise(
        "eps_main",
        always,
        "The epsilon of the norms is ten times too large.",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, eps| rms_norm(x, w, 10.0 * eps))
        })],
    ),
    imprecise(
        "eps_missing",
        always,
        "The norms have no epsilon.",
        &[real(STREAM_NORMS, |s, at| s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, _| rms_norm(x, w, 0.0)))],
    ),
    imprecise(
        "eps_outside_root",
        always,
        "Epsilon is added to the root, not under it.",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, eps| &x / (mean_square(x).sqrt() + eps) * w)
        })],
    ),
    imprecise(
        "eps_q_latent",
        low_rank_queries,
        "The epsilon of q_a_layernorm is 1e-5.",
        &[real(&[Q_A_LAYERNORM], |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, _| rms_norm(x, w, 1e-5))
        })],
    ),
    imprecise(
        "eps_kv_latent",
        always,
        "The epsilon of kv_a_layernorm is 1e-5.",
        &[real(&[KV_A_LAYERNORM], |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, _| rms_norm(x, w, 1e-5))
        })],
    ),
    imprecise(
        "norm_bf16_stat",
        always,
        "The mean square is rounded to bf16.",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?
                .each(at.value, |x, w, eps| &x * (1.0 / (to_bf16(mean_square(x)) + eps).sqrt()) * w)
        })],
    ),
    imprecise(
        "norm_f16_square",
        always,
        "The squares are summed in IEEE half.",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, eps| {
                let sum = x.iter().fold(0.0, |sum, x| to_f16(sum + x * x));
                &x * (1.0 / (sum / x.len() as f64 + eps).sqrt()) * w
            })
        })],
    ),
    imprecise(
        "acc_bf16",
        always,
        "Sums of products are kept in bf16, rounded after every 16 products.",
        &[real(PROJECTIONS, |s, at| projected(s, at, bf16_accumulator))],
    ),
    imprecise(
        "acc_bf16_kv_b",
        always,
        "The same in kv_b_proj only.",
        &[real(&[KV_B_PROJ], |s, at| projected(s, at, bf16_accumulator))],
    ),
    imprecise(
        "acc_bf16_o",
        always,
        "The same in o_proj only.",
        &[real(&[O_PROJ], |s, at| projected(s, at, bf16_accumulator))],
    ),
    imprecise(
        "acc_bf16_experts",
        moe,
        "The same in the routed experts only.",
        &[real(&[EXPERTS], |s, at| experts(s, at, bf16_accumulator))],
    ),
    imprecise(
        "acc_bf16_head",
        always,
        "The same in the output head only.",
        &[real(&[LM_HEAD, SCORE], |s, at| projected(s, at, bf16_accumulator))],
    ),
    imprecise(
        "tf32",
        always,
        "Matrix products read their operands with 10 bits of fraction, undeclared.",
        &[real(PROJECTIONS, |s, at| projected(s, at, tf32)), real(&[EXPERTS], |s, at| experts(s, at, tf32))],
    ),
    imprecise(
        "tf32_experts",
        moe,
        "The same in the routed experts only.",
        &[real(&[EXPERTS], |s, at| experts(s, at, tf32))],
    ),
    imprecise(
        "truncated",
        always,
        "Results are cut to bf16, not rounded.",
        &[real(SUMS, |_, at| Some(at.value.mapv(truncated)))],
    ),
    imprecise(
        "cache_bf16",
        cached,
        "The cache holds bf16.",
        &[real(&[CACHED_KV, CACHED_K_PE], |_, at| Some(at.value.mapv(to_bf16)))],
    ),
    imprecise(
        "cache_fp8",
        cached,
        "The cache holds latents of 8 bits, one scale each, undeclared.",
        &[real(&[CACHED_KV], |_, at| Some(in_fp8(at)))],
    ),
    imprecise(
        "cache_fp8_key",
        cached,
        "The cache holds rotary keys of 8 bits, undeclared.",
        &[real(&[CACHED_K_PE], |_, at| Some(in_fp8(at)))],
    ),
    imprecise(
        "scores_f16",
        always,
        "The scores are rounded to IEEE half.",
        &[real(&[ATTN_SCORES], |_, at| Some(at.value.mapv(to_f16)))],
    ),
    imprecise(
        "softmax_bf16",
        |case| case.inputs.length() > 1,
        "The softmax computes in bf16.",
        &[real(&[ATTN_WEIGHTS], |s, at| narrow_softmax(s, at, to_bf16))],
    ),
    imprecise(
        "softmax_f16",
        |case| case.inputs.length() > 1,
        "The softmax computes in IEEE half.",
        &[real(&[ATTN_WEIGHTS], |s, at| narrow_softmax(s, at, to_f16))],
    ),
    imprecise(
        "attention_f16",
        always,
        "The output of attention is rounded to IEEE half.",
        &[real(&[ATTN_OUTPUT], |_, at| Some(at.value.mapv(to_f16)))],
    ),
    imprecise(
        "residual_bf16",
        always,
        "The residual stream is kept in bf16.",
        &[real(&[LAYER], |_, at| Some(at.value.mapv(to_bf16)))],
    ),
    imprecise(
        "gate_bf16",
        moe,
        "The router's logits are rounded to bf16.",
        &[real(&[ROUTER_LOGITS], |_, at| Some(at.value.mapv(to_bf16)))],
    ),
    imprecise(
        "gate_tf32",
        moe,
        "The router reads its operands with 10 bits of fraction.",
        &[real(&[ROUTER_LOGITS], |s, at| projected(s, at, tf32))],
    ),
    imprecise(
        "gates_bf16",
        moe,
        "The weights of experts are rounded to bf16.",
        &[real(&[TOPK_WEIGHTS], |_, at| Some(at.value.mapv(to_bf16)))],
    ),
    imprecise(
        "logits_f16",
        always,
        "The output head's result is rounded to IEEE half.",
        &[real(&[LM_HEAD, SCORE], |_, at| Some(at.value.mapv(to_f16)))],
    ),
];

fn projected(scene: &Scene<'_>, at: At<'_>, dot: Dot) -> Option<ArrayD<f64>> {
    scene.projection(at.kind, at.layer)?.apply(at.value, dot)
}

fn experts(scene: &Scene<'_>, at: At<'_>, dot: Dot) -> Option<ArrayD<f64>> {
    let routed = scene.routed(at.layer)?;
    routed.sum(at.value, |e, x| routed.experts[e].forward(x, dot))
}

/// Each latent in e4m3, with its own scale.
fn in_fp8(at: At<'_>) -> ArrayD<f64> {
    let mut quantised = at.value.clone();
    let last = Axis(quantised.ndim() - 1);
    for mut latent in quantised.lanes_mut(last) {
        let scale = latent.iter().fold(0.0f64, |largest, x| largest.max(x.abs())) / 448.0;
        if scale > 0.0 {
            latent.mapv_inplace(|x| to_fp8(x / scale) * scale);
        }
    }
    quantised
}

/// Softmax with every result rounded, the running sum included.
fn narrow_softmax(scene: &Scene<'_>, at: At<'_>, round: fn(f64) -> f64) -> Option<ArrayD<f64>> {
    let mut weights = scene.rows(ATTN_SCORES, at.layer)?;
    let of_row = |row: ArrayView1<'_, f64>| -> Array1<f64> {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            return Array1::zeros(row.len());
        }
        let e = row.mapv(|z| round(round(z - largest).exp()));
        let sum = e.iter().fold(0.0, |sum, e| round(sum + e));
        e.mapv(|e| round(e / sum))
    };
    for mut row in weights.rows_mut() {
        let narrow = of_row(row.view());
        row.assign(&narrow);
    }
    shaped(weights, at.value)
}
