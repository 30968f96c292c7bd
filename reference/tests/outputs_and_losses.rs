//! Checklist items 68 to 76 and 79: what goes in and comes out; losses; the rounding tap.

use crate::common::{
    self, Stages, asked_for, difference, ids, input, input_refusal, logits, model, nll, weight, weights,
};
use approx::assert_abs_diff_eq;
use dsv2_reference::model::loss::IGNORE_INDEX;
use dsv2_reference::round::RoundingTap;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{
    AttentionMask, CausalLmInput, CausalLmLabels, DeepseekV2ForCausalLM, Dialect, Dtype, LogitsToKeep, ModelInput,
    NoTap, Run, Tokens,
};
use dsv2_testing::Exchanged;
use ndarray::{Array2, Array3, Axis, array, concatenate, s};
use serde_json::json;

const EVERYTHING: Run = Run {
    attention: dsv2_reference::AttentionForm::Expanded,
    output_hidden_states: true,
    output_attentions: true,
    output_router_logits: true,
};

#[test]
fn hidden_states_are_the_embeddings_and_each_layers_output_the_last_after_the_norm() {
    let (output, stages) = Stages::of(&model::<f64>(json!({})), &input(ids(2, 5)), &EVERYTHING, |_, _| {});
    let hidden_states = output.hidden_states.unwrap();
    let expected = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"];
    assert_eq!(hidden_states.len(), 4);
    for (found, expected) in hidden_states.iter().zip(expected) {
        assert_eq!(found, stages.d3(expected), "{expected}");
    }
}

#[test]
fn untied_the_last_hidden_state_is_before_the_norm() {
    let untied = model::<f64>(json!({"tie_last_hidden_states": false}));
    let (output, stages) = Stages::of(&untied, &input(ids(2, 5)), &EVERYTHING, |_, _| {});
    let hidden_states = output.hidden_states.unwrap();
    assert_eq!((hidden_states.len(), &hidden_states[3]), (4, &stages.d3("model.layers.2")));
}

#[test]
fn router_logits_are_raw_and_of_expert_layers_only() {
    let (output, stages) = Stages::of(&model::<f64>(json!({})), &input(ids(2, 5)), &EVERYTHING, |_, _| {});
    let router_logits = output.router_logits.unwrap();
    assert_eq!(router_logits.len(), 2);
    for (found, layer) in router_logits.iter().zip([1, 2]) {
        assert_eq!(found.dim(), (10, 8));
        assert_eq!(found, stages.d2(&format!("model.layers.{layer}.mlp.gate.router_logits")));
    }
    // Row b S + s is token s of sequence b.
    let second = ids(2, 5).slice(s![1.., ..]).to_owned();
    let (alone, _) = Stages::of(&model::<f64>(json!({})), &input(second), &EVERYTHING, |_, _| {});
    assert_eq!(alone.router_logits.unwrap()[0], router_logits[0].slice(s![5.., ..]));
}

#[test]
fn extra_outputs_come_only_if_they_are_asked_for_and_change_nothing() {
    let model = model::<f64>(json!({}));
    let plain = model.forward(&input(ids(1, 4)), None, &Run::default(), &mut NoTap).unwrap();
    assert!(plain.hidden_states.is_none() && plain.attentions.is_none() && plain.router_logits.is_none());
    assert!(plain.loss.is_none());
    assert_eq!(model.forward(&input(ids(1, 4)), None, &EVERYTHING, &mut NoTap).unwrap().logits, plain.logits);
}

fn embeds_input(embeds: Array3<f64>) -> CausalLmInput<f64> {
    CausalLmInput {
        input: ModelInput { tokens: Tokens::InputsEmbeds(embeds), attention_mask: None, position_ids: None },
        logits_to_keep: LogitsToKeep::default(),
        labels: None,
    }
}

#[test]
fn embeddings_are_as_good_as_the_ids_that_they_belong_to() {
    let model = model::<f64>(json!({}));
    let table = weight("model.embed_tokens.weight", [50, 32]);
    let embeds = Array3::from_shape_fn((2, 6, 32), |(b, s, e)| table[[ids(2, 6)[[b, s]] as usize, e]]);
    assert_eq!(logits(&model, &embeds_input(embeds)), logits(&model, &input(ids(2, 6))));
}

