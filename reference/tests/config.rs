//! Checklist items 1 to 11: config.json.

use crate::common::{config, ids, input, logits, model, refusal, tiny};
use dsv2_reference::config::{RopeParameters, RopeType, TopkMethod};
use dsv2_reference::{DeepseekV2Config, Dialect};
use serde_json::{Value, json};

#[test]
fn the_released_v2_lite_config_means_what_transformers_reads_from_it() {
    let config = DeepseekV2Config::from_json_str(
        r#"{
        "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 10944,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6,
        "num_hidden_layers": 27, "num_key_value_heads": 16, "pretraining_tp": 1, "q_lora_rank": null,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                         "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": true,
        "tie_word_embeddings": false, "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1", "use_cache": true, "v_head_dim": 128, "vocab_size": 102400
    }"#,
    )
    .unwrap();
    assert_eq!((config.head_dim(), config.qk_head_dim(), config.q_lora_rank), (64, 192, None));
    assert_eq!(config.topk_method().unwrap(), TopkMethod::Greedy);
    assert_eq!(config.parameter_count(), 15_706_484_224);
    assert_eq!(
        config.rope().unwrap(),
        RopeParameters {
            rope_type: RopeType::Yarn,
            rope_theta: 10000.0,
            factor: Some(40.0),
            original_max_position_embeddings: Some(4096),
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(0.707),
            mscale_all_dim: Some(0.707),
            attention_factor: None,
            truncate: true,
        }
    );
    Dialect::ALL.iter().for_each(|&dialect| config.validate(dialect).unwrap());
}

#[test]
fn head_dim_is_the_rotary_dimension_whatever_the_file_says() {
    assert_eq!(config(json!({"head_dim": 128})).head_dim(), 8);
}

#[test]
fn rope_type_is_the_new_name_of_type_and_wins_over_it() {
    let rope = |dict: Value| config(json!({"rope_scaling": dict})).rope().unwrap().rope_type;
    assert_eq!(rope(json!({"type": "linear", "factor": 2.0})), RopeType::Linear);
    assert_eq!(rope(json!({"rope_type": "linear", "factor": 2.0})), RopeType::Linear);
    assert_eq!(rope(json!({"rope_type": "linear", "type": "dynamic", "factor": 2.0})), RopeType::Linear);
    assert_eq!(rope(json!({"factor": 2.0})), RopeType::Default);
    assert_eq!(rope(Value::Null), RopeType::Default);
}

#[test]
fn the_new_layout_of_the_rotary_parameters_means_the_same_as_the_old_one() {
    let old = model::<f64>(json!({"rope_theta": 500.0}));
    let mut dict = tiny(json!({}))["rope_scaling"].clone();
    dict["rope_type"] = dict["type"].take();
    dict.as_object_mut().unwrap().remove("type");
    dict["rope_theta"] = json!(500.0);
    let new = model::<f64>(json!({"rope_scaling": null, "rope_parameters": dict}));
    assert_eq!(logits(&old, &input(ids(1, 5))), logits(&new, &input(ids(1, 5))));
}

#[test]
fn a_missing_q_lora_rank_is_1536_and_null_is_none() {
    let mut value = tiny(json!({}));
    value.as_object_mut().unwrap().remove("q_lora_rank");
    assert_eq!(DeepseekV2Config::from_value(value).unwrap().q_lora_rank, Some(1536));
    assert_eq!(config(json!({"q_lora_rank": null})).q_lora_rank, None);
    let expected = "config: q_lora_rank: expected an integer of 1 to 2147483647, or null, found 0";
    assert_eq!(refusal(Dialect::Hf, json!({"q_lora_rank": 0})), expected);
}

#[test]
fn a_hidden_size_that_the_heads_do_not_divide_is_refused() {
    let expected = "config: hidden_size: expected a multiple of num_attention_heads, 3, found 32";
    assert_eq!(refusal(Dialect::Hf, json!({"num_attention_heads": 3})), expected);
    // MLA does not need it, and DeepSeek's own code does not ask for it.
    config(json!({"num_attention_heads": 3})).validate(Dialect::Deepseek).unwrap();
}

#[test]
fn another_number_of_key_value_heads_is_refused() {
    let expected = "config: num_key_value_heads: expected num_attention_heads, 4, or null, found 2";
    assert_eq!(refusal(Dialect::Hf, json!({"num_key_value_heads": 2})), expected);
}

#[test]
fn yarn_needs_a_factor_and_extends_max_position_embeddings_unless_told_otherwise() {
    let expected = "config: rope_scaling.factor: expected a number > 0, which rope type yarn needs, found nothing";
    assert_eq!(refusal(Dialect::Hf, json!({"rope_scaling": {"type": "yarn"}})), expected);
    let rope = config(json!({"rope_scaling": {"type": "yarn", "factor": 4}})).rope().unwrap();
    assert_eq!(rope.original_max_position_embeddings, Some(256));
}

#[test]
fn an_unknown_rope_type_is_refused() {
    let expected = "config: rope_scaling.type: expected default, linear, dynamic or yarn, \
                    found \"llama3\" (a rope type, but not one of DeepSeek-V2's)";
    assert_eq!(refusal(Dialect::Hf, json!({"rope_scaling": {"type": "llama3", "factor": 4}})), expected);
}

