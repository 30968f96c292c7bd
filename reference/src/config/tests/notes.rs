use super::*;

#[test]
fn keys_that_suggest_another_model_are_named() {
    use Dialect::{Deepseek, Hf};
    let yarn = |key: &str, value: Value| {
        let mut rope = json!({ "type": "yarn", "factor": 4, "original_max_position_embeddings": 16 });
        rope[key] = value;
        json!({ "rope_scaling": rope })
    };
    let cases = [
        (Hf, json!({ "scoring_func": "sigmoid" }), "scoring_func, \"sigmoid\", has no effect: scores are a softmax"),
        (Hf, json!({ "scoring_func": 3 }), "scoring_func, 3, has no effect: scores are a softmax"),
        (
            Hf,
            json!({ "norm_topk_prob": true }),
            "norm_topk_prob, true, has no effect: Transformers does not divide the weights by their sum",
        ),
        (
            Hf,
            json!({ "moe_layer_freq": 2 }),
            "moe_layer_freq, 2, has no effect: every layer from first_k_dense_replace on has experts",
        ),
        (
            Hf,
            json!({ "moe_layer_freq": null }),
            "moe_layer_freq, null, has no effect: every layer from first_k_dense_replace on has experts",
        ),
        (Hf, json!({ "topk_method": "greedy" }), "n_group, 4, has no effect: topk_method is greedy"),
        (Hf, json!({ "use_mla": false }), "use_mla, false, has no effect: attention is MLA"),
        (
            Hf,
            json!({ "rope_interleave": false }),
            "rope_interleave, false, has no effect: the pairs that turn are neighbours",
        ),
        (
            Hf,
            json!({ "num_nextn_predict_layers": 1 }),
            "num_nextn_predict_layers, 1, has no effect: no layer predicts a token beyond the next",
        ),
        (
            Hf,
            yarn("attn_factor", json!(0.5)),
            "rope_scaling.attn_factor, 0.5, has no effect: the key is attention_factor",
        ),
        (
            Deepseek,
            yarn("attention_factor", json!(1.5)),
            "rope_scaling.attention_factor, 1.5, has no effect: DeepSeek's code has no such key",
        ),
        (Deepseek, json!({ "sliding_window": 4 }), "sliding_window, 4, has no effect: DeepSeek's code has no such key"),
        (
            Hf,
            json!({ "partial_rotary_factor": 0.5, "rope_scaling": {"type": "default"} }),
            "partial_rotary_factor, 0.5, has no effect: with rope type default all of qk_rope_head_dim is rotated",
        ),
        (
            Hf,
            json!({ "rope_scaling": null, "rope_parameters": {"full_attention": {"rope_type": "linear"}} }),
            "rope_parameters.full_attention, {\"rope_type\":\"linear\"}, has no effect: all layers have one rotary embedding",
        ),
        (
            Hf,
            json!({ "rope_parameters": {"rope_type": "linear", "factor": 2} }),
            "rope_parameters, {\"rope_type\":\"linear\",\"factor\":2}, has no effect: rope_scaling, which says something \
             else, is read instead",
        ),
    ];
    for (dialect, patch, expected) in cases {
        assert_eq!(accepted(small_with(patch), dialect).notes(dialect), [expected]);
    }
}

#[test]
fn the_released_models_and_what_says_the_same_twice_need_no_note() {
    for dialect in Dialect::ALL {
        assert_eq!(DeepseekV2Config::from_json_str(V2_LITE).unwrap().notes(dialect), [""; 0]);
        for name in PRESETS {
            assert_eq!(DeepseekV2Config::preset(name).unwrap().notes(dialect), [""; 0], "{name}");
        }
        let twice = json!({ "rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 10000.0 });
        assert_eq!(accepted(small_with(twice), dialect).notes(dialect), [""; 0]);
    }
}

#[test]
fn a_vocabulary_of_the_default_size_is_said() {
    let mut config = small();
    config.as_object_mut().unwrap().shift_remove("vocab_size");
    let notes = accepted(config, Dialect::Hf).notes(Dialect::Hf);
    let expected = "vocab_size is not in config.json: 102400 is taken, as Transformers does since 5.16; its versions before \
                    that, and their documentation, take 32000";
    assert_eq!(notes, [expected]);
}