#[test]
fn impossible_tokens_are_refused() {
    let model = model::<f64>(json!({}));
    let of_ids = |ids| input_refusal(&model, &input(ids));
    assert_eq!(of_ids(array![[1, 50]]), "input `input_ids`: expected token ids 0 to 49, found 50 at [0, 1]");
    assert_eq!(of_ids(array![[1], [-1]]), "input `input_ids`: expected token ids 0 to 49, found -1 at [1, 0]");
    let empty = "input `input_ids`: expected at least one sequence of one token, found shape";
    assert_eq!(of_ids(Array2::zeros((0, 3))), format!("{empty} [0, 3]"));
    assert_eq!(of_ids(Array2::zeros((2, 0))), format!("{empty} [2, 0]"));
    let of_embeds = |embeds| input_refusal(&model, &embeds_input(embeds));
    assert_eq!(
        of_embeds(Array3::zeros((2, 3, 31))),
        "input `inputs_embeds`: expected shape [2, 3, 32], found shape [2, 3, 31]"
    );
    assert_eq!(
        of_embeds(Array3::zeros((2, 0, 32))),
        "input `inputs_embeds`: expected at least one sequence of one token, found shape [2, 0]"
    );
    let mut poisoned = Array3::zeros((1, 2, 32));
    poisoned[[0, 1, 4]] = f64::NAN;
    assert_eq!(of_embeds(poisoned), "input `inputs_embeds`: expected finite numbers, found NaN at (0, 1, 4)");
    let infinite = Array3::from_elem((1, 1, 32), f64::INFINITY);
    assert_eq!(of_embeds(infinite), "input `inputs_embeds`: expected finite numbers, found inf at (0, 0, 0)");
}

fn keep(logits_to_keep: LogitsToKeep) -> CausalLmInput<f64> {
    CausalLmInput { logits_to_keep, ..input(ids(2, 6)) }
}

#[test]
fn an_integer_keeps_the_last_logits_or_drops_the_first() {
    let model = model::<f64>(json!({}));
    let all = logits(&model, &input(ids(2, 6)));
    for (k, first) in [(0, 0), (1, 5), (4, 2), (6, 0), (99, 0), (-1, 1), (-4, 4), (-6, 6), (-99, 6)] {
        let kept = logits(&model, &keep(LogitsToKeep::Last(k)));
        assert_eq!(kept, all.slice(s![.., first.., ..]), "{k}");
    }
}

#[test]
fn positions_keep_their_logits_for_all_rows_or_for_each() {
    let model = model::<f64>(json!({}));
    let all = logits(&model, &input(ids(2, 6)));
    let kept = logits(&model, &keep(LogitsToKeep::Positions(vec![4, 0, -1, 4])));
    assert_eq!(kept, all.select(Axis(1), &[4, 0, 5, 4]));
    let kept = logits(&model, &keep(LogitsToKeep::PerSample(array![[1, 3], [5, -6]])));
    let row = |b: usize, positions| all.select(Axis(0), &[b]).select(Axis(1), positions);
    assert_eq!(kept, concatenate![Axis(0), row(0, &[1, 3]), row(1, &[5, 0])]);
    let refused = [
        (LogitsToKeep::Positions(vec![6]), "positions -6 to 5, found 6"),
        (LogitsToKeep::PerSample(array![[1], [-7]]), "positions -6 to 5, found -7"),
        (LogitsToKeep::PerSample(array![[1]]), "shape [2, n], found shape [1, 1]"),
        (LogitsToKeep::Mask(Array2::from_elem((2, 5), true)), "shape [2, 6], found shape [2, 5]"),
    ];
    for (kept, expected) in refused {
        assert_eq!(input_refusal(&model, &keep(kept)), format!("input `logits_to_keep`: expected {expected}"));
    }
}

#[test]
fn marked_positions_of_all_sequences_come_in_one_row() {
    let model = model::<f64>(json!({}));
    let all = logits(&model, &input(ids(2, 6)));
    let mut mask = Array2::from_elem((2, 6), false);
    [[0, 2], [0, 5], [1, 0]].iter().for_each(|&at| mask[at] = true);
    let kept = logits(&model, &keep(LogitsToKeep::Mask(mask)));
    assert_eq!(kept.dim(), (1, 3, 50));
    for (row, (b, t)) in [(0, 2), (0, 5), (1, 0)].into_iter().enumerate() {
        assert_eq!(kept.slice(s![0, row, ..]), all.slice(s![b, t, ..]));
    }
}

fn loss(model: &DeepseekV2ForCausalLM<f64>, input: CausalLmInput<f64>, labels: CausalLmLabels) -> f64 {
    let input = CausalLmInput { labels: Some(labels), ..input };
    model.forward(&input, None, &Run::default(), &mut NoTap).unwrap().loss.unwrap()
}

