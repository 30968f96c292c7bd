//! Embedding, biases, output heads and losses.

use dsv2_reference::config::Head;
use dsv2_reference::stage::table::{
    EMBED_TOKENS, KV_A_PROJ, LM_HEAD, LOSS, NORM, O_PROJ, POOLED_LOGITS, Q_A_PROJ, SCORE,
};
use ndarray::{ArrayD, Axis, s};

use super::structural;
use crate::case::Case;
use crate::inputs::{Labels, Tokens};
use crate::mutants::arithmetic::exact;
use crate::mutants::scene::Scene;
use crate::mutants::{At, Mutant};

/// What comes before everything else.
pub const INPUT: &[Mutant] = &[structural("embed_scaled", "Embeddings are multiplied by √D (Gemma's rule).")
    .at(&[EMBED_TOKENS], |s, at| Some(at.value * (s.config().hidden_size as f64).sqrt()))];

pub const MUTANTS: &[Mutant] = &[
    structural("attn_bias_dropped", "The biases of attention are left out.")
        .when(|case| case.config.attention_bias)
        .at(&[Q_A_PROJ, KV_A_PROJ, O_PROJ], without_bias),
    structural("lm_head_tied", "The embedding stands for the output head, though they are not tied.")
        .when(|case| case.head == Head::CausalLm && !case.config.tie_word_embeddings)
        .at(&[LM_HEAD], |s, at| {
            let mut projection = s.projection(LM_HEAD, 0)?;
            projection.weight = s.weights().matrix("model.embed_tokens.weight")?;
            projection.apply(at.value, exact)
        }),
    structural("logits_shifted", "Each position has the logits of the one before.")
        .when(|case| case.head == Head::CausalLm && case.inputs.length() > 1)
        .at(&[LM_HEAD], |s, at| {
            let mut projection = s.projection(LM_HEAD, 0)?;
            let length = s.dims().1;
            for row in (0..projection.x.nrows()).rev().filter(|row| row % length > 0) {
                let before = projection.x.row(row - 1).to_owned();
                projection.x.row_mut(row).assign(&before);
            }
            projection.apply(at.value, exact)
        }),
    structural("loss_unshifted", "Each position is held against its own label, not the next.")
        .when(causal_labels)
        .at(&[LOSS], |s, at| cross_entropy(s, at, 0, true)),
    structural(
        "loss_counts_ignored",
        "The loss is divided by the number of positions, those without a label included.",
    )
    .when(|case| {
        causal_labels(case) && matches!(&case.inputs.labels, Some(Labels::Ids(ids)) if ids.iter().any(|&id| id == -100))
    })
    .at(&[LOSS], |s, at| cross_entropy(s, at, 1, false)),
    structural("pool_last", "The classifier reads the last position, padding or not.")
        .when(|case| case.head == Head::SequenceClassification)
        .at(&[POOLED_LOGITS], |s, _| Some(s.real3(SCORE, 0)?.slice_move(s![.., -1, ..]).into_dyn())),
    structural(
        "pool_before_pad",
        "The classifier reads the token before the first padding, which is the wrong one for padding on the left.",
    )
    .when(|case| case.head == Head::SequenceClassification && case.config.pad_token_id.is_some())
    .at(&[POOLED_LOGITS], |s, at| {
        let Tokens::InputIds(ids) = &s.inputs().tokens else { return None };
        let (score, pad) = (s.real3(SCORE, 0)?, s.config().pad_token_id?);
        let mut pooled = at.value.clone();
        for ((mut pooled, ids), score) in pooled.outer_iter_mut().zip(ids.outer_iter()).zip(score.outer_iter()) {
            let first_pad = ids.iter().position(|id| *id == pad).unwrap_or(ids.len());
            pooled.assign(&score.row(first_pad.checked_sub(1).unwrap_or(ids.len() - 1)));
        }
        Some(pooled)
    }),
    structural("pool_first", "The classifier reads the first position.")
        .when(|case| case.head == Head::SequenceClassification)
        .at(&[POOLED_LOGITS], |s, _| Some(s.real3(SCORE, 0)?.slice_move(s![.., 0, ..]).into_dyn())),
    structural("head_before_norm", "The classifier reads the stream before the final norm.")
        .when(|case| case.head == Head::SequenceClassification)
        .at(&[SCORE], |s, at| {
            let mut projection = s.projection(SCORE, 0)?;
            projection.x = s.norm_input(NORM, 0)?.rows;
            projection.apply(at.value, exact)
        }),
];

/// A projection without its bias.
pub fn without_bias(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    let mut projection = scene.projection(at.kind, at.layer)?;
    projection.bias.take()?;
    projection.apply(at.value, exact)
}

fn causal_labels(case: &Case) -> bool {
    case.head == Head::CausalLm
        && matches!(case.inputs.labels, Some(Labels::Ids(_)))
        && case.inputs.logits_to_keep.is_none()
        && case.inputs.num_items_in_batch.is_none()
}

/// The mean of -log p of the label `shift` positions later, over those that have one, or over all.
fn cross_entropy(scene: &Scene<'_>, at: At<'_>, shift: usize, labelled_only: bool) -> Option<ArrayD<f64>> {
    let Some(Labels::Ids(labels)) = &scene.inputs().labels else { return None };
    let logits = scene.real3(LM_HEAD, 0)?;
    let (mut sum, mut count) = (0.0, 0usize);
    for (logits, labels) in logits.axis_iter(Axis(0)).zip(labels.axis_iter(Axis(0))) {
        for (row, &label) in logits.axis_iter(Axis(0)).zip(labels.iter().skip(shift)) {
            let labelled = label >= 0;
            count += usize::from(labelled || !labelled_only);
            if labelled {
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exponentials = row.iter().map(|z| (z - largest).exp()).sum::<f64>();
                sum += largest + exponentials.ln() - row[label as usize];
            }
        }
    }
    Some(at.value.mapv(|_| sum / count.max(1) as f64))
}
