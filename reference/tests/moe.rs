//! Checklist items 55 and 61 to 67: the experts, and the layers that have them.

use crate::common::{
    Stages, asked_for, config, difference, ids, input, logits, model, model_in, refusal, weight, weights,
};
use crate::routing::greedy;
use approx::assert_abs_diff_eq;
use dsv2_reference::config::Head;
use dsv2_reference::weights::checkpoint::{Checkpoint, Entry, write_checkpoint};
use dsv2_reference::weights::{WeightSource, check_complete};
use dsv2_reference::{DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, Dtype, Run, StageValue};
use dsv2_testing::Exchanged;
use ndarray::{Array1, ArrayView1, Axis, s};
use serde_json::{Value, json};
use std::path::Path;

/// down(silu(gate x) * up x), weights of `path`.
fn mlp(path: &str, width: usize, x: ArrayView1<f64>) -> Array1<f64> {
    let w = |name: &str, shape| weight(&format!("{path}.{name}_proj.weight"), shape);
    let gate = w("gate", [width, 32]).dot(&x).mapv(|x| x / (1.0 + (-x).exp()));
    w("down", [32, width]).dot(&(gate * w("up", [width, 32]).dot(&x)))
}

#[test]
fn the_output_is_the_weighted_sum_of_the_selected_experts_plus_the_shared_ones() {
    for patch in [json!({}), greedy(json!({"num_experts_per_tok": 4, "n_shared_experts": 1}))] {
        let shared_width = 10 * patch["n_shared_experts"].as_u64().unwrap_or(2) as usize;
        let stages = Stages::of_ids(&model::<f64>(patch), ids(2, 4));
        let at = |name: &str| format!("model.layers.2.{name}");
        let indices = stages.indices(&at("mlp.gate.topk_indices"));
        let weights = stages.d2(&at("mlp.gate.topk_weights"));
        let (tokens, output) = (stages.d3(&at("post_attention_layernorm")), stages.d3(&at("mlp")));
        for b in 0..2 {
            for s in 0..4 {
                let (x, row) = (tokens.slice(s![b, s, ..]), 4 * b + s);
                let mut expected = mlp(&at("mlp.shared_experts"), shared_width, x);
                for (&expert, &weight) in indices.row(row).iter().zip(weights.row(row)) {
                    expected += &(mlp(&at(&format!("mlp.experts.{expert}")), 10, x) * weight);
                }
                assert_abs_diff_eq!(output.slice(s![b, s, ..]), expected, epsilon = 1e-12);
            }
        }
    }
}

#[test]
fn a_dense_layer_is_one_mlp_of_its_own_width() {
    let stages = Stages::of_ids(&model::<f64>(json!({})), ids(1, 3));
    let tokens = stages.d3("model.layers.0.post_attention_layernorm");
    for s in 0..3 {
        let expected = mlp("model.layers.0.mlp", 40, tokens.slice(s![0, s, ..]));
        assert_abs_diff_eq!(stages.d3("model.layers.0.mlp.down_proj").slice(s![0, s, ..]), expected, epsilon = 1e-12);
    }
}

#[test]
fn all_experts_may_be_selected_or_one_or_none() {
    let at = |name: &str| format!("model.layers.1.{name}");
    let stages = Stages::of_ids(&model::<f64>(greedy(json!({"num_experts_per_tok": 8}))), ids(1, 4));
    for weights in stages.d2(&at("mlp.gate.topk_weights")).rows() {
        assert_abs_diff_eq!(weights.sum(), 2.5, epsilon = 1e-14);
        assert!(weights.windows(2).into_iter().all(|pair| pair[0] >= pair[1]));
    }
    let stages = Stages::of_ids(&model::<f64>(greedy(json!({"num_experts_per_tok": 1}))), ids(1, 4));
    assert_eq!(stages.d2(&at("mlp.gate.topk_weights")).dim(), (4, 1));
    assert!(stages.d2(&at("mlp.gate.topk_weights")).iter().all(|weight| *weight < 2.5), "one expert is not normalised");

    let stages = Stages::of_ids(&model::<f64>(greedy(json!({"num_experts_per_tok": 0}))), ids(1, 4));
    assert!(stages.d2(&at("mlp.experts")).iter().all(|x| *x == 0.0));
    assert_eq!(stages.d3(&at("mlp")), stages.d3(&at("mlp.shared_experts")));
}

#[test]
fn without_shared_experts_the_output_is_that_of_the_routed_ones() {
    let stages = Stages::of_ids(&model::<f64>(json!({"n_shared_experts": 0})), ids(1, 5));
    let (all, routed) = (stages.d3("model.layers.1.mlp"), stages.d2("model.layers.1.mlp.experts"));
    assert_eq!(all.index_axis(Axis(0), 0), routed);
    // The MLP of no width still has the bias of its last projection.
    let stages = Stages::of_ids(&model::<f64>(json!({"n_shared_experts": 0, "mlp_bias": true})), ids(1, 5));
    let bias = weights().tensor("model.layers.1.mlp.shared_experts.down_proj.bias", &[32]).unwrap();
    let bias: Array1<f64> = bias.to_array();
    for shared in stages.d3("model.layers.1.mlp.shared_experts").rows() {
        assert_eq!(shared, bias);
    }
}

#[test]
fn null_shared_experts_are_none_in_the_dialects_that_know_it() {
    let none = json!({"n_shared_experts": null});
    for dialect in [Dialect::HfPre515, Dialect::Deepseek] {
        let expected = logits(&model_in::<f64>(dialect, json!({"n_shared_experts": 0})), &input(ids(1, 5)));
        assert_eq!(logits(&model_in::<f64>(dialect, none.clone()), &input(ids(1, 5))), expected);
    }
    let expected = "config: n_shared_experts: expected an integer in dialect hf, found null";
    assert_eq!(refusal(Dialect::Hf, none), expected);
}

