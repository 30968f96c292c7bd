//! Wrong norms, and wrong residual streams around them.

use dsv2_reference::stage::table::{
    INPUT_LAYERNORM, K_PE, KV_A_LAYERNORM, KV_A_PROJ, LAYER, NORM, O_PROJ, POST_ATTENTION_LAYERNORM, Q_A_LAYERNORM,
    Q_A_PROJ,
};
use ndarray::{ArrayD, Axis, s};

use super::{low_rank_queries, structural};
use crate::mutants::arithmetic::{mean_square, rms_norm};
use crate::mutants::parts::rotate;
use crate::mutants::scene::{Scene, shaped};
use crate::mutants::{At, Mutant};

/// The norms of the residual stream.
pub(super) const STREAM_NORMS: &[&str] = &[INPUT_LAYERNORM, POST_ATTENTION_LAYERNORM, NORM];

pub const MUTANTS: &[Mutant] = &[
    structural("norm_w1p", "The gain is 1 + w (Gemma's rule).")
        .at(STREAM_NORMS, |s, at| s.normed(at, |x, w, eps| rms_norm(x, &(w + 1.0), eps))),
    structural("norm_nogain", "The gain is left out.")
        .at(STREAM_NORMS, |s, at| s.normed(at, |x, w, eps| rms_norm(x, &w.mapv(|_| 1.0), eps))),
    structural("norm_nomean", "The sum of the squares stands for their mean.")
        .at(STREAM_NORMS, |s, at| s.normed(at, |x, w, eps| &x / (mean_square(x) * x.len() as f64 + eps).sqrt() * w)),
    structural("norm_layernorm", "The mean is subtracted first, as in LayerNorm.").at(STREAM_NORMS, |s, at| {
        s.normed(at, |x, w, eps| {
            let centred = &x - x.mean().unwrap_or(0.0);
            rms_norm(centred.view(), w, eps)
        })
    }),
    structural("no_final_norm", "The final norm is left out.")
        .at(&[NORM], |s, at| shaped(s.norm_input(at.kind, at.layer)?.rows, at.value)),
    structural("no_kv_an", "The latent of keys and values is not normed.")
        .at(&[KV_A_LAYERNORM], |s, at| shaped(s.norm_input(at.kind, at.layer)?.rows, at.value)),
    structural("no_q_an", "The latent of queries is not normed.")
        .when(low_rank_queries)
        .at(&[Q_A_LAYERNORM], |s, at| shaped(s.rows(Q_A_PROJ, at.layer)?, at.value)),
    structural("kv_an_over_all", "The mean square of the latent includes the rotary key beside it.").at(
        &[KV_A_LAYERNORM],
        |s, at| {
            let input = s.norm_input(at.kind, at.layer)?;
            let both = s.rows(KV_A_PROJ, at.layer)?;
            let mut normed = input.rows;
            for (mut row, both) in normed.rows_mut().into_iter().zip(both.rows()) {
                let scale = 1.0 / (mean_square(both) + input.eps).sqrt();
                row.zip_mut_with(&input.gain, |x, gain| *x *= scale * gain);
            }
            shaped(normed, at.value)
        },
    ),
    structural(
        "kva_split_swap",
        "The rotary key is taken from the front of kv_a_proj_with_mqa, the latent from the back.",
    )
    .at(&[KV_A_LAYERNORM], |s, at| {
        let mut input = s.norm_input(at.kind, at.layer)?;
        let r = s.config().qk_rope_head_dim;
        input.rows = s.rows(KV_A_PROJ, at.layer)?.slice_move(s![.., r..]);
        input.each(at.value, rms_norm)
    })
    .at(&[K_PE], |s, at| {
        let r = s.config().qk_rope_head_dim;
        let front = s.real3(KV_A_PROJ, at.layer)?.slice_move(s![.., .., ..r]);
        rotate(s.rotary()?, front.insert_axis(Axis(1)))
    }),
    structural("eps_latent_from_config", "The norms of the latents use rms_norm_eps; theirs is always 1e-6.")
        .when(|case| case.config.rms_norm_eps > 1e-5)
        .reported("huggingface/candle and ggml-org/llama.cpp: 1.2e-3 off at rms_norm_eps 1e-3")
        .at(&[Q_A_LAYERNORM, KV_A_LAYERNORM], |s, at| {
            let eps = s.config().rms_norm_eps;
            s.normed(at, |x, w, _| rms_norm(x, w, eps))
        }),
    structural("resid_postnorm", "The residual stream goes on from the normed values.")
        .at(&[POST_ATTENTION_LAYERNORM], |s, at| {
            let mut input = s.norm_input(at.kind, at.layer)?;
            input.rows = s.rows(INPUT_LAYERNORM, at.layer)? + s.rows(O_PROJ, at.layer)?;
            input.each(at.value, rms_norm)
        })
        .at(&[LAYER], from_normed),
    structural("resid_no_attention", "The second residual connection starts before attention.")
        .at(&[LAYER], |s, at| shaped(s.stream(at.layer)? + s.feed_forward(at.layer)?, at.value)),
];

fn from_normed(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    shaped(scene.rows(POST_ATTENTION_LAYERNORM, at.layer)? + scene.feed_forward(at.layer)?, at.value)
}
