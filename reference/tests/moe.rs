//! Checklist items 55 to 67: routing and experts.

use std::cell::RefCell;
use std::path::Path;

use crate::common::{Stages, config, difference, ids, input, logits, model, model_in, refusal, weight, weights};
use approx::assert_abs_diff_eq;
use dsv2_reference::config::Head;
use dsv2_reference::round::RoundingTap;
use dsv2_reference::weights::checkpoint::{Checkpoint, Entry, write_checkpoint};
use dsv2_reference::weights::{WeightSource, check_complete};
use dsv2_reference::{DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, Dtype, Real, Run, StageValue, Tap};
use dsv2_testing::Exchanged;
use ndarray::{Array1, Array2, ArrayView1, Axis, array, s};
use serde_json::{Value, json};

const GATE: &str = "model.layers.1.mlp.gate";

/// Experts and weights of every token in layer 1 if its router logits are these.
fn routing_of(patch: Value, router_logits: &Array2<f64>) -> (Array2<i64>, Array2<f64>) {
    let stages = with_router_logits(Dialect::Hf, patch, router_logits);
    (stages.indices(&format!("{GATE}.topk_indices")), stages.d2(&format!("{GATE}.topk_weights")))
}

/// A run of as many tokens as there are rows of router logits, which replace those of layer 1.
fn with_router_logits(dialect: Dialect, patch: Value, router_logits: &Array2<f64>) -> Stages<f64> {
    let replace = |name: &str, value: StageValue<f64>| {
        if let (true, StageValue::Real(mut logits)) = (name == format!("{GATE}.router_logits"), value) {
            logits.assign(router_logits);
        }
    };
    let ids = ids(1, router_logits.nrows());
    Stages::of(&model_in::<f64>(dialect, patch), &input(ids), &Run::default(), replace).1
}

fn softmax(logits: ArrayView1<f64>) -> Array1<f64> {
    let exp = logits.mapv(f64::exp);
    &exp / exp.sum()
}

/// V2-Lite's way: among all experts.
fn greedy(patch: Value) -> Value {
    let mut greedy = json!({"topk_method": "greedy"});
    patch.as_object().unwrap().iter().for_each(|(key, value)| greedy[key] = value.clone());
    greedy
}

#[test]
fn weights_are_the_softmax_over_all_experts_times_the_scaling_factor() {
    let stages = Stages::of_ids(&model::<f64>(greedy(json!({}))), ids(2, 9));
    for layer in [1, 2] {
        let at = |name: &str| format!("model.layers.{layer}.mlp.gate.{name}");
        let (router_logits, weights) = (stages.d2(&at("router_logits")), stages.d2(&at("topk_weights")));
        for (t, indices) in stages.indices(&at("topk_indices")).rows().into_iter().enumerate() {
            let scores = softmax(router_logits.row(t));
            let mut best: Vec<usize> = (0..8).collect();
            best.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            assert_eq!(indices.to_vec(), best[..3].iter().map(|&e| e as i64).collect::<Vec<_>>());
            for (slot, &expert) in indices.iter().enumerate() {
                assert_abs_diff_eq!(weights[[t, slot]], 2.5 * scores[expert as usize], epsilon = 1e-14);
            }
            assert!((weights.row(t).sum() - 2.5).abs() > 1e-3, "they are not normalised");
        }
    }
}

#[test]
fn router_logits_are_the_gates_product_with_the_token() {
    let stages = Stages::of_ids(&model::<f64>(json!({})), ids(1, 5));
    let tokens = stages.d3("model.layers.1.post_attention_layernorm").index_axis_move(Axis(0), 0);
    let by_hand = tokens.dot(&weight(&format!("{GATE}.weight"), [8, 32]).t());
    assert_abs_diff_eq!(stages.d2(&format!("{GATE}.router_logits")), by_hand, epsilon = 1e-13);
}

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
fn groups_are_judged_by_their_best_expert() {
    // Groups of two: 0 1 | 2 3 | 4 5 | 6 7. The last has the largest sum (DeepSeek-V3's rule), but its best is third.
    let z = array![[5.0, -9.0, 4.8, -9.0, 1.0, 1.0, 4.5, 4.4]];
    let (indices, weights) = routing_of(json!({}), &z);
    assert_eq!(indices, array![[0, 2, 1]]);
    let scores = softmax(z.row(0));
    // 1 and 3 are equal: the lower id wins.
    assert_abs_diff_eq!(weights, array![[2.5 * scores[0], 2.5 * scores[2], 2.5 * scores[1]]], epsilon = 1e-15);
    assert_eq!(routing_of(greedy(json!({})), &z).0, array![[0, 2, 6]]);
}