#[test]
fn the_loss_is_the_mean_cross_entropy_of_the_next_labels() {
    let model = model::<f64>(json!({}));
    let z = logits(&model, &input(ids(2, 6)));
    let mut labels = ids(2, 6);
    labels[[0, 0]] = 3; // never judged: nothing comes before it
    labels[[1, 2]] = IGNORE_INDEX;
    let judged = || ndarray::indices((2, 5)).into_iter().filter(|at| *at != (1, 1));
    let sum: f64 = judged().map(|(b, t)| nll(z.slice(s![b, t, ..]), labels[[b, t + 1]])).sum();
    let loss = |labels| loss(&model, input(ids(2, 6)), labels);
    assert_abs_diff_eq!(loss(CausalLmLabels::new(labels.clone())), sum / 9.0, epsilon = 1e-13);
    let items = CausalLmLabels { num_items_in_batch: Some(4.0), ..CausalLmLabels::new(labels.clone()) };
    assert_abs_diff_eq!(loss(items), sum / 4.0, epsilon = 1e-13);
    // Another label may be the one that does not count; -100 is then no label at all.
    let other = CausalLmLabels { ignore_index: 7, ..CausalLmLabels::new(labels.mapv(|y| if y < 0 { 7 } else { y })) };
    let counted = |(b, t): &(usize, usize)| labels[[*b, t + 1]] != 7;
    let terms: Vec<f64> =
        judged().filter(counted).map(|(b, t)| nll(z.slice(s![b, t, ..]), labels[[b, t + 1]])).collect();
    assert_abs_diff_eq!(loss(other), terms.iter().sum::<f64>() / terms.len() as f64, epsilon = 1e-13);
}

#[test]
fn labels_may_be_shifted_already() {
    let model = model::<f64>(json!({}));
    let plain = loss(&model, input(ids(2, 6)), CausalLmLabels::new(ids(2, 6)));
    let mut shifted = Array2::from_elem((2, 6), IGNORE_INDEX);
    shifted.slice_mut(s![.., ..5]).assign(&ids(2, 6).slice(s![.., 1..]));
    let shifted = CausalLmLabels { shifted: true, ..CausalLmLabels::new(shifted) };
    assert_eq!(loss(&model, input(ids(2, 6)), shifted), plain);
}

#[test]
fn padding_is_judged_like_any_other_token() {
    let model = model::<f64>(json!({"pad_token_id": 0}));
    let padded = concatenate![Axis(1), ids(1, 4), array![[0, 0]]];
    let mask = AttentionMask::Padding(array![[true, true, true, true, false, false]]);
    let masked = CausalLmInput {
        input: ModelInput { attention_mask: Some(mask), ..ModelInput::ids(padded.clone()) },
        ..input(padded.clone())
    };
    let z = logits(&model, &masked);
    let by_hand: f64 = (0..5).map(|t| nll(z.slice(s![0, t, ..]), padded[[0, t + 1]])).sum();
    assert_abs_diff_eq!(loss(&model, masked, CausalLmLabels::new(padded)), by_hand / 5.0, epsilon = 1e-13);
}

#[test]
fn a_loss_over_nothing_is_nan_and_a_sum_over_nothing_zero() {
    let model = model::<f64>(json!({}));
    let none = CausalLmLabels::new(Array2::from_elem((1, 4), IGNORE_INDEX));
    assert!(loss(&model, input(ids(1, 4)), none.clone()).is_nan());
    assert!(loss(&model, input(ids(1, 1)), CausalLmLabels::new(ids(1, 1))).is_nan());
    let items = |items, labels| CausalLmLabels { num_items_in_batch: Some(items), ..labels };
    assert_eq!(loss(&model, input(ids(1, 4)), items(3.0, none)), 0.0);
    assert_eq!(loss(&model, input(ids(1, 4)), items(0.0, CausalLmLabels::new(ids(1, 4)))), f64::INFINITY);
}

#[test]
fn labels_that_are_no_tokens_or_not_as_many_as_the_logits_are_refused() {
    let model = model::<f64>(json!({}));
    let refusal = |labels| {
        input_refusal(&model, &CausalLmInput { labels: Some(CausalLmLabels::new(labels)), ..input(ids(1, 3)) })
    };
    let expected = "input `labels`: expected 0 to 49, or -100 to ignore, found";
    assert_eq!(refusal(array![[1, 50, 2]]), format!("{expected} 50"));
    assert_eq!(refusal(array![[1, 2, -1]]), format!("{expected} -1"));
    assert_eq!(
        refusal(array![[1, 2]]),
        "input `labels`: expected shape [1, 3] (a label for each position with logits), found shape [1, 2]"
    );
}

