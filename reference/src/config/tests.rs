use serde_json::json;

use super::*;

mod notes;
mod refusals;
mod sizes;

/// config.json of deepseek-ai/DeepSeek-V2-Lite.
const V2_LITE: &str = r#"{
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config", "AutoModel": "modeling_deepseek.DeepseekV2Model",
                 "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"},
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
}"#;

/// A small model with all parts: 4 layers, 8 experts in 4 groups, YaRN.
fn small() -> Value {
    json!({
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 12,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64, "first_k_dense_replace": 1,
        "kv_lora_rank": 10, "q_lora_rank": 6, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
        "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3,
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16},
    })
}

/// `small` with other values of some keys.
fn small_with(patch: Value) -> Value {
    let mut value = small();
    for (key, patched) in patch.as_object().unwrap() {
        value[key] = patched.clone();
    }
    value
}

fn accepted(value: Value, dialect: Dialect) -> DeepseekV2Config {
    let config = DeepseekV2Config::from_value(value).unwrap();
    config.validate(dialect).unwrap();
    config
}

fn rope_of(rope_scaling: Value) -> RopeParameters {
    DeepseekV2Config::from_value(small_with(json!({ "rope_scaling": rope_scaling }))).unwrap().rope().unwrap()
}

#[test]
fn texts_of_the_file_are_one_short_line_in_messages() {
    let refused = |text: &str| DeepseekV2Config::from_json_str(text).unwrap_err().to_string();
    // Neither JSON's own escapes nor its length limits what a message may hold.
    assert_eq!(refused("\"\u{7f}\u{85}\""), "config: the text: expected a JSON object, found \"\\u{7f}\\u{85}\"");
    let long = "x".repeat(10_000);
    for text in [
        format!(r#"{{"model_type": "{long}"}}"#),
        format!(r#"{{"hidden_act": "{long}"}}"#),
        format!(r#"{{"problem_type": "{long}"}}"#),
        format!(r#"{{"rope_scaling": {{"type": "{long}"}}}}"#),
        format!(r#"{{"vocab_size": "{long}"}}"#),
    ] {
        let line = refused(&text);
        assert!(line.len() < 700 && line.ends_with("..."), "{line}");
    }
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let refused = DeepseekV2Config::from_json_str(r#"{"vocab_size": 7, "vocab_size": 8}"#).unwrap_err().to_string();
    let line =
        "config: the text: expected a JSON object, found no JSON: the key `vocab_size` twice at line 1 column 34";
    assert_eq!(refused, line);
}

#[test]
fn v2_lite_is_its_preset_and_each_field_is_read() {
    let config = DeepseekV2Config::from_json_str(V2_LITE).unwrap();
    let preset = DeepseekV2Config::preset("v2-lite").unwrap();
    let rope_scaling = config.rope_scaling.as_ref().unwrap();
    assert_eq!(rope_scaling["factor"], 40);
    for (field, expected) in DeepseekV2Config::default().to_json().as_object().unwrap() {
        let written = serde_json::from_str::<Value>(V2_LITE).unwrap();
        let expected = written.get(field).unwrap_or(expected);
        if !["head_dim", "qk_head_dim", "rope_theta"].contains(&field.as_str()) {
            assert_eq!(&config.to_json()[field], expected, "{field}");
        }
    }
    assert_eq!(config.head_dim(), 64);
    assert_eq!(config.qk_head_dim(), 192);
    assert_eq!(config.to_json()["head_dim"], 64);
    assert_eq!(config.q_lora_rank, None);
    assert_eq!(config.eos_token_ids(), [100001]);
    assert_eq!(config.activation().unwrap(), Activation::Silu);
    assert_eq!(config.topk_method().unwrap(), TopkMethod::Greedy);
    assert_eq!(
        config.rope().unwrap(),
        RopeParameters {
            rope_type: RopeType::Yarn,
            factor: Some(40.0),
            original_max_position_embeddings: Some(4096),
            mscale: Some(0.707),
            mscale_all_dim: Some(0.707),
            ..RopeParameters::default()
        }
    );
    Dialect::ALL.iter().for_each(|dialect| config.validate(*dialect).unwrap());
    assert_eq!(DeepseekV2Config { extra: Map::new(), ..config }, DeepseekV2Config { extra: Map::new(), ..preset });
}

#[test]
fn missing_keys_are_transformers_defaults_but_do_not_run() {
    let config = DeepseekV2Config::from_json_str("{}").unwrap();
    assert_eq!(config, DeepseekV2Config { vocab_size_by_default: true, ..DeepseekV2Config::default() });
    assert_eq!(config.q_lora_rank, Some(1536));
    assert_eq!(
        config.validate(Dialect::Hf).unwrap_err().to_string(),
        "config: num_experts_per_tok: expected an integer of 0 to n_routed_experts, 64, found null"
    );
    let null = DeepseekV2Config::from_json_str(r#"{"q_lora_rank": null}"#).unwrap();
    assert_eq!(null.q_lora_rank, None);
    // Where no layer has a router, its fields do not matter.
    DeepseekV2Config { first_k_dense_replace: 32, ..config }.validate(Dialect::Hf).unwrap();
}

#[test]
fn unknown_keys_and_both_rope_layouts_are_written_back() {
    let old = serde_json::from_str::<Value>(V2_LITE).unwrap();
    let mut new = old.clone();
    let rope = new.as_object_mut().unwrap().shift_remove("rope_scaling").unwrap();
    new.as_object_mut().unwrap().shift_remove("rope_theta");
    new["rope_parameters"] = rope;
    new["rope_parameters"]["rope_type"] = "yarn".into();
    new["rope_parameters"]["rope_theta"] = json!(500.0);
    new["rope_parameters"]["a key from the future"] = json!([1, null]);
    new["head_dim"] = json!(77);
    for read in [old, new] {
        let config = DeepseekV2Config::from_value(read.clone()).unwrap();
        let written = config.to_json();
        for (key, value) in read.as_object().unwrap() {
            let expected = match key.as_str() {
                "rope_theta" => &json!(10000.0),
                "head_dim" => &json!(64),
                _ => value,
            };
            assert_eq!(&written[key], expected, "{key}");
        }
        for absent in ["rope_scaling", "rope_parameters", "rope_theta"] {
            assert_eq!(written.get(absent).is_some(), read.get(absent).is_some(), "{absent}");
        }
        assert_eq!(DeepseekV2Config::from_value(written).unwrap(), config);
    }
}

#[test]
fn an_integer_will_do_for_a_number_and_becomes_one() {
    let patch = json!({ "routed_scaling_factor": 16, "rms_norm_eps": 1, "attention_dropout": 0 });
    let config = accepted(small_with(patch), Dialect::Hf);
    assert_eq!(config.routed_scaling_factor, 16.0);
    assert_eq!(config.to_json()["routed_scaling_factor"].to_string(), "16.0");
}

#[test]
fn rope_type_wins_over_type_and_rope_scaling_over_rope_parameters() {
    assert_eq!(rope_of(json!({ "type": "linear", "factor": 2 })).rope_type, RopeType::Linear);
    assert_eq!(rope_of(json!({ "rope_type": "linear", "factor": 2 })).rope_type, RopeType::Linear);
    assert_eq!(rope_of(json!({ "rope_type": "linear", "type": "yarn", "factor": 2 })).rope_type, RopeType::Linear);
    assert_eq!(rope_of(json!({ "rope_theta": 7 })), RopeParameters { rope_theta: 7.0, ..RopeParameters::default() });
    assert_eq!(rope_of(Value::Null), RopeParameters::default());

    let both = |rope_scaling| {
        let rope_parameters = json!({ "rope_type": "dynamic", "factor": 3 });
        let patch = json!({ "rope_scaling": rope_scaling, "rope_parameters": rope_parameters, "rope_theta": 9 });
        DeepseekV2Config::from_value(small_with(patch)).unwrap().rope().unwrap()
    };
    assert_eq!(both(json!({ "type": "linear", "factor": 2 })).rope_type, RopeType::Linear);
    let second = both(json!({}));
    assert_eq!((second.rope_type, second.factor, second.rope_theta), (RopeType::Dynamic, Some(3.0), 9.0));
}

#[test]
fn yarn_fills_in_what_is_missing() {
    let rope = rope_of(json!({ "type": "yarn", "factor": 4 }));
    assert_eq!(rope.original_max_position_embeddings, Some(64));
    assert_eq!((rope.beta_fast, rope.beta_slow, rope.truncate), (32.0, 1.0, true));
    assert_eq!((rope.mscale, rope.mscale_all_dim, rope.attention_factor), (None, None, None));

    let rope = rope_of(json!({ "type": "yarn", "factor": null, "original_max_position_embeddings": 16,
        "beta_fast": 0, "beta_slow": null, "mscale": 0, "truncate": false, "attention_factor": 1.5 }));
    assert_eq!(rope.factor, Some(4.0));
    assert_eq!((rope.beta_fast, rope.beta_slow, rope.truncate), (32.0, 1.0, false));
    assert_eq!((rope.mscale, rope.mscale_all_dim, rope.attention_factor), (Some(0.0), None, Some(1.5)));
}

#[test]
fn the_context_beside_the_dictionary_overrules_the_one_in_it() {
    let of = |patch| DeepseekV2Config::from_value(small_with(patch)).unwrap().rope().unwrap();
    let beside = of(json!({ "original_max_position_embeddings": 32 }));
    assert_eq!(beside, rope_of(json!({ "type": "yarn", "factor": 4, "original_max_position_embeddings": 32 })));
    // The types that have no such context do not look at it.
    let linear =
        of(json!({ "original_max_position_embeddings": "x", "rope_scaling": {"type": "linear", "factor": 2} }));
    assert_eq!(linear.original_max_position_embeddings, None);
}

#[test]
fn transformers_other_rope_types_fill_in_what_is_missing() {
    let llama3 = rope_of(json!({ "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4 }));
    assert_eq!((llama3.factor, llama3.original_max_position_embeddings), (Some(8.0), Some(64)));
    assert_eq!((llama3.low_freq_factor, llama3.high_freq_factor), (1.0, 4.0));

    let longrope = json!({ "type": "longrope", "short_factor": [1, 1.5], "long_factor": [2],
        "original_max_position_embeddings": 16 });
    let longrope = rope_of(longrope);
    assert_eq!((longrope.factor, longrope.original_max_position_embeddings), (Some(4.0), Some(16)));
    assert_eq!((longrope.short_factor, longrope.long_factor), (vec![1.0, 1.5], vec![2.0, 2.0]));

    let proportional = rope_of(json!({ "type": "proportional" }));
    assert_eq!((proportional.factor, proportional.partial_rotary_factor), (Some(1.0), 1.0));
    let beside = json!({ "partial_rotary_factor": 0.5, "rope_scaling": {"type": "proportional", "factor": 2} });
    let beside = DeepseekV2Config::from_value(small_with(beside)).unwrap().rope().unwrap();
    assert_eq!((beside.factor, beside.partial_rotary_factor), (Some(2.0), 0.5));
}

#[test]
fn labels_are_counted_as_transformers_does() {
    let labels = |patch| DeepseekV2Config::from_value(small_with(patch)).unwrap().num_labels();
    assert_eq!(labels(json!({})), 2);
    assert_eq!(labels(json!({ "num_labels": 5 })), 5);
    assert_eq!(labels(json!({ "id2label": {"0": "a", "1": "b", "2": "c"} })), 3);
    assert_eq!(labels(json!({ "id2label": {"0": "a"}, "num_labels": null })), 1);
    assert_eq!(labels(json!({ "id2label": {"0": "a"}, "num_labels": 4 })), 4);
}

#[test]
fn odd_but_possible() {
    for dialect in Dialect::ALL {
        accepted(small(), dialect);
        for patch in [
            json!({ "num_experts_per_tok": 0 }),
            json!({ "n_shared_experts": 0 }),
            json!({ "n_group": 1, "topk_group": 1 }),
            json!({ "topk_group": 4, "num_experts_per_tok": 8 }),
            json!({ "topk_method": "greedy", "n_group": 3, "topk_group": null }),
            json!({ "first_k_dense_replace": -3 }),
            json!({ "first_k_dense_replace": 99, "num_experts_per_tok": null, "topk_method": "none" }),
            json!({ "pad_token_id": 31 }),
            json!({ "pad_token_id": -1 }),
            json!({ "eos_token_id": [1, 2] }),
            json!({ "eos_token_id": null, "bos_token_id": null, "pretraining_tp": null, "norm_topk_prob": null }),
            json!({ "num_key_value_heads": 4 }),
            json!({ "rms_norm_eps": 0 }),
            json!({ "rope_scaling": {"type": "linear", "factor": 0.5} }),
            json!({ "hidden_act": "gelu_pytorch_tanh" }),
            json!({ "rope_scaling": {"type": "default", "partial_rotary_factor": 0.5} }),
            json!({ "first_k_dense_replace": 99, "topk_method": null }),
            json!({ "sliding_window": null, "per_layer_config": {}, "is_causal": true, "layer_types": null }),
        ] {
            accepted(small_with(patch), dialect);
        }
    }
    // Fields without effect in Transformers may hold what DeepSeek's code would refuse.
    for patch in [
        json!({ "scoring_func": "sigmoid", "moe_layer_freq": 0, "norm_topk_prob": true }),
        json!({ "mlp_bias": true }),
        json!({ "moe_layer_freq": null }),
        json!({ "moe_layer_freq": "each" }),
        json!({ "scoring_func": 3 }),
        json!({ "original_max_position_embeddings": 32 }),
        json!({ "rope_scaling": {"type": "proportional", "partial_rotary_factor": 0.5} }),
        json!({ "rope_scaling": {"type": "yarn", "factor": 2} }),
    ] {
        accepted(small_with(patch.clone()), Dialect::Hf);
        refusals::refusal(small_with(patch), Dialect::Deepseek);
    }
    accepted(small_with(json!({ "n_shared_experts": null })), Dialect::HfPre515);
    // Layers whose kinds are given have the cache of these kinds, whatever the window.
    accepted(small_with(json!({ "sliding_window": 4, "layer_types": vec!["full_attention"; 4] })), Dialect::Hf);
    accepted(small_with(json!({ "n_shared_experts": null, "n_routed_experts": null })), Dialect::Deepseek);
    accepted(small_with(json!({ "hidden_size": 18 })), Dialect::Deepseek);
    let other_name = accepted(small_with(json!({ "num_experts": 8 })), Dialect::Hf);
    assert_eq!(other_name.num_experts(), 8);
    let mut other_name_only = small_with(json!({ "num_experts": 16 }));
    other_name_only.as_object_mut().unwrap().shift_remove("n_routed_experts");
    assert_eq!(accepted(other_name_only, Dialect::Hf).num_experts(), 16);
}

#[test]
fn text_that_is_no_object_is_refused() {
    for (text, expected) in [
        ("", "config: the text: expected a JSON object, found no JSON: EOF while parsing a value at line 1 column 0"),
        ("[]", "config: the text: expected a JSON object, found []"),
        (
            "{\"rms_norm_eps\": NaN}",
            "config: the text: expected a JSON object, found no JSON: expected value at line 1 column 18",
        ),
    ] {
        assert_eq!(DeepseekV2Config::from_json_str(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_bad_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let message = || DeepseekV2Config::from_file(&path).unwrap_err().to_string();
    assert!(message().starts_with(&format!("{}: cannot read: ", path.display())), "{}", message());
    std::fs::write(&path, "{\"hidden_size\": ").unwrap();
    let expected = format!("{}: expected a JSON object, found no JSON: EOF", path.display());
    assert!(message().starts_with(&expected), "{}", message());
    std::fs::write(&path, [b'"', 0xff, b'"']).unwrap();
    assert!(message().starts_with(&format!("{}: expected a JSON object", path.display())), "{}", message());
    std::fs::write(&path, "{\"hidden_size\": \"big\"}").unwrap();
    assert_eq!(message(), "config: hidden_size: expected an integer >= 0, found \"big\"");
    std::fs::write(&path, V2_LITE).unwrap();
    assert_eq!(DeepseekV2Config::from_file(&path).unwrap(), DeepseekV2Config::from_json_str(V2_LITE).unwrap());
}
