//! Checklist items 2, 7 and 11: what a configuration does to a model. The others are in `src/config/tests.rs`.

use crate::common::{config, ids, input, logits, model, refusal, tiny};
use dsv2_reference::{DeepseekV2Config, Dialect};
use serde_json::{Value, json};

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
fn an_unknown_topk_method_is_refused_when_the_model_is_loaded() {
    let expected = "config: topk_method: expected \"greedy\" or \"group_limited_greedy\", \
                    found \"noaux_tc\" (DeepSeek-V3's, not V2's)";
    assert_eq!(refusal(Dialect::Hf, json!({"topk_method": "noaux_tc"})), expected);
    let expected = "config: topk_method: expected \"greedy\" or \"group_limited_greedy\", found \"gready\"";
    assert_eq!(refusal(Dialect::Hf, json!({"topk_method": "gready"})), expected);
}

#[test]
fn without_a_router_its_fields_may_hold_anything_of_their_type() {
    let mut dense = json!({"first_k_dense_replace": 3, "topk_method": "no_such", "num_experts_per_tok": null});
    model::<f64>(dense.clone());
    dense["topk_method"] = Value::Null;
    model::<f64>(dense.clone());
    dense["topk_method"] = json!(3);
    assert_eq!(refusal(Dialect::Hf, dense), "config: topk_method: expected a string, found 3");
}

#[test]
fn keys_without_effect_are_kept_and_change_nothing() {
    let patch = json!({
        "norm_topk_prob": true, "scoring_func": "sigmoid", "moe_layer_freq": 2, "aux_loss_alpha": 0.5, "seq_aux": false,
        "ep_size": 8, "pretraining_tp": 4, "auto_map": {"AutoModel": "x.Y"}, "initializer_range": 1.0,
        "use_cache": false, "output_router_logits": true, "something_new": [1, 2],
        "sliding_window": null, "tie_last_hidden_states": true, "per_layer_config": {}, "is_causal": true,
    });
    let input = input(ids(2, 6));
    assert_eq!(logits(&model::<f64>(json!({})), &input), logits(&model::<f64>(patch.clone()), &input));
    let written = config(patch.clone()).to_json();
    patch.as_object().unwrap().iter().for_each(|(key, value)| assert_eq!(&written[key], value, "{key}"));
    assert_eq!(DeepseekV2Config::from_value(written).unwrap(), config(patch));
}