#[test]
fn group_limited_selection_is_greedy_when_nothing_is_limited() {
    let greedy = logits(&model::<f64>(greedy(json!({}))), &input(ids(2, 12)));
    let limited = |groups: Value| logits(&model::<f64>(groups), &input(ids(2, 12)));
    assert_eq!(limited(json!({"n_group": 1, "topk_group": 1})), greedy);
    assert_eq!(limited(json!({"n_group": 4, "topk_group": 4})), greedy);
    assert_eq!(limited(json!({"n_group": 8, "topk_group": 8})), greedy);
    assert!(difference(&limited(json!({})), &greedy) > 0.1);
}

#[test]
fn greedy_selection_ignores_the_groups() {
    let expected = logits(&model::<f64>(greedy(json!({}))), &input(ids(1, 6)));
    let other = greedy(json!({"n_group": 3, "topk_group": null}));
    assert_eq!(logits(&model::<f64>(other), &input(ids(1, 6))), expected);
}

#[test]
fn a_token_visits_at_most_topk_group_groups() {
    let stages = Stages::of_ids(&model::<f64>(json!({})), ids(2, 20));
    for layer in [1, 2] {
        for indices in stages.indices(&format!("model.layers.{layer}.mlp.gate.topk_indices")).rows() {
            let mut groups: Vec<i64> = indices.iter().map(|e| e / 2).collect();
            let mut experts = indices.to_vec();
            groups.sort_unstable();
            groups.dedup();
            experts.sort_unstable();
            experts.dedup();
            assert!(groups.len() <= 2 && experts.len() == 3 && (0..8).contains(&experts[2]));
        }
    }
}

#[test]
fn of_equal_scores_the_lower_expert_id_wins() {
    let (indices, weights) = routing_of(greedy(json!({})), &Array2::zeros((2, 8)));
    assert_eq!(indices, array![[0, 1, 2], [0, 1, 2]]);
    assert_eq!(weights, Array2::from_elem((2, 3), 2.5 / 8.0));
    let z = array![[1.0, 3.0, 3.0, 3.0, 0.0, 3.0, 2.0, 3.0], [0.0, -0.0, 0.0, -0.0, 0.0, 0.0, 0.0, 0.0]];
    assert_eq!(routing_of(greedy(json!({})), &z).0, array![[1, 2, 3], [0, 1, 2]]);
    // Of equal groups the lower one is kept.
    assert_eq!(routing_of(json!({}), &array![[0.0, 3.0, 3.0, 0.0, 3.0, 0.0, 3.0, 0.0]]).0, array![[1, 2, 0]]);
}

#[test]
fn scores_that_underflow_get_weight_zero_and_stay_in_the_kept_groups() {
    let z = array![[0.0, 0.0, 0.0, 0.0, 0.0, 500.0, 0.0, 0.0]];
    let (indices, weights) = routing_of(greedy(json!({})), &z);
    assert_eq!((indices, weights[[0, 0]]), (array![[5, 0, 1]], 2.5));
    // exp(-500) is a number in f64; exp(-1000) is not.
    assert!(weights[[0, 1]] > 0.0);
    let (indices, weights) = routing_of(greedy(json!({})), &(&z * 2.0));
    assert_eq!((indices, weights), (array![[5, 0, 1]], array![[2.5, 0.0, 0.0]]));
    let (indices, weights) = routing_of(json!({}), &(&z * 2.0));
    assert_eq!((indices, weights), (array![[5, 0, 1]], array![[2.5, 0.0, 0.0]]));
    // The second group is the one that holds 7, by a hair that the softmax no longer sees: 0 and 1 all the same.
    let z = array![[-4000.0, -4000.0, -4000.0, -4000.0, -4000.0, 0.0, -4000.0, -3999.0]];
    assert_eq!(routing_of(json!({}), &z).0, array![[5, 0, 1]]);
}

