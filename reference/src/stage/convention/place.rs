//! Places: the same numbers, elsewhere in the tensor.

use crate::stage::Stage;
use crate::stage::table::{ATTN_OUTPUT, CACHED_K_PE, K_PE, KV_B_PROJ, Layout, Q_B_PROJ, Q_PE, Q_PROJ};

/// The same numbers in other places of the tensor.
#[derive(Debug)]
pub struct Convention {
    /// The stages that may come so.
    pub of: Of,
    /// Where the numbers are.
    pub turn: Turn,
    /// What a report says.
    pub says: &'static str,
}

/// Which stages a convention is about.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// All.
    Every,
    /// Those with such axes.
    Layouts(&'static [Layout]),
    /// Those of such kinds.
    Kinds(&'static [&'static str]),
}

/// Where the numbers are, compared with Hugging Face's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// In the same order; there are more or fewer axes of length 1.
    UnitAxes,
    /// In the same order, with fewer axes, or with no fewer: rows stay rows.
    Rows {
        /// Whether there are fewer axes.
        fewer: bool,
    },
    /// `[S, B, ..]`, or the same flattened, for `[B, S, ..]`. A program does so everywhere or nowhere.
    SequenceFirst,
    /// `[.., H, w]` for `[.., H·w]`.
    HeadsSplit,
    /// `[B, H, S, w]` for `[B, S, H·w]`.
    HeadsApart,
    /// `[B, S, H, ..]`, or the same flattened, for `[B, H, S, ..]`.
    HeadsBehind,
    /// `[H, B, S, ..]`, or the same flattened, for `[B, H, S, ..]`.
    HeadsFirst,
    /// `[B·H, S, ..]` for `[B, H, S, ..]`.
    HeadsFolded,
    /// `x[0], x[2], .., x[1], x[3], ..` along the last axis.
    Halves,
}

/// Layouts whose rows belong to tokens or keys.
const BY_TOKENS: Of = Of::Layouts(&[Layout::Tokens, Layout::Flat, Layout::Keys, Layout::Logits]);
/// Layouts with an axis for the heads.
const BY_HEADS: Of = Of::Layouts(&[Layout::Heads, Layout::Scores, Layout::Weights]);
/// Stages whose columns are those of one head after the other.
const OF_HEADS: Of = Of::Kinds(&[Q_PROJ, Q_B_PROJ, KV_B_PROJ, ATTN_OUTPUT]);

/// All conventions about places, in the order in which they are tried.
pub const CONVENTIONS: &[Convention] = &[
    Convention { of: Of::Every, turn: Turn::UnitAxes, says: "axes of length 1 more or less" },
    Convention { of: BY_TOKENS, turn: Turn::Rows { fewer: true }, says: "the batch flattened, [B·S, ..]" },
    Convention { of: BY_TOKENS, turn: Turn::Rows { fewer: false }, says: "the batch kept apart, [B, S, ..]" },
    Convention {
        of: Of::Layouts(&[Layout::Tokens, Layout::Flat, Layout::Keys, Layout::Logits, Layout::Heads]),
        turn: Turn::SequenceFirst,
        says: "the sequence before the batch, [S, B, ..]",
    },
    Convention { of: OF_HEADS, turn: Turn::HeadsSplit, says: "heads as an axis, [B, S, H, ..]" },
    Convention { of: OF_HEADS, turn: Turn::HeadsApart, says: "heads as an axis, [B, H, S, ..]" },
    Convention { of: BY_HEADS, turn: Turn::HeadsBehind, says: "heads behind the tokens, [B, S, H, ..]" },
    Convention { of: BY_HEADS, turn: Turn::HeadsFirst, says: "heads before the batch, [H, B·S, ..]" },
    Convention { of: BY_HEADS, turn: Turn::HeadsFolded, says: "heads folded into the batch, [B·H, S, ..]" },
    Convention {
        of: Of::Kinds(&[Q_PE, K_PE, CACHED_K_PE]),
        turn: Turn::Halves,
        says: "de-interleaved halves (even numbers first, as in DeepSeek's own code)",
    },
];

/// The conventions in which a stage may come, in the order in which they are tried.
pub fn of(stage: &Stage) -> impl Iterator<Item = &'static Convention> {
    let Stage { kind, layout, .. } = *stage;
    CONVENTIONS.iter().filter(move |convention| match convention.of {
        Of::Every => true,
        Of::Layouts(layouts) => layouts.contains(&layout),
        Of::Kinds(kinds) => kinds.contains(&kind),
    })
}

/// What is said of a turn.
pub fn says(turn: Turn) -> &'static str {
    CONVENTIONS.iter().find(|convention| convention.turn == turn).map_or("", |convention| convention.says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_the_conventions_that_concern_it() {
        let of = |stage: &str| of(&Stage::parse(stage).unwrap()).map(|c| c.turn).collect::<Vec<_>>();
        let rows = [Turn::UnitAxes, Turn::Rows { fewer: true }, Turn::Rows { fewer: false }, Turn::SequenceFirst];
        let heads = [Turn::HeadsBehind, Turn::HeadsFirst, Turn::HeadsFolded];
        assert_eq!(of("model.norm"), rows);
        let q_pe = [&[Turn::UnitAxes, Turn::SequenceFirst], &heads[..], &[Turn::Halves]].concat();
        assert_eq!(of("model.layers.3.self_attn.q_pe"), q_pe);
        assert_eq!(of("model.layers.3.self_attn.attn_scores"), [&[Turn::UnitAxes], &heads[..]].concat());
        assert_eq!(of("past_key_values.3.k_pe"), [&rows[..], &[Turn::Halves]].concat());
        let split = [&rows[..], &[Turn::HeadsSplit, Turn::HeadsApart]].concat();
        assert_eq!(of("model.layers.3.self_attn.attn_output"), split);
        assert_eq!(of("loss"), [Turn::UnitAxes]);
    }
}
