//! The right function with too little precision. The judge has to notice in f32; in bf16 most of it is honest noise.

use dsv2_reference::config::RopeType;
use dsv2_reference::stage::table::*;
use ndarray::{Array1, ArrayD, ArrayView1, Axis};

use super::norm::STREAM_NORMS;
use super::tables::{embedding, far, of_angles};
use super::{cached, imprecise, low_rank_queries, moe, rope};
use crate::mutants::arithmetic::{bf16_accumulator, mean_square, rms_norm, tf32, to_bf16, to_f16, to_fp8, truncated};
use crate::mutants::parts::PROJECTIONS;
use crate::mutants::scene::{Scene, shaped};
use crate::mutants::{At, Mutant};

/// Products and sums within a layer.
const SUMS: &[&str] =
    &[Q_PROJ, Q_A_PROJ, Q_B_PROJ, KV_A_PROJ, KV_B_PROJ, O_PROJ, GATE_PROJ, UP_PROJ, DOWN_PROJ, EXPERTS, SHARED_EXPERTS];

pub const MUTANTS: &[Mutant] = &[
    imprecise("rope_bf16_tables", "Cosine and sine are rounded to bf16.")
        .when(|case| case.inputs.length() > 1)
        .at(&[COS, SIN], |_, at| Some(at.value.mapv(to_bf16))),
    imprecise("rope_wide_angle", "Angles are not rounded to fp32, as everybody else's are.")
        .when(|case| far(case, 10_000) && rope(case).is_some_and(|rope| rope.rope_type != RopeType::Dynamic))
        .at(&[COS, SIN], |s, at| {
            let embedding = embedding(s, |_| {})?;
            let (frequencies, factor) = (embedding.inv_freq(), embedding.attention_factor());
            let angle = |position, i: usize| position as f64 * f64::from(frequencies[i]);
            Some(of_angles(s, at, factor, frequencies.len(), angle))
        }),
    imprecise("eps_main", "The epsilon of the norms is ten times too large.")
        .at(STREAM_NORMS, |s, at| s.normed(at, |x, w, eps| rms_norm(x, w, 10.0 * eps))),
    imprecise("eps_missing", "The norms have no epsilon.")
        .at(STREAM_NORMS, |s, at| s.normed(at, |x, w, _| rms_norm(x, w, 0.0))),
    imprecise("eps_outside_root", "Epsilon is added to the root, not under it.")
        .at(STREAM_NORMS, |s, at| s.normed(at, |x, w, eps| &x / (mean_square(x).sqrt() + eps) * w)),
    imprecise("eps_q_latent", "The epsilon of q_a_layernorm is 1e-5.")
        .when(low_rank_queries)
        .at(&[Q_A_LAYERNORM], |s, at| s.normed(at, |x, w, _| rms_norm(x, w, 1e-5))),
    imprecise("eps_kv_latent", "The epsilon of kv_a_layernorm is 1e-5.")
        .at(&[KV_A_LAYERNORM], |s, at| s.normed(at, |x, w, _| rms_norm(x, w, 1e-5))),
    imprecise("norm_bf16_stat", "The mean square is rounded to bf16.")
        .at(STREAM_NORMS, |s, at| s.normed(at, |x, w, eps| &x * (1.0 / (to_bf16(mean_square(x)) + eps).sqrt()) * w)),
    imprecise("norm_f16_square", "The squares are summed in IEEE half.").at(STREAM_NORMS, |s, at| {
        s.normed(at, |x, w, eps| {
            let sum = x.iter().fold(0.0, |sum, x| to_f16(sum + x * x));
            &x * (1.0 / (sum / x.len() as f64 + eps).sqrt()) * w
        })
    }),
    imprecise("acc_bf16", "Sums of products are kept in bf16, rounded after every 16 products.")
        .at(PROJECTIONS, |s, at| s.summed(at, bf16_accumulator)),
    imprecise("acc_bf16_kv_b", "The same in kv_b_proj only.").at(&[KV_B_PROJ], |s, at| s.summed(at, bf16_accumulator)),
    imprecise("acc_bf16_o", "The same in o_proj only.").at(&[O_PROJ], |s, at| s.summed(at, bf16_accumulator)),
    imprecise("acc_bf16_experts", "The same in the routed experts only.")
        .when(moe)
        .at(&[EXPERTS], |s, at| s.summed(at, bf16_accumulator)),
    imprecise("acc_bf16_head", "The same in the output head only.")
        .at(&[LM_HEAD, SCORE], |s, at| s.summed(at, bf16_accumulator)),
    imprecise("tf32", "Matrix products read their operands with 10 bits of fraction, undeclared.")
        .at(PROJECTIONS, |s, at| s.summed(at, tf32))
        .at(&[EXPERTS], |s, at| s.summed(at, tf32)),
    imprecise("tf32_experts", "The same in the routed experts only.")
        .when(moe)
        .at(&[EXPERTS], |s, at| s.summed(at, tf32)),
    imprecise("truncated", "Results are cut to bf16, not rounded.").at(SUMS, |_, at| Some(at.value.mapv(truncated))),
    imprecise("cache_bf16", "The cache holds bf16.")
        .when(cached)
        .at(&[CACHED_KV, CACHED_K_PE], |_, at| Some(at.value.mapv(to_bf16))),
    imprecise("cache_fp8", "The cache holds latents of 8 bits, one scale each, undeclared.")
        .when(cached)
        .at(&[CACHED_KV], |_, at| Some(in_fp8(at))),
    imprecise("cache_fp8_key", "The cache holds rotary keys of 8 bits, undeclared.")
        .when(cached)
        .at(&[CACHED_K_PE], |_, at| Some(in_fp8(at))),
    imprecise("scores_f16", "The scores are rounded to IEEE half.")
        .at(&[ATTN_SCORES], |_, at| Some(at.value.mapv(to_f16))),
    imprecise("softmax_bf16", "The softmax computes in bf16.")
        .when(|case| case.inputs.length() > 1)
        .at(&[ATTN_WEIGHTS], |s, at| narrow_softmax(s, at, to_bf16)),
    imprecise("softmax_f16", "The softmax computes in IEEE half.")
        .when(|case| case.inputs.length() > 1)
        .at(&[ATTN_WEIGHTS], |s, at| narrow_softmax(s, at, to_f16)),
    imprecise("attention_f16", "The output of attention is rounded to IEEE half.")
        .at(&[ATTN_OUTPUT], |_, at| Some(at.value.mapv(to_f16))),
    imprecise("residual_bf16", "The residual stream is kept in bf16.")
        .at(&[LAYER], |_, at| Some(at.value.mapv(to_bf16))),
    imprecise("gate_bf16", "The router's logits are rounded to bf16.")
        .when(moe)
        .at(&[ROUTER_LOGITS], |_, at| Some(at.value.mapv(to_bf16))),
    imprecise("gate_tf32", "The router reads its operands with 10 bits of fraction.")
        .when(moe)
        .at(&[ROUTER_LOGITS], |s, at| s.summed(at, tf32)),
    imprecise("gates_bf16", "The weights of experts are rounded to bf16.")
        .when(moe)
        .at(&[TOPK_WEIGHTS], |_, at| Some(at.value.mapv(to_bf16))),
    imprecise("logits_f16", "The output head's result is rounded to IEEE half.")
        .at(&[LM_HEAD, SCORE], |_, at| Some(at.value.mapv(to_f16))),
];

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