#[test]
fn in_fp32_the_score_of_an_expert_far_behind_is_exactly_zero() {
    let mut far = |name: &str, value: StageValue<f32>| {
        if let (true, StageValue::Real(mut value)) = (name == format!("{GATE}.router_logits"), value) {
            value.fill(0.0);
            value.slice_mut(s![.., 6]).fill(500.0);
        }
    };
    let model = model::<f32>(greedy(json!({})));
    let stages = Stages::of(&model, &input(ids(1, 1)), &Run::default(), &mut far).1;
    assert_eq!(stages.indices(&format!("{GATE}.topk_indices")), array![[6, 0, 1]]);
    assert_eq!(stages.d2(&format!("{GATE}.topk_weights")), array![[2.5, 0.0, 0.0]]);
}

#[test]
fn a_constant_on_all_router_logits_changes_no_selection() {
    let z = Array2::from_shape_fn((6, 8), |(t, e)| ((7 * t + 5 * e * e) % 11) as f64 / 4.0);
    for patch in [json!({}), greedy(json!({}))] {
        let (indices, weights) = routing_of(patch.clone(), &z);
        let (shifted, shifted_weights) = routing_of(patch.clone(), &(&z + 64.0));
        assert_eq!(indices, shifted);
        assert_abs_diff_eq!(weights, shifted_weights, epsilon = 1e-15);
        assert_eq!(routing_of(patch, &(&z * 3.0)).0, indices);
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
fn a_single_expert_has_the_scaling_factor_for_its_weight() {
    let one = greedy(json!({"n_routed_experts": 1, "num_experts_per_tok": 1}));
    let stages = Stages::of_ids(&model::<f64>(one), ids(1, 4));
    assert_eq!(stages.d2(&format!("{GATE}.topk_weights")), Array2::from_elem((4, 1), 2.5));
}

#[test]
fn the_scaling_factor_acts_on_routed_experts_only() {
    let [one, four] = [1.0, 4.0].map(|factor| {
        // Layer 0 is the only layer, so that its input is the same in both.
        let patch = json!({"routed_scaling_factor": factor, "num_hidden_layers": 1, "first_k_dense_replace": 0});
        Stages::of_ids(&model::<f64>(patch), ids(1, 5))
    });
    assert_eq!(one.d2("model.layers.0.mlp.experts") * 4.0, four.d2("model.layers.0.mlp.experts"));
    let shared = "model.layers.0.mlp.shared_experts";
    assert_eq!(one.d3(shared), four.d3(shared));
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
fn norm_topk_prob_divides_by_the_sum_instead_of_scaling_in_deepseeks_code_only() {
    let z = array![[1.0, 0.5, 0.0, -1.0, 2.0, -0.5, 0.25, 0.75]];
    let weights =
        |dialect, patch: Value| with_router_logits(dialect, greedy(patch), &z).d2(&format!("{GATE}.topk_weights"));
    let on = json!({"norm_topk_prob": true});
    let scores = softmax(z.row(0));
    let (a, b, c) = (scores[4], scores[0], scores[7]);
    let scaled = array![[2.5 * a, 2.5 * b, 2.5 * c]];
    assert_abs_diff_eq!(weights(Dialect::Hf, on.clone()), scaled, epsilon = 1e-15);
    assert_abs_diff_eq!(weights(Dialect::HfPre515, on.clone()), scaled, epsilon = 1e-15);
    assert_abs_diff_eq!(weights(Dialect::Deepseek, json!({})), scaled, epsilon = 1e-15);
    let normed = array![[a, b, c]] / (a + b + c);
    assert_abs_diff_eq!(weights(Dialect::Deepseek, on), normed, epsilon = 1e-15);
    // A single expert is never normalised.
    let one = json!({"norm_topk_prob": true, "num_experts_per_tok": 1});
    assert_abs_diff_eq!(weights(Dialect::Deepseek, one), array![[2.5 * a]], epsilon = 1e-15);
}

#[test]
fn deepseeks_code_refuses_another_scoring_function() {
    let expected = "config: scoring_func: expected \"softmax\", found \"sigmoid\"";
    assert_eq!(refusal(Dialect::Deepseek, json!({"scoring_func": "sigmoid"})), expected);
}

#[test]
fn experts_see_one_token_at_a_time() {
    let at = |name: &str| format!("model.layers.1.{name}");
    let order = [4, 1, 5, 0, 2, 3];
    let model = model::<f64>(json!({}));
    let plain = Stages::of_ids(&model, ids(1, 6));
    let permute = |name: &str, value: StageValue<f64>| {
        if let (true, StageValue::Real(mut tokens)) = (name == at("post_attention_layernorm"), value) {
            let permuted = tokens.select(Axis(1), &order);
            tokens.assign(&permuted);
        }
    };
    let permuted = Stages::of(&model, &input(ids(1, 6)), &Run::default(), permute).1;
    assert_eq!(permuted.d3(&at("mlp")), plain.d3(&at("mlp")).select(Axis(1), &order));
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
fn the_router_stays_fp32_when_everything_else_is_rounded_to_bf16() {
    let model = model::<f32>(json!({}));
    let mut rounding = RoundingTap(Dtype::Bf16);
    let stages = Stages::of(&model, &input(ids(1, 7)), &Run::default(), |name, value| rounding.stage(name, value)).1;
    let is_bf16 = |x: &f32| x.to_bits() & 0xffff == 0;
    let tokens = stages.d3("model.layers.1.post_attention_layernorm").index_axis_move(Axis(0), 0);
    assert!(tokens.iter().all(is_bf16));
    let router_logits = stages.d2(&format!("{GATE}.router_logits"));
    assert!(!router_logits.iter().all(is_bf16));
    assert!(!stages.d2(&format!("{GATE}.topk_weights")).iter().all(is_bf16));
    // The fp32 product of the rounded token, to fp32's own error.
    let exact = tokens.mapv(f64::from).dot(&weight(&format!("{GATE}.weight"), [8, 32]).t());
    assert_abs_diff_eq!(router_logits.mapv(f64::from), exact, epsilon = 3e-6);
}

#[test]
fn mlp_bias_is_on_dense_and_shared_experts_and_on_no_routed_one() {
    let names = RefCell::new(Vec::new());
    let recorder = Exchanged(weights(), |name: &str, _: &[usize]| {
        names.borrow_mut().push(name.to_owned());
        None
    });
    let config = config(json!({"mlp_bias": true}));
    DeepseekV2ForCausalLM::<f64>::load(&config, Dialect::Hf, &recorder).unwrap();
    let mut biases: Vec<_> = names.into_inner().into_iter().filter(|name| name.ends_with(".bias")).collect();
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

#[test]
fn a_tap_may_force_the_routing_and_the_weights_follow_from_the_tokens_own_scores() {
    let force = |name: &str, value: StageValue<f64>| {
        if let (true, StageValue::Index(mut indices)) = (name == format!("{GATE}.topk_indices"), value) {
            indices.assign(&array![[7, 0, 3], [2, 1, 6]]);
        }
    };
    let stages = Stages::of(&model::<f64>(json!({})), &input(ids(1, 2)), &Run::default(), force).1;
    let router_logits = stages.d2(&format!("{GATE}.router_logits"));
    let weights = stages.d2(&format!("{GATE}.topk_weights"));
    for (t, experts) in [[7, 0, 3], [2, 1, 6]].into_iter().enumerate() {
        let scores = softmax(router_logits.row(t));
        let expected = Array1::from_iter(experts.map(|e| 2.5 * scores[e]));
        assert_abs_diff_eq!(weights.row(t), expected, epsilon = 1e-14);
    }
}

fn forced_out_of_range<T: Real>(expert: i64) -> String {
    let mut force = |name: &str, value: StageValue<T>| {
        if let (true, StageValue::Index(mut indices)) = (name == format!("{GATE}.topk_indices"), value) {
            indices[[1, 2]] = expert;
        }
    };
    let model = model::<T>(json!({}));
    model.forward(&input(ids(1, 2)), None, &Run::default(), &mut force).unwrap_err().to_string()
}

#[test]
fn routing_forced_to_an_expert_that_does_not_exist_is_refused() {
    for expert in [8, -1, i64::MAX] {
        let expected = format!("input `topk_indices`: expected experts 0 to 7, found {expert}");
        assert_eq!(forced_out_of_range::<f64>(expert), expected);
    }
}

#[test]
fn a_lost_slot_shows_in_the_tokens_output() {
    let lose = |name: &str, value: StageValue<f64>| {
        if let (true, StageValue::Real(mut weights)) = (name == format!("{GATE}.topk_weights"), value) {
            weights[[3, 2]] = 0.0;
        }
    };
    let model = model::<f64>(json!({}));
    let stage = "model.layers.1.mlp";
    let right = Stages::of_ids(&model, ids(1, 6)).d3(stage);
    let wrong = Stages::of(&model, &input(ids(1, 6)), &Run::default(), lose).1.d3(stage);
    for t in 0..6 {
        let row = s![0, t, ..];
        assert_eq!(right.slice(row) == wrong.slice(row), t != 3);
    }
}
