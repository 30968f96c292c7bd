//! What each kind of attention keeps of a token.

use std::fmt;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::cache::PackedFormat;
use serde::Serialize;

/// Groups of heads that share keys and values, where a model with GQA is imagined: those of DeepSeek 67B.
pub const GQA_GROUPS: usize = 8;

/// What is kept of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// Keys and values of every head.
    Mha,
    /// Of each of 8 groups of heads.
    Gqa,
    /// Of all heads together.
    Mqa,
    /// The latent and the rotary key.
    Mla,
    /// Keys and values of every head, computed from the latent.
    MlaExpanded,
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Attention::Mha => "MHA",
            Attention::Gqa => "GQA, 8 groups",
            Attention::Mqa => "MQA",
            Attention::Mla => "MLA",
            Attention::MlaExpanded => "MLA, expanded",
        })
    }
}

impl Attention {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Mha, Self::Gqa, Self::Mqa, Self::Mla, Self::MlaExpanded];

    /// The lengths of the vectors of a token in one layer: how many there are of each.
    pub fn vectors(self, config: &DeepseekV2Config) -> [(usize, usize); 2] {
        let (n, r, v) = (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim);
        let heads = config.num_attention_heads;
        match self {
            Attention::Mha => [(heads, n), (heads, v)],
            Attention::Gqa => [(heads.min(GQA_GROUPS), n), (heads.min(GQA_GROUPS), v)],
            Attention::Mqa => [(1, n), (1, v)],
            Attention::Mla => [(1, config.kv_lora_rank), (1, r)],
            Attention::MlaExpanded => [(heads, n + r), (heads, v)],
        }
    }

    /// Numbers kept of a token in one layer.
    pub fn numbers(self, config: &DeepseekV2Config) -> usize {
        self.vectors(config).iter().map(|(count, length)| count * length).sum()
    }

    /// Bytes kept of a token in one layer.
    pub fn bytes(self, config: &DeepseekV2Config, format: PackedFormat) -> usize {
        if self == Attention::Mla {
            return format.bytes_per_token(config.kv_lora_rank, config.qk_rope_head_dim);
        }
        let of_vector = |length: usize| match format {
            PackedFormat::Bf16 => 2 * length,
            PackedFormat::Int8 => length + 2 * length.div_ceil(32),
            PackedFormat::Fp8 => length + 4 * length.div_ceil(128),
            PackedFormat::SixBit => (6 * length).div_ceil(8),
        };
        self.vectors(config).iter().map(|&(count, length)| count * of_vector(length)).sum()
    }
}