#[test]
fn with_sliced_logits_the_labels_are_shifted_inside_the_slice() {
    let model = model::<f64>(json!({}));
    let z = logits(&model, &input(ids(2, 6)));
    let labels = ids(2, 6).slice(s![.., 3..]).to_owned();
    let by_hand: f64 =
        ndarray::indices((2, 2)).into_iter().map(|(b, t)| nll(z.slice(s![b, 3 + t, ..]), labels[[b, t + 1]])).sum();
    let sliced = loss(&model, keep(LogitsToKeep::Last(3)), CausalLmLabels::new(labels));
    assert_abs_diff_eq!(sliced, by_hand / 4.0, epsilon = 1e-13);
    let whole = CausalLmInput { labels: Some(CausalLmLabels::new(ids(2, 6))), ..keep(LogitsToKeep::Last(3)) };
    assert_eq!(
        input_refusal(&model, &whole),
        "input `labels`: expected shape [2, 3] (a label for each position with logits), found shape [2, 6]"
    );
}

#[test]
fn no_auxiliary_loss_is_in_the_loss() {
    let with = json!({"aux_loss_alpha": 10.0, "seq_aux": false, "output_router_logits": true});
    let labels = || CausalLmLabels::new(ids(1, 6));
    assert_eq!(loss(&model(with), input(ids(1, 6)), labels()), loss(&model(json!({})), input(ids(1, 6)), labels()));
}

#[test]
fn tied_embeddings_are_the_output_head() {
    let tied = json!({"tie_word_embeddings": true});
    // Another output head, which the source of these weights has, is not looked at.
    assert!(!asked_for(tied.clone()).iter().any(|name| name == "lm_head.weight"));
    let stages = Stages::of_ids(&model::<f64>(tied), ids(1, 4));
    let last = stages.d3("model.norm").index_axis_move(Axis(0), 0);
    let by_hand = last.dot(&weight("model.embed_tokens.weight", [50, 32]).t());
    assert_abs_diff_eq!(stages.d3("lm_head").index_axis_move(Axis(0), 0), by_hand, epsilon = 1e-12);
    let copied = Exchanged(weights(), |name: &str, shape: &[usize]| {
        (name == "lm_head.weight").then(|| weights().tensor("model.embed_tokens.weight", shape).unwrap())
    });
    let copied = DeepseekV2ForCausalLM::<f64>::load(&common::config(json!({})), Dialect::Hf, &copied).unwrap();
    assert_eq!(logits(&copied, &input(ids(1, 4))), stages.d3("lm_head"));
}

#[test]
fn every_rounded_stage_is_bf16_exact_and_the_rest_is_not() {
    let is_bf16 = |x: &f32| x.to_bits() & 0xffff == 0;
    let labels = Some(CausalLmLabels::new(ids(2, 7)));
    let input = CausalLmInput { labels, ..input(ids(2, 7)) };
    let (output, stages) = Stages::rounded(&model::<f32>(json!({})), &input, Dtype::Bf16);
    for (name, values) in stages.all() {
        let expected = RoundingTap::rounds(name);
        assert_eq!(values.iter().all(is_bf16), expected, "{name}");
    }
    let kept_fp32 = ["model.rotary_emb.cos", "model.rotary_emb.sin", "loss", "model.layers.2.mlp.gate.topk_weights"];
    assert!(kept_fp32.iter().all(|name| stages.has(name) && !RoundingTap::rounds(name)));
    assert!(output.logits.iter().all(is_bf16) && !is_bf16(&output.loss.unwrap()));
    // It is an error of bf16's size, not more.
    let exact = logits(&model::<f64>(json!({})), &common::input(ids(2, 7)));
    let error = output.logits.mapv(f64::from) - &exact;
    let relative = (error.iter().map(|x| x * x).sum::<f64>() / exact.iter().map(|x| x * x).sum::<f64>()).sqrt();
    assert!(relative > 1e-3 && relative < 0.2, "{relative}");
}

#[test]
fn rounding_to_f64_changes_nothing_and_to_f16_leaves_halves() {
    let run = |dtype| Stages::rounded(&model::<f64>(json!({})), &input(ids(1, 5)), dtype).0.logits;
    assert_eq!(run(Dtype::F64), logits(&model::<f64>(json!({})), &input(ids(1, 5))));
    assert!(run(Dtype::F16).iter().all(|&x| half::f16::from_f64(x).to_f64() == x));
}

#[test]
fn fp32_is_the_same_computation_as_f64_up_to_rounding() {
    let double = logits(&model::<f64>(json!({})), &input(ids(2, 9)));
    let single = logits(&model::<f32>(json!({})), &input(ids(2, 9))).mapv(f64::from);
    let largest = double.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    assert!(difference(&double, &single) < 1e-5 * largest);
    assert!(difference(&double, &single) > 0.0);
}
