//! Wrong factors in front of the scores.

use dsv2_reference::config::RopeType;
use dsv2_reference::model::rope::yarn_get_mscale;
use dsv2_reference::stage::table::{ATTN_SCORES, ATTN_WEIGHTS};
use ndarray::ArrayD;

use super::{rope, structural};
use crate::case::Case;
use crate::mutants::scene::Scene;
use crate::mutants::{At, Mutant};

pub const MUTANTS: &[Mutant] = &[
    structural("scale_no_mscale", "YaRN's mscale² is left out of the softmax scale.")
        .when(|case| mscale(case).is_some())
        .reported("huggingface/transformers#47435 (4.54 to 5.14), onnxruntime/mobius#548")
        .at(&[ATTN_SCORES], |s, at| scaled(s, at, mscale(s.case())?.powi(-2))),
    structural("scale_mscale1", "The softmax scale has mscale once, not squared.")
        .when(|case| mscale(case).is_some())
        .at(&[ATTN_SCORES], |s, at| scaled(s, at, 1.0 / mscale(s.case())?)),
    structural(
        "scale_mscale_for_all_dim",
        "The softmax scale is computed from mscale (1 if missing), not from mscale_all_dim.",
    )
    .when(|case| mscale(case).is_some() && rope(case).is_some_and(|rope| rope.mscale != rope.mscale_all_dim))
    .at(&[ATTN_SCORES], |s, at| {
        let rope = s.config().rope().ok()?;
        let other = yarn_get_mscale(rope.factor?, rope.mscale.unwrap_or(1.0));
        scaled(s, at, (other / mscale(s.case())?).powi(2))
    }),
    structural("scale_mscale_always", "The softmax scale has mscale² where it should not.")
        .when(|case| mscale(case).is_none() && rope(case).is_some_and(|rope| rope.factor.is_some_and(|f| f > 1.0)))
        .reported("ggml-org/llama.cpp at 0c1e570: 4e-1 off without the mscale keys")
        .at(&[ATTN_SCORES], |s, at| {
            let rope = s.config().rope().ok()?;
            let all_dim = rope.mscale_all_dim.filter(|m| *m != 0.0).unwrap_or(1.0);
            scaled(s, at, yarn_get_mscale(rope.factor?, all_dim).powi(2))
        }),
    structural("scale_dh_only", "The softmax scale is n^(-1/2): the rotated part is not counted.").at(
        &[ATTN_SCORES],
        |s, at| {
            let c = s.config();
            scaled(s, at, (c.qk_head_dim() as f64 / c.qk_nope_head_dim as f64).sqrt())
        },
    ),
    structural("scale_latent_width", "Absorbed: the softmax scale is (c + r)^(-1/2), the width of the latent query.")
        .at(&[ATTN_SCORES], |s, at| {
            let c = s.config();
            let latent = c.kv_lora_rank + c.qk_rope_head_dim;
            (latent != c.qk_head_dim()).then_some(())?;
            scaled(s, at, (c.qk_head_dim() as f64 / latent as f64).sqrt())
        }),
    structural("double_scale", "The softmax scale is applied twice.")
        .at(&[ATTN_SCORES], |s, at| scaled(s, at, s.softmax_scale()?)),
    structural("weights_scaled", "The attention weights are multiplied by mscale.")
        .when(|case| mscale(case).is_some())
        .at(&[ATTN_WEIGHTS], |s, at| Some(at.value * mscale(s.case())?)),
];

/// The factor whose square is in the softmax scale, if there is one.
fn mscale(case: &Case) -> Option<f64> {
    let rope = rope(case)?;
    let all_dim = rope.mscale_all_dim.filter(|m| *m != 0.0)?;
    let has_it = case.dialect.folds_mscale_into_softmax_scale() && rope.rope_type != RopeType::Default;
    let factor = yarn_get_mscale(rope.factor?, all_dim);
    (has_it && factor != 1.0).then_some(factor)
}

/// The scores with another factor in front of q·k; what the mask adds is not scaled.
fn scaled(scene: &Scene<'_>, at: At<'_>, by: f64) -> Option<ArrayD<f64>> {
    let bias = scene.bias()?;
    let bias = bias.broadcast(at.value.raw_dim())?;
    let mut scores = at.value.clone();
    scores.zip_mut_with(&bias, |score, added| {
        if added.is_finite() {
            *score = (*score - added) * by + added;
        }
    });
    Some(scores)
}
