//! Wrong masks. They show in the scores: minus infinity must stand in exactly the right places.

use dsv2_reference::stage::table::ATTN_SCORES;
use ndarray::{Array2, ArrayD};

use super::{causal, chunked, several_tokens, structural};
use crate::case::Case;
use crate::inputs::AttentionMask;
use crate::mutants::scene::Scene;
use crate::mutants::{At, Mutant};

pub const MUTANTS: &[Mutant] = &[
    structural("causal_plus1", "A token sees the one after it.").when(causal).at(&[ATTN_SCORES], |s, at| {
        let real = s.attend();
        also(s, at, |b, q, t| t == s.past() + q + 1 && real[[b, t]])
    }),
    structural("causal_minus1", "A token does not see itself (the first one does).")
        .when(causal)
        .at(&[ATTN_SCORES], |s, at| without(at, |_, q, t| t == s.past() + q && t > 0)),
    structural("no_causal", "Every token sees all that are there.").when(causal).at(&[ATTN_SCORES], |s, at| {
        let real = s.attend();
        also(s, at, |b, q, t| t > s.past() + q && real[[b, t]])
    }),
    structural("mask_finite", "Forbidden scores are -10, not minus infinity.")
        .when(causal)
        .at(&[ATTN_SCORES], |_, at| {
            Some(at.value.mapv(|score| if score == f64::NEG_INFINITY { -10.0 } else { score }))
        }),
    structural("mask_added_1", "A boolean mask is added to the scores as 0 and 1.")
        .when(causal)
        .reported("huggingface/transformers, eager attention with a boolean 4-D mask")
        .at(&[ATTN_SCORES], |s, at| {
            let bias = s.bias()?;
            let scores = s.heads(at.layer)?.scores() * s.softmax_scale()?;
            Some((scores + bias.mapv(|added| if added == 0.0 { 1.0 } else { 0.0 })).into_dyn())
        }),
    structural("pad_ignored", "Padding is attended to.")
        .when(
            |case| matches!(&case.inputs.attention_mask, Some(AttentionMask::Padding(real)) if real.iter().any(|r| !r)),
        )
        .at(&[ATTN_SCORES], |s, at| also(s, at, |_, q, t| t <= s.past() + q)),
    structural("mask_topleft", "The causal rule counts keys from the first cached one, queries from the chunk's.")
        .when(|case| causal(case) && chunked(case))
        .at(&[ATTN_SCORES], |s, at| without(at, |_, q, t| s.past() > 0 && t > q)),
    structural("packed_ignored", "Packed sequences see each other.")
        .when(|case| packed(case) && case.inputs.position_ids.is_some())
        .at(&[ATTN_SCORES], |s, at| also(s, at, |_, q, t| t <= s.past() + q)),
    structural("gaps_as_packed", "A gap in the positions begins a new sequence, though there is a mask or a cache.")
        .when(|case| !packed(case) && causal(case) && case.inputs.position_ids.is_some())
        .at(&[ATTN_SCORES], |s, at| {
            let segment = segments(&s.all_positions());
            let row = |b: usize| b.min(segment.nrows() - 1);
            without(at, |b, q, t| segment[[row(b), s.past() + q]] != segment[[row(b), t]])
        }),
    structural("mask4d_plus_causal", "The causal rule is added to a 4-D mask, which already is all there is.")
        .when(|case| several_tokens(case) && matches!(case.inputs.attention_mask, Some(AttentionMask::Additive(_))))
        .at(&[ATTN_SCORES], |s, at| without(at, |_, q, t| t > s.past() + q)),
    structural("mask4d_boolean", "A 4-D mask says only who may be seen; what it adds to a score is lost.")
        .when(|case| matches!(&case.inputs.attention_mask, Some(AttentionMask::Additive(added)) if added.dim().1 == 1))
        .at(&[ATTN_SCORES], |s, at| {
            let bias = s.bias()?;
            s.scores_where(at.layer, |b, q, t| bias[[b.min(bias.dim().0 - 1), 0, q, t]] > f64::NEG_INFINITY)
        }),
];

/// Whether the positions tell packed sequences.
fn packed(case: &Case) -> bool {
    !case.use_cache && case.inputs.attention_mask.is_none()
}

/// Scores that are visible as they should be, or where `visible(b, q, t)`.
fn also(scene: &Scene<'_>, at: At<'_>, visible: impl Fn(usize, usize, usize) -> bool) -> Option<ArrayD<f64>> {
    let bias = scene.bias()?;
    let rows = bias.dim().0;
    scene.scores_where(at.layer, |b, q, t| bias[[b.min(rows - 1), 0, q, t]] == 0.0 || visible(b, q, t))
}

/// The scores without those for which `hidden(b, q, t)`.
fn without(at: At<'_>, hidden: impl Fn(usize, usize, usize) -> bool) -> Option<ArrayD<f64>> {
    let mut scores = at.value.clone().into_dimensionality::<ndarray::Ix4>().ok()?;
    for ((b, _, q, t), score) in scores.indexed_iter_mut() {
        if hidden(b, q, t) {
            *score = f64::NEG_INFINITY;
        }
    }
    Some(scores.into_dyn())
}

/// Which sequence each token belongs to, if every step other than 1 begins a new one.
fn segments(positions: &Array2<i64>) -> Array2<usize> {
    let mut segment = Array2::zeros(positions.dim());
    for (mut segment, positions) in segment.rows_mut().into_iter().zip(positions.rows()) {
        for i in 1..positions.len() {
            segment[i] = segment[i - 1] + usize::from(positions[i] != positions[i - 1] + 1);
        }
    }
    segment
}
