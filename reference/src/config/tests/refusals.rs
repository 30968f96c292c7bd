use super::*;

/// What is refused, by reading or by validating.
pub(super) fn refusal(value: Value, dialect: Dialect) -> String {
    let config = DeepseekV2Config::from_value(value.clone());
    match config.and_then(|config| config.validate(dialect)) {
        Ok(()) => panic!("accepted in dialect {dialect}: {value}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_impossible_is_refused_in_every_dialect() {
    let yarn = |patch: Value| {
        let mut rope = json!({ "type": "yarn", "factor": 4, "original_max_position_embeddings": 16 });
        rope.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        json!({ "rope_scaling": rope })
    };
    let longrope = |patch: Value| {
        let mut rope = json!({ "type": "longrope", "short_factor": [1, 1.5], "long_factor": [2, 3],
            "original_max_position_embeddings": 16 });
        rope.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        json!({ "rope_scaling": rope })
    };
    let size = "expected an integer of 1 to 2147483647, found 0";
    let cases: &[(Value, &str)] = &[
        // Types.
        (json!({ "hidden_size": "big" }), "hidden_size: expected an integer >= 0, found \"big\""),
        (json!({ "hidden_size": -16 }), "hidden_size: expected an integer >= 0, found -16"),
        (json!({ "hidden_size": 16.0 }), "hidden_size: expected an integer >= 0, found 16.0"),
        (json!({ "hidden_size": null }), "hidden_size: expected an integer >= 0, found null"),
        (json!({ "q_lora_rank": "none" }), "q_lora_rank: expected an integer >= 0, found \"none\""),
        (json!({ "first_k_dense_replace": true }), "first_k_dense_replace: expected an integer, found true"),
        (json!({ "rms_norm_eps": [1] }), "rms_norm_eps: expected a number, found [1]"),
        (json!({ "use_cache": 1 }), "use_cache: expected true or false, found 1"),
        (json!({ "topk_method": 3 }), "topk_method: expected a string, found 3"),
        (
            json!({ "eos_token_id": "</s>" }),
            "eos_token_id: expected an integer, a list of integers or null, found \"</s>\"",
        ),
        (json!({ "rope_scaling": "yarn" }), "rope_scaling: expected an object, found \"yarn\""),
        (yarn(json!({ "factor": "4" })), "rope_scaling.factor: expected a number, found \"4\""),
        (yarn(json!({ "truncate": 0 })), "rope_scaling.truncate: expected true or false, found 0"),
        (json!({ "model_type": "deepseek_v3" }), "model_type: expected \"deepseek_v2\", found \"deepseek_v3\""),
        (json!({ "num_experts": 4 }), "num_experts: expected the same as n_routed_experts, found 4"),
        (
            json!({ "use_cache": vec![0; 100] }),
            &format!("use_cache: expected true or false, found [{}...", &"0,".repeat(40)[..79]),
        ),
        // Sizes.
        (json!({ "vocab_size": 0 }), &format!("vocab_size: {size}")),
        (json!({ "hidden_size": 0 }), &format!("hidden_size: {size}")),
        (json!({ "intermediate_size": 0 }), &format!("intermediate_size: {size}")),
        (json!({ "moe_intermediate_size": 0 }), &format!("moe_intermediate_size: {size}")),
        (json!({ "num_hidden_layers": 0 }), &format!("num_hidden_layers: {size}")),
        (json!({ "num_attention_heads": 0 }), &format!("num_attention_heads: {size}")),
        (json!({ "max_position_embeddings": 0 }), &format!("max_position_embeddings: {size}")),
        (json!({ "kv_lora_rank": 0 }), &format!("kv_lora_rank: {size}")),
        (json!({ "qk_nope_head_dim": 0 }), &format!("qk_nope_head_dim: {size}")),
        (json!({ "qk_rope_head_dim": 0 }), &format!("qk_rope_head_dim: {size}")),
        (json!({ "v_head_dim": 0 }), &format!("v_head_dim: {size}")),
        (json!({ "num_labels": 0 }), &format!("num_labels: {size}")),
        (json!({ "id2label": {} }), &format!("num_labels: {size}")),
        (json!({ "q_lora_rank": 0 }), "q_lora_rank: expected an integer of 1 to 2147483647, or null, found 0"),
        (
            json!({ "vocab_size": 1_u64 << 40 }),
            "vocab_size: expected an integer of 1 to 2147483647, found 1099511627776",
        ),
        (
            json!({ "n_shared_experts": 1_u64 << 40 }),
            "n_shared_experts: expected an integer of 0 to 2147483647, or null, found 1099511627776",
        ),
        (
            json!({ "num_hidden_layers": 1 << 20 }),
            "num_hidden_layers: expected at most 262144 layers times n_routed_experts, found 8388608",
        ),
        (json!({ "qk_rope_head_dim": 5 }), "qk_rope_head_dim: expected an even integer, found 5"),
        (json!({ "num_key_value_heads": 2 }), "num_key_value_heads: expected num_attention_heads, 4, or null, found 2"),
        // Numbers and names.
        (json!({ "rms_norm_eps": -1e-6 }), "rms_norm_eps: expected a number >= 0, found -0.000001"),
        (json!({ "pad_token_id": 32 }), "pad_token_id: expected a token below vocab_size, 32, or null, found 32"),
        (json!({ "pad_token_id": -33 }), "pad_token_id: expected a token below vocab_size, 32, or null, found -33"),
        (json!({ "hidden_act": "swiglu" }), "hidden_act: expected one of silu, swish, gelu, "),
        (json!({ "hidden_act": "xielu" }), "hidden_act: expected one of silu, swish, gelu, "),
        (
            json!({ "problem_type": "ranking" }),
            "problem_type: expected regression, single_label_classification or multi_label_classification, found \"ranking\"",
        ),
        (
            json!({ "problem_type": "single_label_classification", "num_labels": 1 }),
            "num_labels: expected at least 2 for problem_type single_label_classification, found 1",
        ),
        // Rotary embedding.
        (json!({ "rope_theta": 0, "rope_scaling": null }), "rope_theta: expected a number > 0, found 0"),
        (json!({ "rope_theta": null }), "rope_theta: expected a number > 0, found null"),
        (yarn(json!({ "rope_theta": -5 })), "rope_scaling.rope_theta: expected a number > 0, found -5"),
        (yarn(json!({ "rope_theta": null })), "rope_scaling.rope_theta: expected a number > 0, found null"),
        (
            yarn(json!({ "rope_theta": 1 })),
            "rope_theta: expected a number other than 1 (yarn divides by its logarithm)",
        ),
        (yarn(json!({ "factor": 0 })), "rope_scaling.factor: expected a number > 0, found 0"),
        (yarn(json!({ "factor": -4.5 })), "rope_scaling.factor: expected a number > 0, found -4.5"),
        (
            json!({ "rope_scaling": {"type": "yarn"} }),
            "rope_scaling.factor: expected a number > 0, which rope type yarn needs, found nothing",
        ),
        (
            yarn(json!({ "factor": null, "mscale_all_dim": 0.7 })),
            "rope_scaling.factor: expected a number > 0, which rope type yarn needs, found null",
        ),
        (
            json!({ "rope_scaling": null, "rope_parameters": {"rope_type": "linear", "factor": null} }),
            "rope_parameters.factor: expected a number > 0, which rope type linear needs, found null",
        ),
        (
            json!({ "rope_scaling": {"type": "dynamic"} }),
            "rope_scaling.factor: expected a number > 0, which rope type dynamic needs, found nothing",
        ),
        (
            json!({ "qk_rope_head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2} }),
            "qk_rope_head_dim: expected more than 2 for rope type dynamic (its exponent is r/(r-2)), found 2",
        ),
        (
            yarn(json!({ "original_max_position_embeddings": 0 })),
            "rope_scaling.original_max_position_embeddings: expected an integer >= 1, found 0",
        ),
        (
            yarn(json!({ "original_max_position_embeddings": null })),
            "rope_scaling.original_max_position_embeddings: expected an integer >= 1, found null",
        ),
        (yarn(json!({ "beta_fast": -1 })), "rope_scaling.beta_fast: expected a number >= 0, or null, found -1"),
        (yarn(json!({ "mscale": -1 })), "rope_scaling.mscale: expected a number >= 0, or null, found -1"),
        (
            yarn(json!({ "type": "ntk" })),
            "rope_scaling.type: expected default, linear, dynamic, yarn, llama3, longrope or proportional, found \"ntk\"",
        ),
        (
            yarn(json!({ "rope_type": null })),
            "rope_scaling.rope_type: expected default, linear, dynamic, yarn, llama3, longrope or proportional, found null",
        ),
        (
            json!({ "partial_rotary_factor": 0.5 }),
            "partial_rotary_factor: expected 1 (with rope type yarn all of qk_rope_head_dim is rotated), found 0.5",
        ),
        (
            yarn(json!({ "partial_rotary_factor": 0.5 })),
            "rope_scaling.partial_rotary_factor: expected 1 (with rope type yarn all of qk_rope_head_dim is rotated), found 0.5",
        ),
        (
            json!({ "original_max_position_embeddings": null }),
            "original_max_position_embeddings: expected an integer >= 1, found null",
        ),
        (
            json!({ "original_max_position_embeddings": 0 }),
            "original_max_position_embeddings: expected an integer >= 1, found 0",
        ),
        (
            json!({ "rope_scaling": {"type": "llama3", "factor": 8, "high_freq_factor": 4} }),
            "rope_scaling.low_freq_factor: expected a number > 0, which rope type llama3 needs, found nothing",
        ),
        (
            json!({ "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 0, "high_freq_factor": 4} }),
            "rope_scaling.low_freq_factor: expected a number > 0, found 0",
        ),
        (
            longrope(json!({ "long_factor": null })),
            "rope_scaling.long_factor: expected 2 numbers > 0, half of qk_rope_head_dim, which rope type longrope needs, found null",
        ),
        (
            longrope(json!({ "short_factor": [1, 2, 3] })),
            "rope_scaling.short_factor: expected 2 numbers > 0, half of qk_rope_head_dim, which rope type longrope needs, found 3 numbers",
        ),
        (
            longrope(json!({ "short_factor": [1, 0] })),
            "rope_scaling.short_factor: expected 2 numbers > 0, half of qk_rope_head_dim, which rope type longrope needs, found a number that is not > 0",
        ),
        (
            longrope(json!({ "original_max_position_embeddings": 1 })),
            "rope_scaling.original_max_position_embeddings: expected an integer >= 2 (longrope divides by its logarithm), found 1",
        ),
        (
            longrope(json!({ "mscale_all_dim": 1 })),
            "rope_scaling.factor: expected a number > 0, which rope type longrope needs, found nothing",
        ),
        (
            json!({ "rope_scaling": {"type": "proportional", "partial_rotary_factor": 1.5} }),
            "rope_scaling.partial_rotary_factor: expected a number of 0 to 1, found 1.5",
        ),
        (
            json!({ "rope_scaling": {"type": "proportional", "partial_rotary_factor": null} }),
            "rope_scaling.partial_rotary_factor: expected a number of 0 to 1, found null",
        ),
        (
            json!({ "rope_scaling": {"type": "proportional", "factor": null} }),
            "rope_scaling.factor: expected a number > 0, which rope type proportional needs, found null",
        ),
        // Routing.
        (json!({ "n_routed_experts": 0 }), "n_routed_experts: expected an integer >= 1, found 0"),
        (
            json!({ "num_experts_per_tok": 9 }),
            "num_experts_per_tok: expected an integer of 0 to n_routed_experts, 8, found 9",
        ),
        (
            json!({ "num_experts_per_tok": null }),
            "num_experts_per_tok: expected an integer of 0 to n_routed_experts, 8, found null",
        ),
        (
            json!({ "num_experts_per_tok": 5 }),
            "num_experts_per_tok: expected at most 4, the experts of topk_group = 2 groups, found 5",
        ),
        (
            json!({ "topk_method": "gready" }),
            "topk_method: expected \"greedy\" or \"group_limited_greedy\", found \"gready\"",
        ),
        (json!({ "topk_method": null }), "topk_method: expected \"greedy\" or \"group_limited_greedy\", found null"),
        (
            json!({ "topk_method": "noaux_tc" }),
            "topk_method: expected \"greedy\" or \"group_limited_greedy\", found \"noaux_tc\" (DeepSeek-V3's, not V2's)",
        ),
        (
            json!({ "n_group": 3 }),
            "n_group: expected a divisor of n_routed_experts, 8, for group_limited_greedy, found 3",
        ),
        (
            json!({ "n_group": 0 }),
            "n_group: expected a divisor of n_routed_experts, 8, for group_limited_greedy, found 0",
        ),
        (
            json!({ "n_group": null }),
            "n_group: expected a divisor of n_routed_experts, 8, for group_limited_greedy, found null",
        ),
        (
            json!({ "topk_group": 5 }),
            "topk_group: expected an integer of 1 to n_group, 4, for group_limited_greedy, found 5",
        ),
        (
            json!({ "topk_group": 0 }),
            "topk_group: expected an integer of 1 to n_group, 4, for group_limited_greedy, found 0",
        ),
        (
            json!({ "topk_group": null }),
            "topk_group: expected an integer of 1 to n_group, 4, for group_limited_greedy, found null",
        ),
    ];
    for (patch, expected) in cases {
        for dialect in Dialect::ALL {
            let message = refusal(small_with(patch.clone()), dialect);
            let expected = format!("config: {expected}");
            assert!(message.starts_with(&expected), "{patch}\n   expected: {expected}\n      found: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}

#[test]
fn each_dialect_refuses_what_it_does_not_have() {
    use Dialect::{Deepseek, Hf, HfPre515};
    let cases = [
        (Hf, json!({ "hidden_size": 18 }), "hidden_size: expected a multiple of num_attention_heads, 4, found 18"),
        (Hf, json!({ "n_routed_experts": null }), "n_routed_experts: expected an integer in dialect hf, found null"),
        (
            HfPre515,
            json!({ "n_routed_experts": null }),
            "n_routed_experts: expected an integer in dialect hf-pre-5.15, found null",
        ),
        (Hf, json!({ "n_shared_experts": null }), "n_shared_experts: expected an integer in dialect hf, found null"),
        (Deepseek, json!({ "scoring_func": "sigmoid" }), "scoring_func: expected \"softmax\", found \"sigmoid\""),
        (Deepseek, json!({ "moe_layer_freq": 0 }), "moe_layer_freq: expected an integer >= 1, found 0"),
        (Deepseek, json!({ "moe_layer_freq": null }), "moe_layer_freq: expected an integer >= 1, found null"),
        (Deepseek, json!({ "scoring_func": [1] }), "scoring_func: expected \"softmax\", found [1]"),
        (
            Deepseek,
            json!({ "rope_scaling": {"type": "proportional"} }),
            "rope_scaling.type: expected default, linear, dynamic or yarn, which are those of DeepSeek's code, found proportional",
        ),
        (
            Deepseek,
            json!({ "original_max_position_embeddings": 32 }),
            "original_max_position_embeddings: expected what rope_scaling.original_max_position_embeddings says: \
             DeepSeek's code reads no other, found 32",
        ),
        (
            Hf,
            json!({ "sliding_window": 4096 }),
            "sliding_window: expected null: Transformers' cache then drops keys that its mask lets be seen, found 4096",
        ),
        (
            Hf,
            json!({ "attention_chunk_size": 4 }),
            "attention_chunk_size: expected null: Transformers' cache then drops keys that its mask lets be seen, found 4",
        ),
        (
            HfPre515,
            json!({ "is_causal": false }),
            "is_causal: expected true: Transformers then lets tokens see those behind them, found false",
        ),
        (
            Hf,
            json!({ "per_layer_config": {"0": {"hidden_act": "relu"}} }),
            "per_layer_config: expected null or {}: all layers of this model are alike, found {\"0\":{\"hidden_act\":\"relu\"}}",
        ),
        (
            Hf,
            json!({ "kv_sharing_modes": ["own", "reuse"] }),
            "kv_sharing_modes: expected null: Transformers then keeps no cache of some layers, found [\"own\",\"reuse\"]",
        ),
        (
            Hf,
            json!({ "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"] }),
            "layer_types: expected \"full_attention\" for each of the 4 layers, or null, found \
             [\"full_attention\",\"sliding_attention\",\"full_attention\",\"full_attention\"]",
        ),
        (
            Deepseek,
            json!({ "mlp_bias": true }),
            "mlp_bias: expected false: DeepSeek's code has no such biases, found true",
        ),
        (
            Deepseek,
            json!({ "rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2} }),
            "rope_scaling.type: expected the same as rope_type, \"linear\", found \"yarn\"",
        ),
        (
            Deepseek,
            json!({ "rope_scaling": {"type": "yarn", "factor": 2} }),
            "rope_scaling.original_max_position_embeddings: expected an integer: where it is missing, DeepSeek's code \
             takes 4096 and Transformers max_position_embeddings, found nothing",
        ),
        (
            Deepseek,
            json!({ "rope_scaling":
                {"type": "yarn", "factor": 2, "original_max_position_embeddings": 16, "truncate": false} }),
            "rope_scaling.truncate: expected true or nothing: DeepSeek's code has no such key, found false",
        ),
    ];
    for (dialect, patch, expected) in cases {
        assert_eq!(refusal(small_with(patch), dialect), format!("config: {expected}"));
    }
}

#[test]
fn a_configuration_changed_by_hand_is_validated_too() {
    let small = accepted(small(), Dialect::Hf);
    for (bad, field) in [
        (DeepseekV2Config { rms_norm_eps: f64::NAN, ..small.clone() }, "rms_norm_eps"),
        (DeepseekV2Config { rope_theta: Some(f64::INFINITY), ..small.clone() }, "rope_theta"),
        (DeepseekV2Config { routed_scaling_factor: f64::NAN, ..small.clone() }, "routed_scaling_factor"),
        (DeepseekV2Config { hidden_size: 0, ..small.clone() }, "hidden_size"),
    ] {
        let message = bad.validate(Dialect::Hf).unwrap_err().to_string();
        assert!(message.starts_with(&format!("config: {field}: expected ")), "{message}");
    }
}
