//! The configurations of the released models.

use serde_json::{Map, Value, json};

use super::DeepseekV2Config;
use crate::{Error, Result};

/// The names that [`DeepseekV2Config::preset`] knows.
pub const PRESETS: [&str; 5] = ["v2", "v2-lite", "coder-v2", "coder-v2-lite", "v2.5"];

impl DeepseekV2Config {
    /// The configuration of a released model, by one of the names in [`PRESETS`].
    ///
    /// | name | layers / hidden / heads | q_lora_rank | routed experts, selection | YaRN mscale | parameters |
    /// |---|---|---|---|---|---|
    /// | `v2` | 60 / 5120 / 128 | 1536 | 160, 6 from 3 of 8 groups, scaled by 16 | 0.707 | 235,741,434,880 |
    /// | `coder-v2` | as `v2` | 1536 | as `v2` | 0.707 (not confirmed) | as `v2` |
    /// | `v2.5` | as `v2` | 1536 | as `v2` | 1.0 | as `v2` |
    /// | `v2-lite` | 27 / 2048 / 16 | none | 64, 6 of all, not scaled | 0.707 | 15,706,484,224 |
    /// | `coder-v2-lite` | as `v2-lite` | none | as `v2-lite` | 0.707 | as `v2-lite` |
    ///
    /// The Chat and Instruct models share the configuration of their base model.
    ///
    /// **Caution:** the mscale of `coder-v2` is not confirmed: the public copies of its config.json that were found
    /// lack `rope_scaling`, and a later configuration of DeepSeek's for a model of this size (`config_236B.json` in the
    /// DeepSeek-V3 repository) leaves mscale at 1.0. It changes the softmax scale by a factor of 1.18; where it
    /// matters, take the checkpoint's own config.json.
    ///
    /// # Errors
    ///
    /// A name that is not in [`PRESETS`].
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "v2" | "coder-v2" => Ok(v2(0.707)),
            "v2.5" => Ok(v2(1.0)),
            "v2-lite" | "coder-v2-lite" => Ok(v2_lite()),
            _ => Err(Error::config("preset", format!("one of {}", PRESETS.join(", ")), format!("{name:?}"))),
        }
    }
}

/// DeepSeek-V2: 236B parameters, 21B of them active for a token (20.85B; 21.38B with the embedding, of which it reads
/// one row).
fn v2(mscale: f64) -> DeepseekV2Config {
    DeepseekV2Config {
        num_hidden_layers: 60,
        hidden_size: 5120,
        num_attention_heads: 128,
        num_key_value_heads: Some(128),
        intermediate_size: 12288,
        moe_intermediate_size: 1536,
        q_lora_rank: Some(1536),
        n_routed_experts: Some(160),
        topk_method: Some("group_limited_greedy".into()),
        n_group: Some(8),
        topk_group: Some(3),
        routed_scaling_factor: 16.0,
        ..common(mscale)
    }
}

/// DeepSeek-V2-Lite: 15.7B parameters, 2.4B of them active for a token (2.45B; 2.66B with the embedding).
fn v2_lite() -> DeepseekV2Config {
    DeepseekV2Config {
        num_hidden_layers: 27,
        hidden_size: 2048,
        num_attention_heads: 16,
        num_key_value_heads: Some(16),
        intermediate_size: 10944,
        moe_intermediate_size: 1408,
        q_lora_rank: None,
        n_routed_experts: Some(64),
        topk_method: Some("greedy".into()),
        n_group: Some(1),
        topk_group: Some(1),
        routed_scaling_factor: 1.0,
        ..common(0.707)
    }
}

/// What all of them have in common.
fn common(mscale: f64) -> DeepseekV2Config {
    let dict = |value: Value| value.as_object().cloned().unwrap_or_else(Map::new);
    DeepseekV2Config {
        vocab_size: 102400,
        hidden_act: "silu".into(),
        max_position_embeddings: 163840,
        rms_norm_eps: 1e-6,
        bos_token_id: Some(100000),
        eos_token_id: Some(super::EosTokenId::One(100001)),
        rope_theta: Some(10000.0),
        rope_scaling: Some(dict(json!({
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": mscale, "mscale_all_dim": mscale,
            "original_max_position_embeddings": 4096, "type": "yarn",
        }))),
        first_k_dense_replace: 1,
        moe_layer_freq: Some(1),
        n_shared_experts: Some(2),
        num_experts_per_tok: Some(6),
        kv_lora_rank: 512,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
        norm_topk_prob: false,
        scoring_func: Some("softmax".into()),
        extra: dict(json!({
            "architectures": ["DeepseekV2ForCausalLM"], "torch_dtype": "bfloat16",
            "aux_loss_alpha": 0.001, "seq_aux": true, "ep_size": 1,
        })),
        ..DeepseekV2Config::default()
    }
}
