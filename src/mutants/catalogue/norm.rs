//! Wrong norms, and wrong residual streams around them.

use dsv2_reference::stage::table::{
    INPUT_LAYERNORM, K_PE, KV_A_LAYERNORM, KV_A_PROJ, LAYER, NORM, O_PROJ, POST_ATTENTION_LAYERNORM, Q_A_LAYERNORM,
    Q_A_PROJ,
};
use ndarray::{ArrayD, Axis, s};

use super::{always, low_rank_queries, structural, unreported};
use crate::mutants::arithmetic::{mean_square, rms_norm};
use crate::mutants::scene::{Scene, shaped};
use crate::mutants::{At, Class, Mutant, Step, Variant, real};

/// The norms of the residual stream.
pub(super) const STREAM_NORMS: &[&str] = &[INPUT_LAYERNORM, POST_ATTENTION_LAYERNORM, NORM];

const fn norm(id: &'static str, what: &'static str, acts: &'static [Step]) -> Mutant {
    Mutant { id, class: Class::Structural, what, report: None, applies: always, variant: Variant { acts } }
}

pub const MUTANTS: &[Mutant] = &[
    norm(
        "norm_w1p",
        "The gain is 1 + w (Gemma's rule).",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, eps| rms_norm(x, &(w + 1.0), eps))
        })],
    ),
    norm(
        "norm_nogain",
        "The gain is left out.",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, eps| rms_norm(x, &w.mapv(|_| 1.0), eps))
        })],
    ),
    norm(
        "norm_nomean",
        "The sum of the squares stands for their mean.",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?
                .each(at.value, |x, w, eps| &x / (mean_square(x) * x.len() as f64 + eps).sqrt() * w)
        })],
    ),
    norm(
        "norm_layernorm",
        "The mean is subtracted first, as in LayerNorm.",
        &[real(STREAM_NORMS, |s, at| {
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, eps| {
                let centred = &x - x.mean().unwrap_or(0.0);
                rms_norm(centred.view(), w, eps)
            })
        })],
    ),
    norm(
        "no_final_norm",
        "The final norm is left out.",
        &[real(&[NORM], |s, at| shaped(s.norm_input(at.kind, at.layer)?.rows, at.value))],
    ),
    norm(
        "no_kv_an",
        "The latent of keys and values is not normed.",
        &[real(&[KV_A_LAYERNORM], |s, at| shaped(s.norm_input(at.kind, at.layer)?.rows, at.value))],
    ),
    unreported(
        "no_q_an",
        low_rank_queries,
        "The latent of queries is not normed.",
        &[real(&[Q_A_LAYERNORM], |s, at| shaped(s.rows(Q_A_PROJ, at.layer)?, at.value))],
    ),
    norm(
        "kv_an_over_all",
        "The mean square of the latent includes the rotary key beside it.",
        &[real(&[KV_A_LAYERNORM], |s, at| {
            let input = s.norm_input(at.kind, at.layer)?;
            let both = s.rows(KV_A_PROJ, at.layer)?;
            let mut normed = input.rows;
            for (mut row, both) in normed.rows_mut().into_iter().zip(both.rows()) {
                let scale = 1.0 / (mean_square(both) + input.eps).sqrt();
                row.zip_mut_with(&input.gain, |x, gain| *x *= scale * gain);
            }
            shaped(normed, at.value)
        })],
    ),
    norm(
        "kva_split_swap",
        "The rotary key is taken from the front of kv_a_proj_with_mqa, the latent from the back.",
        &[
            real(&[KV_A_LAYERNORM], |s, at| {
                let mut input = s.norm_input(at.kind, at.layer)?;
                let r = s.config().qk_rope_head_dim;
                input.rows = s.rows(KV_A_PROJ, at.layer)?.slice_move(s![.., r..]);
                input.each(at.value, rms_norm)
            }),
            real(&[K_PE], |s, at| {
                let r = s.config().qk_rope_head_dim;
                let front = s.real3(KV_A_PROJ, at.layer)?.slice_move(s![.., .., ..r]);
                let mut keys = front.insert_axis(Axis(1)).as_standard_layout().into_owned();
                s.rotary()?.rotate(&mut keys);
                Some(keys.into_dyn())
            }),
        ],
    ),
    structural(
        "eps_latent_from_config",
        |case| case.config.rms_norm_eps > 1e-5,
        "The norms of the latents use rms_norm_eps; theirs is always 1e-6.",
        Some("huggingface/candle and ggml-org/llama.cpp: 1.2e-3 off at rms_norm_eps 1e-3"),
        &[real(&[Q_A_LAYERNORM, KV_A_LAYERNORM], |s, at| {
            let eps = s.config().rms_norm_eps;
            s.norm_input(at.kind, at.layer)?.each(at.value, |x, w, _| rms_norm(x, w, eps))
        })],
    ),
    norm(
        "resid_postnorm",
        "The residual stream goes on from the normed values.",
        &[
            real(&[POST_ATTENTION_LAYERNORM], |s, at| {
                let mut input = s.norm_input(at.kind, at.layer)?;
                input.rows = s.rows(INPUT_LAYERNORM, at.layer)? + s.rows(O_PROJ, at.layer)?;
                input.each(at.value, rms_norm)
            }),
            real(&[LAYER], from_normed),
        ],
    ),
    norm(
        "resid_no_attention",
        "The second residual connection starts before attention.",
        &[real(&[LAYER], |s, at| shaped(s.stream(at.layer)? + s.feed_forward(at.layer)?, at.value))],
    ),
];

fn from_normed(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    shaped(scene.rows(POST_ATTENTION_LAYERNORM, at.layer)? + scene.feed_forward(at.layer)?, at.value)
}
