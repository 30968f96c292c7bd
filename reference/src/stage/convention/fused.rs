//! Stages that are computed from what another one was before it was rounded.
//!
//! A fused kernel keeps in fp32 what goes from one step to the next, and so does a compiler that leaves out a rounding whose
//! result is read at once (`torch.compile`, XLA). What a dump then holds between the steps is a rounded copy: right, but not
//! what the next step was computed from. Where the next step makes a small difference large, as a softmax does, or is fp32 by
//! definition, as the router is, that shows.

use crate::stage::table::*;

/// One line of the table.
#[derive(Debug)]
pub struct Fused {
    /// The kind of stage that is computed so.
    pub stage: &'static str,
    /// The kinds, of the same layer, that are on the way to it and not rounded there.
    pub unrounded: &'static [&'static str],
    /// Whether the residual stream between attention and MLP, which no stage holds, is rounded all the same.
    pub stream_is_rounded: bool,
    /// What a report says of it.
    pub says: &'static str,
}

/// Rotated queries and keys, and the copy in the cache.
macro_rules! rotated {
    ($($also:expr),*) => { &[$($also,)* Q_PE, K_PE, CACHED_K_PE] };
}

/// Everything in attention from the projections on.
macro_rules! in_attention {
    ($($also:expr),*) => { rotated![$($also,)* Q_PROJ, Q_B_PROJ, KV_B_PROJ] };
}

/// All of them; of those for one stage, the one that takes least for granted first.
pub const FUSED: &[Fused] = &[
    Fused { stage: ATTN_SCORES, unrounded: rotated![], stream_is_rounded: false, says: "rotated queries and keys" },
    Fused {
        stage: ATTN_SCORES,
        unrounded: in_attention![],
        stream_is_rounded: false,
        says: "projected and rotated queries and keys",
    },
    Fused { stage: ATTN_WEIGHTS, unrounded: &[ATTN_SCORES], stream_is_rounded: false, says: "scores" },
    Fused {
        stage: ATTN_WEIGHTS,
        unrounded: rotated![ATTN_SCORES],
        stream_is_rounded: false,
        says: "rotated queries and keys, and scores",
    },
    Fused {
        stage: ATTN_WEIGHTS,
        unrounded: in_attention![ATTN_SCORES],
        stream_is_rounded: false,
        says: "projected and rotated queries and keys, and scores",
    },
    Fused {
        stage: ROUTER_LOGITS,
        unrounded: &[POST_ATTENTION_LAYERNORM],
        stream_is_rounded: true,
        says: "the norm's output",
    },
    Fused {
        stage: ROUTER_LOGITS,
        unrounded: &[POST_ATTENTION_LAYERNORM],
        stream_is_rounded: false,
        says: "the norm's output, and the residual stream",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    #[test]
    fn each_line_names_stages_of_one_layer_that_come_before() {
        let place = |kind: &str| STAGES.iter().position(|row| row.kind == kind).expect(kind);
        for line in FUSED {
            assert!(!line.unrounded.is_empty() && !line.says.is_empty());
            for kind in line.unrounded {
                assert!(place(kind) < place(line.stage), "{kind} comes before {}", line.stage);
                assert!(Stage::parse(&kind.replace('*', "0")).is_some_and(|stage| stage.layer == Some(0)));
            }
        }
    }
}
