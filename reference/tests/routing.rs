//! Checklist items 55 to 61 and 65: which experts, with what weight.

use crate::common::{Stages, config, difference, ids, input, logits, model, model_in, refusal, weight, weights};
use approx::assert_abs_diff_eq;
use dsv2_reference::{DeepseekV2ForCausalLM, Dialect, Dtype, Real, Run, StageValue, Tensor};
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
pub fn greedy(patch: Value) -> Value {
    let mut greedy = json!({"topk_method": "greedy"});
    patch.as_object().unwrap().iter().for_each(|(key, value)| greedy[key] = value.clone());
    greedy
}

#[test]
fn router_logits_are_the_gates_product_with_the_token() {
    let stages = Stages::of_ids(&model::<f64>(json!({})), ids(1, 5));
    let tokens = stages.d3("model.layers.1.post_attention_layernorm").index_axis_move(Axis(0), 0);
    let by_hand = tokens.dot(&weight(&format!("{GATE}.weight"), [8, 32]).t());
    assert_abs_diff_eq!(stages.d2(&format!("{GATE}.router_logits")), by_hand, epsilon = 1e-13);
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
fn greedy_selection_ignores_the_groups() {
    let expected = logits(&model::<f64>(greedy(json!({}))), &input(ids(1, 6)));
    let other = greedy(json!({"n_group": 3, "topk_group": null}));
    assert_eq!(logits(&model::<f64>(other), &input(ids(1, 6))), expected);
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
fn a_single_expert_has_the_scaling_factor_for_its_weight() {
    let one = greedy(json!({"n_routed_experts": 1, "num_experts_per_tok": 1}));
    let stages = Stages::of_ids(&model::<f64>(one), ids(1, 4));
    assert_eq!(stages.d2(&format!("{GATE}.topk_weights")), Array2::from_elem((4, 1), 2.5));
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
fn the_router_stays_fp32_when_everything_else_is_rounded_to_bf16() {
    let model = model::<f32>(json!({}));
    let stages = Stages::rounded(&model, &input(ids(1, 7)), Dtype::Bf16).1;
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
fn the_routers_weight_is_used_as_it_is_stored() {
    let name = format!("{GATE}.weight");
    let fp32 = Tensor::from_values(Dtype::F32, &[8, 32], weight(&name, [8, 32]).into_iter().map(|w| w * 1.003));
    let stored: Array2<f64> = fp32.to_array();
    let exchanged = Exchanged(weights(), |asked: &str, _: &[usize]| (asked == name).then(|| fp32.clone()));
    let model = DeepseekV2ForCausalLM::<f32>::load(&config(json!({})), Dialect::Hf, &exchanged).unwrap();
    let stages = Stages::rounded(&model, &input(ids(1, 7)), Dtype::Bf16).1;
    let tokens = stages.d3("model.layers.1.post_attention_layernorm").index_axis_move(Axis(0), 0).mapv(f64::from);
    let router_logits = stages.d2(&format!("{GATE}.router_logits")).mapv(f64::from);
    assert_abs_diff_eq!(router_logits, tokens.dot(&stored.t()), epsilon = 3e-6);
    let rounded: Array2<f64> = Tensor::from_values(Dtype::Bf16, &[8, 32], stored).to_array();
    assert!(difference(&router_logits, &tokens.dot(&rounded.t())) > 1e-4);
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