#[test]
fn an_integer_is_a_number() {
    let integers = json!({"routed_scaling_factor": 2, "rms_norm_eps": 1, "attention_dropout": 0});
    let numbers = json!({"routed_scaling_factor": 2.0, "rms_norm_eps": 1.0, "attention_dropout": 0.0});
    let [integers, numbers] = [integers, numbers].map(|patch| logits(&model::<f64>(patch), &input(ids(1, 4))));
    assert_eq!(integers, numbers);
}

#[test]
fn a_number_is_no_integer_and_a_text_is_no_number() {
    let expected = "config: num_attention_heads: expected an integer >= 0, found 4.0";
    assert_eq!(refusal(Dialect::Hf, json!({"num_attention_heads": 4.0})), expected);
    let expected = "config: routed_scaling_factor: expected a number, found \"2.5\"";
    assert_eq!(refusal(Dialect::Hf, json!({"routed_scaling_factor": "2.5"})), expected);
}

#[test]
fn an_unknown_topk_method_is_refused_when_the_model_is_loaded() {
    let expected = "config: topk_method: expected \"greedy\" or \"group_limited_greedy\", \
                    found \"noaux_tc\" (DeepSeek-V3's, not V2's)";
    assert_eq!(refusal(Dialect::Hf, json!({"topk_method": "noaux_tc"})), expected);
    let expected = "config: topk_method: expected \"greedy\" or \"group_limited_greedy\", found \"gready\"";
    assert_eq!(refusal(Dialect::Hf, json!({"topk_method": "gready"})), expected);
}

#[test]
fn the_number_of_experts_per_token_must_be_given() {
    let expected = "config: num_experts_per_tok: expected an integer of 0 to n_routed_experts, 8, found null";
    assert_eq!(refusal(Dialect::Hf, json!({"num_experts_per_tok": null})), expected);
    assert!(DeepseekV2Config::default().validate(Dialect::Hf).is_err());
}

#[test]
fn impossible_groups_and_too_many_experts_per_token_are_refused() {
    let refusal = |patch| refusal(Dialect::Hf, patch);
    assert_eq!(
        refusal(json!({"n_group": 3})),
        "config: n_group: expected a divisor of n_routed_experts, 8, for group_limited_greedy, found 3"
    );
    assert_eq!(
        refusal(json!({"topk_group": 5})),
        "config: topk_group: expected an integer of 1 to n_group, 4, for group_limited_greedy, found 5"
    );
    assert_eq!(
        refusal(json!({"topk_method": "greedy", "num_experts_per_tok": 9})),
        "config: num_experts_per_tok: expected an integer of 0 to n_routed_experts, 8, found 9"
    );
    // Greedy selection does not look at the groups.
    config(json!({"topk_method": "greedy", "n_group": 3, "topk_group": 5})).validate(Dialect::Hf).unwrap();
}

#[test]
fn kept_groups_that_hold_fewer_experts_than_a_token_visits_are_refused() {
    assert_eq!(
        refusal(Dialect::Hf, json!({"topk_group": 1})),
        "config: num_experts_per_tok: expected at most 2, the experts of topk_group = 1 groups, found 3"
    );
}

#[test]
fn an_odd_rotary_dimension_is_refused() {
    let expected = "config: qk_rope_head_dim: expected an even integer, found 7";
    assert_eq!(refusal(Dialect::Hf, json!({"qk_rope_head_dim": 7})), expected);
}

#[test]
fn null_experts_are_refused_where_the_dialect_has_no_meaning_for_them() {
    let expected = "config: n_routed_experts: expected an integer in dialect hf, found null";
    assert_eq!(refusal(Dialect::Hf, json!({"n_routed_experts": null})), expected);
    let expected = "config: n_shared_experts: expected an integer in dialect hf, found null";
    assert_eq!(refusal(Dialect::Hf, json!({"n_shared_experts": null})), expected);
}

#[test]
fn without_a_router_its_fields_may_hold_anything_of_their_type() {
    let mut dense = json!({"first_k_dense_replace": 3, "topk_method": "no_such", "num_experts_per_tok": null});
    model::<f64>(dense.clone());
    dense["topk_method"] = Value::Null;
    assert_eq!(refusal(Dialect::Hf, dense), "config: topk_method: expected a string, found null");
}

#[test]
fn keys_without_effect_are_kept_and_change_nothing() {
    let patch = json!({
        "norm_topk_prob": true, "scoring_func": "sigmoid", "moe_layer_freq": 2, "aux_loss_alpha": 0.5, "seq_aux": false,
        "ep_size": 8, "pretraining_tp": 4, "auto_map": {"AutoModel": "x.Y"}, "initializer_range": 1.0,
        "use_cache": false, "output_router_logits": true, "something_new": [1, 2],
        // These four have an effect in Transformers.
        "sliding_window": 2, "tie_last_hidden_states": true, "per_layer_config": {"0": {"hidden_act": "relu"}},
        "original_max_position_embeddings": 128,
    });
    let input = input(ids(2, 6));
    assert_eq!(logits(&model::<f64>(json!({})), &input), logits(&model::<f64>(patch.clone()), &input));
    let written = config(patch.clone()).to_json();
    patch.as_object().unwrap().iter().for_each(|(key, value)| assert_eq!(&written[key], value, "{key}"));
    assert_eq!(DeepseekV2Config::from_value(written).unwrap(), config(patch));
}
