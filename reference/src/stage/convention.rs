//! Conventions: other ways to write the same numbers. They are recognised and said, and are no error.
//!
//! A convention is a line here: which stages it is about, what is done to read it ([`Turn`], [`Holds`]), and what a
//! report says. The judge tries those of a stage in this order.

use super::table::{CACHED_K_PE, DOWN_PROJ, GATE_PROJ, K_PE, KV_A_PROJ, Layout, Q_A_PROJ, Q_PE, UP_PROJ};
use super::{Stage, name, pattern};
use crate::DeepseekV2Config;

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
    /// `[B, S, H, ..]`, or the same flattened, for `[B, H, S, ..]`.
    HeadsBehind,
    /// `x[0], x[2], .., x[1], x[3], ..` along the last axis.
    Halves,
}

/// Layouts whose rows belong to tokens or keys.
const BY_TOKENS: Of = Of::Layouts(&[Layout::Tokens, Layout::Flat, Layout::Keys, Layout::Logits]);

/// All conventions about places, in the order in which they are tried.
pub const CONVENTIONS: &[Convention] = &[
    Convention { of: Of::Every, turn: Turn::UnitAxes, says: "axes of length 1 more or less" },
    Convention { of: BY_TOKENS, turn: Turn::Rows { fewer: true }, says: "the batch flattened, [B·S, ..]" },
    Convention { of: BY_TOKENS, turn: Turn::Rows { fewer: false }, says: "the batch kept apart, [B, S, ..]" },
    Convention {
        of: Of::Layouts(&[Layout::Heads]),
        turn: Turn::HeadsBehind,
        says: "heads behind the tokens, [B, S, H, ..]",
    },
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

/// A tensor that goes by another name, or holds several stages.
#[derive(Debug)]
pub struct OtherName {
    /// Its name, with `*` for the layer.
    pub name: &'static str,
    /// Whether it means this only in a layer without experts.
    pub dense: bool,
    /// What it holds.
    pub holds: Holds,
    /// What a report says.
    pub says: &'static str,
}

/// What a tensor under another name holds.
#[derive(Clone, Copy, Debug)]
pub enum Holds {
    /// One stage.
    Stage(&'static str),
    /// Two, side by side along the last axis. The function tells where the second begins in a tensor of that width, and
    /// nothing if the model has no such tensor.
    Columns([&'static str; 2], fn(&DeepseekV2Config, usize) -> Option<usize>),
}

/// All other names.
pub const OTHER_NAMES: &[OtherName] = &[
    OtherName {
        name: "model.layers.*.mlp.gate_up_proj",
        dense: true,
        holds: Holds::Columns([GATE_PROJ, UP_PROJ], |c, width| {
            (width == 2 * c.intermediate_size).then_some(c.intermediate_size)
        }),
        says: "mlp.gate_proj and mlp.up_proj, fused",
    },
    OtherName {
        name: "model.layers.*.self_attn.fused_qkv_a_proj_with_mqa",
        dense: false,
        holds: Holds::Columns([Q_A_PROJ, KV_A_PROJ], |c, _| c.q_lora_rank),
        says: "self_attn.q_a_proj and self_attn.kv_a_proj_with_mqa, fused",
    },
    OtherName {
        name: "model.layers.*.mlp",
        dense: true,
        holds: Holds::Stage(DOWN_PROJ),
        says: "the output of mlp.down_proj",
    },
];

/// What a tensor of this name is taken for, and its layer.
pub fn other_name(tensor: &str) -> Option<(&'static OtherName, usize)> {
    let (pattern, layer) = pattern(tensor);
    let other = OTHER_NAMES.iter().find(|other| other.name == pattern)?;
    layer.filter(|layer| name(other.name, *layer) == tensor).map(|layer| (other, layer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_the_conventions_that_concern_it() {
        let of = |stage: &str| of(&Stage::parse(stage).unwrap()).map(|c| c.turn).collect::<Vec<_>>();
        let rows = [Turn::UnitAxes, Turn::Rows { fewer: true }, Turn::Rows { fewer: false }];
        assert_eq!(of("model.norm"), rows);
        assert_eq!(of("model.layers.3.self_attn.q_pe"), [Turn::UnitAxes, Turn::HeadsBehind, Turn::Halves]);
        assert_eq!(of("past_key_values.3.k_pe"), [&rows[..], &[Turn::Halves]].concat());
        assert_eq!(of("loss"), [Turn::UnitAxes]);
    }

    #[test]
    fn other_names_are_known_by_their_layer() {
        let named = |name: &str| other_name(name).map(|(other, layer)| (other.says, layer));
        assert_eq!(named("model.layers.3.mlp"), Some(("the output of mlp.down_proj", 3)));
        assert_eq!(named("model.layers.3.mlp.gate_up_proj").unwrap().1, 3);
        assert_eq!(named("model.layers.03.mlp"), None);
        assert_eq!(named("model.layers.*.mlp"), None);
        assert_eq!(named("mlp.gate_up_proj"), None);
    }
}