/// Which layers are mixtures of experts.
fn moe_layers(dialect: Dialect, patch: Value) -> Vec<usize> {
    let stages = Stages::of_ids(&model_in::<f64>(dialect, patch), ids(1, 2));
    let is_moe = |layer: &usize| {
        let [router, dense] =
            ["gate.router_logits", "down_proj"].map(|name| format!("model.layers.{layer}.mlp.{name}"));
        assert_ne!(stages.has(&router), stages.has(&dense));
        stages.has(&router)
    };
    (0..3).filter(is_moe).collect()
}

#[test]
fn layers_from_first_k_dense_replace_on_have_experts() {
    for (first, expected) in [(-1, vec![0, 1, 2]), (0, vec![0, 1, 2]), (2, vec![2]), (3, vec![]), (9, vec![])] {
        assert_eq!(moe_layers(Dialect::Hf, json!({"first_k_dense_replace": first})), expected, "{first}");
    }
}

#[test]
fn deepseeks_code_has_experts_in_multiples_of_moe_layer_freq_only() {
    let every_second = json!({"first_k_dense_replace": 0, "moe_layer_freq": 2});
    assert_eq!(moe_layers(Dialect::Deepseek, every_second.clone()), [0, 2]);
    assert_eq!(moe_layers(Dialect::Hf, every_second), [0, 1, 2]);
    assert_eq!(moe_layers(Dialect::Deepseek, json!({"n_routed_experts": null})), [0; 0]);
}

#[test]
fn nothing_in_gives_nothing_out() {
    let zero = |name: &str, value: StageValue<f64>| {
        if let (true, StageValue::Real(mut tokens)) = (name.ends_with("post_attention_layernorm"), value) {
            tokens.fill(0.0);
        }
    };
    let stages = Stages::of(&model::<f64>(json!({})), &input(ids(1, 3)), &Run::default(), zero).1;
    assert!(stages.d3("model.layers.1.mlp").iter().all(|x| *x == 0.0));
}

#[test]
fn mlp_bias_is_on_dense_and_shared_experts_and_on_no_routed_one() {
    let mut biases = asked_for(json!({"mlp_bias": true}));
    biases.retain(|name| name.ends_with(".bias"));
    biases.sort();
    let mut expected = Vec::new();
    for module in ["layers.0.mlp", "layers.1.mlp.shared_experts", "layers.2.mlp.shared_experts"] {
        expected.extend(["down", "gate", "up"].map(|name| format!("model.{module}.{name}_proj.bias")));
    }
    assert_eq!(biases, expected);
}

/// The checkpoint of the tiny model's weights in folder `dir`, without tensor `lost`; in shards.
fn checkpoint_without(lost: &str, dir: &Path) -> Checkpoint {
    let config = config(json!({}));
    let entries: Vec<Entry> = config
        .weight_shapes(Head::CausalLm, Dialect::Hf)
        .into_iter()
        .filter(|(name, _)| name != lost)
        .map(|(name, shape)| Entry { name, dtype: Dtype::Bf16, shape })
        .collect();
    let make = |entry: &Entry| weights().tensor(&entry.name, &entry.shape);
    write_checkpoint(dir, &config.to_json(), &entries, make, Some(20_000)).unwrap();
    Checkpoint::open(dir).unwrap()
}

#[test]
fn experts_are_stored_one_by_one_and_read_back() {
    let expected = config(json!({})).weight_shapes(Head::CausalLm, Dialect::Hf);
    let up_of_7 = ("model.layers.1.mlp.experts.7.up_proj.weight".to_owned(), vec![10, 32]);
    assert!(expected.contains(&up_of_7));
    assert!(!expected.iter().any(|(name, _)| name.contains("gate_up_proj")));
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_without("", &folder.path().join("tiny"));
    check_complete(&checkpoint, &expected, &[]).unwrap();
    let written = DeepseekV2Config::from_file(&folder.path().join("tiny/config.json")).unwrap();
    let read = DeepseekV2ForCausalLM::<f64>::load(&written, Dialect::Hf, &checkpoint).unwrap();
    assert_eq!(logits(&read, &input(ids(1, 5))), logits(&model::<f64>(json!({})), &input(ids(1, 5))));
}

#[test]
fn a_checkpoint_without_one_of_the_experts_is_refused() {
    let lost = "model.layers.2.mlp.experts.5.up_proj.weight";
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("tiny");
    let checkpoint = checkpoint_without(lost, &dir);
    let error = DeepseekV2ForCausalLM::<f64>::load(&config(json!({})), Dialect::Hf, &checkpoint).unwrap_err();
    let expected = format!("weight `{lost}`: expected shape [10, 32], found no such tensor in {}", dir.display());
    assert_eq!(error.to_string(), expected);
}

#[test]
fn gate_and_up_of_an_expert_are_not_interchangeable() {
    let swapped = Exchanged(weights(), |name: &str, shape: &[usize]| {
        let other = match name.strip_suffix("gate_proj.weight") {
            Some(path) if name.contains(".experts.") => format!("{path}up_proj.weight"),
            _ => format!(
                "{}gate_proj.weight",
                name.strip_suffix("up_proj.weight").filter(|_| name.contains(".experts."))?
            ),
        };
        weights().tensor(&other, shape).ok()
    });
    let swapped = DeepseekV2ForCausalLM::<f64>::load(&config(json!({})), Dialect::Hf, &swapped).unwrap();
    let right = logits(&model::<f64>(json!({})), &input(ids(1, 5)));
    assert!(difference(&right, &logits(&swapped, &input(ids(1, 5)))) > 0.1);
}
