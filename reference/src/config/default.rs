//! What a field is that config.json leaves out.

use serde_json::Map;

use super::{DeepseekV2Config, EosTokenId};

impl Default for DeepseekV2Config {
    fn default() -> Self {
        DeepseekV2Config {
            model_type: "deepseek_v2".into(),
            vocab_size: 102400,
            hidden_size: 4096,
            intermediate_size: 11008,
            moe_intermediate_size: 1407,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            hidden_act: "silu".into(),
            max_position_embeddings: 2048,
            initializer_range: 0.02,
            rms_norm_eps: 1e-6,
            use_cache: true,
            pad_token_id: None,
            bos_token_id: Some(1),
            eos_token_id: Some(EosTokenId::One(2)),
            pretraining_tp: Some(1),
            tie_word_embeddings: false,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            attention_bias: false,
            attention_dropout: Some(0.0),
            mlp_bias: false,
            first_k_dense_replace: 0,
            moe_layer_freq: Some(1),
            kv_lora_rank: 512,
            q_lora_rank: Some(1536),
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            n_routed_experts: Some(64),
            n_shared_experts: Some(2),
            num_experts_per_tok: None,
            topk_method: Some("greedy".into()),
            n_group: None,
            topk_group: None,
            routed_scaling_factor: 1.0,
            norm_topk_prob: false,
            scoring_func: None,
            output_router_logits: false,
            num_labels: None,
            id2label: None,
            problem_type: None,
            extra: Map::new(),
            vocab_size_by_default: false,
        }
    }
}
