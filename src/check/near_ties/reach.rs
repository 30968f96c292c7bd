//! What a choice of experts reaches: which stages, and in them which tokens.

use std::collections::{BTreeSet, HashSet};

use dsv2_reference::stage::table::{ATTN_OUTPUT, ATTN_SCORES, ATTN_WEIGHTS, TOPK_INDICES};
use dsv2_reference::stage::{self, Layout, Stage, flow};

use super::Question;
use crate::inputs::{AttentionMask, LogitsToKeep};

/// The choices between a stage and what the dump holds, none of which the dump holds.
#[derive(Clone, Debug)]
pub struct Span {
    /// The layers of these choices.
    pub layers: BTreeSet<usize>,
    /// Those of them from which attention carries a choice to other tokens.
    pub mixed: HashSet<usize>,
}

impl Span {
    /// Of a stage.
    pub fn of(name: &str, question: &Question<'_>) -> Self {
        let held = |name: &str| question.teacher.get(name).is_some();
        let exists = |name: &str| question.names.contains(name);
        let mut between = flow::sources(name, &question.case.config, exists, held).not_held;
        let is = |name: &String, kinds: &[&str]| {
            Stage::parse(name).filter(|stage| kinds.contains(&stage.kind)).and_then(|stage| stage.layer)
        };
        let layers: BTreeSet<usize> = between.iter().filter_map(|name| is(name, &[TOPK_INDICES])).collect();
        between.insert(name.to_owned());
        let attention = |name| is(name, &[ATTN_SCORES, ATTN_WEIGHTS, ATTN_OUTPUT]);
        let last_attention = between.iter().filter_map(attention).max();
        let mixed = layers.iter().copied().filter(|layer| last_attention.is_some_and(|last| *layer < last)).collect();
        Span { layers, mixed }
    }

    /// Whether each choice reaches its own token alone.
    pub fn is_by_token(&self) -> bool {
        self.mixed.is_empty()
    }
}

/// The stage that says which experts the tokens of a layer go to.
pub fn choice_of(layer: usize) -> String {
    stage::name(TOPK_INDICES, layer)
}

/// Whose a row of a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The sequence; all of them, if there is none.
    pub sequence: Option<usize>,
    /// The place in it; the whole sequence, if there is none.
    pub place: Option<usize>,
}

impl Owner {
    /// Of a row of a stage of this shape.
    pub fn of(stage: &Stage, shape: &[usize], row: usize, question: &Question<'_>) -> Self {
        let inputs = &question.case.inputs;
        let (batch, length) = (inputs.batch().max(1), inputs.length().max(1));
        let rows: usize = shape.iter().rev().skip(1).product();
        let whole = |sequence| Owner { sequence, place: None };
        let in_order = |each: usize| match each {
            0 => whole(None),
            each => Owner { sequence: Some(row / each), place: Some(row % each) },
        };
        match stage.layout {
            Layout::Tokens | Layout::Flat | Layout::Keys | Layout::Logits if rows == batch * length => in_order(length),
            Layout::Heads | Layout::Scores | Layout::Weights if rows.is_multiple_of(batch * length) => {
                let heads = rows / (batch * length);
                Owner { sequence: Some(row / (heads * length)), place: Some(row % length) }
            }
            Layout::Logits => match inputs.logits_to_keep {
                Some(LogitsToKeep::Last(_)) if question.case.chunks.len() == 1 && rows.is_multiple_of(batch) => {
                    let kept = rows / batch;
                    let place = (length + row % kept).checked_sub(kept);
                    Owner { sequence: Some(row / kept), place }
                }
                Some(LogitsToKeep::Mask(_)) => whole(None),
                _ if rows.is_multiple_of(batch) && rows > 0 => whole(Some(row / (rows / batch))),
                _ => whole(None),
            },
            Layout::Whole if rows == batch => whole(Some(row)),
            _ => whole(None),
        }
    }

    /// Whether the choice of a token in `layer` can move the row.
    pub fn hears(&self, token: usize, layer: usize, span: &Span, question: &Question<'_>) -> bool {
        let length = question.case.inputs.length().max(1);
        let (sequence, place) = (token / length, token % length);
        // a mask for each query may let a token see those behind it
        let ahead = matches!(question.case.inputs.attention_mask, Some(AttentionMask::Additive(_)));
        let of_its_sequence = self.sequence.is_none_or(|own| own == sequence);
        of_its_sequence
            && self.place.is_none_or(|own| match span.mixed.contains(&layer) {
                true => ahead || place <= own,
                false => place == own,
            })
    }

    /// Whether the row is this token's.
    pub fn is(&self, token: usize, question: &Question<'_>) -> bool {
        let length = question.case.inputs.length().max(1);
        self.sequence.is_none_or(|own| own == token / length) && self.place == Some(token % length)
    }
}
