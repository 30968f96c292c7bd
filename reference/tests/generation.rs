//! Checklist item 52: greedy generation.

use crate::common::{self, ids, input, logits, model};
use dsv2_reference::DeepseekV2ForCausalLM;
use dsv2_testing::Exchanged;
use ndarray::{Array2, Axis, array, concatenate, s};
use serde_json::json;

/// The tiny model without an end token, with the rope type of the test at hand.
fn endless(rope_scaling: serde_json::Value) -> DeepseekV2ForCausalLM<f64> {
    model(json!({"eos_token_id": null, "rope_scaling": rope_scaling}))
}

fn yarn() -> serde_json::Value {
    common::tiny(json!({}))["rope_scaling"].clone()
}

/// The likeliest token after each sequence, from a run over the whole of it without a cache.
fn next_tokens(model: &DeepseekV2ForCausalLM<f64>, ids: &Array2<i64>) -> Array2<i64> {
    let logits = logits(model, &input(ids.clone()));
    let best = |row: ndarray::ArrayView1<f64>| {
        let mut best = 0;
        (1..row.len()).for_each(|token| best = if row[token] > row[best] { token } else { best });
        best as i64
    };
    let last = logits.slice(s![.., -1, ..]);
    Array2::from_shape_vec((ids.nrows(), 1), last.rows().into_iter().map(best).collect()).unwrap()
}

#[test]
fn generation_through_the_cache_is_generation_without_it() {
    for rope in [yarn(), serde_json::Value::Null, json!({"type": "linear", "factor": 4})] {
        let model = endless(rope);
        let mut all = ids(2, 5);
        for _ in 0..12 {
            let next = next_tokens(&model, &all);
            all.append(Axis(1), next.view()).unwrap();
        }
        let generated = model.generate(&ids(2, 5), None, 12).unwrap();
        assert_eq!(generated, all.slice(s![.., 5..]));
        let distinct: std::collections::BTreeSet<_> = generated.iter().collect();
        assert!(distinct.len() > 4, "an interesting text: {generated}");
    }
}

#[test]
fn a_left_padded_prompt_goes_on_as_without_padding() {
    let model = endless(yarn());
    let plain = model.generate(&ids(1, 5), None, 12).unwrap();
    let padded = concatenate![Axis(1), array![[0, 0, 0]], ids(1, 5)];
    let mask = array![[false, false, false, true, true, true, true, true]];
    assert_eq!(model.generate(&padded, Some(&mask), 12).unwrap(), plain);
}

#[test]
fn without_a_mask_a_padding_token_is_a_token_like_any_other() {
    let model = model::<f64>(json!({"eos_token_id": null, "pad_token_id": 0}));
    let padded = concatenate![Axis(1), array![[0, 0, 0]], ids(1, 5)];
    let generated = model.generate(&padded, None, 12).unwrap();
    assert_eq!(generated.slice(s![.., ..1]), next_tokens(&model, &padded));
    assert_ne!(generated, model.generate(&ids(1, 5), None, 12).unwrap(), "the padding is seen");
}

#[test]
fn positions_are_counted_from_the_first_real_token() {
    // Only a rope whose frequencies depend on the positions themselves, not on their differences, can tell.
    let dynamic = json!({"type": "dynamic", "factor": 8});
    let patch = json!({"eos_token_id": null, "rope_scaling": dynamic, "max_position_embeddings": 8});
    let model = model::<f64>(patch);
    let plain = model.generate(&ids(1, 5), None, 20).unwrap();
    let padded = concatenate![Axis(1), Array2::zeros((1, 6)), ids(1, 5)];
    let mask = Array2::from_shape_fn((1, 11), |(_, t)| t >= 6);
    assert_eq!(model.generate(&padded, Some(&mask), 20).unwrap(), plain);
}

#[test]
fn prompts_of_different_lengths_go_on_as_if_they_were_alone() {
    let model = endless(yarn());
    let (long, short) = (ids(1, 8), ids(2, 5).slice(s![1.., ..]).to_owned());
    let batch = concatenate![Axis(0), long, concatenate![Axis(1), array![[9, 9, 9]], short]];
    let mask = Array2::from_shape_fn((2, 8), |(b, t)| b == 0 || t >= 3);
    let generated = model.generate(&batch, Some(&mask), 10).unwrap();
    assert_eq!(generated.slice(s![..1, ..]), model.generate(&long, None, 10).unwrap());
    assert_eq!(generated.slice(s![1.., ..]), model.generate(&short, None, 10).unwrap());
}

#[test]
fn the_end_token_ends_a_text_and_padding_follows_until_all_have_ended() {
    let texts = endless(yarn()).generate(&ids(2, 5), None, 12).unwrap();
    // An end token that the first text reaches before the second one does.
    let reaches = |row: usize, token| texts.row(row).iter().position(|&t| t == token);
    let (token, at) = (1..11)
        .map(|at| (texts[[0, at]], at))
        .find(|&(token, at)| reaches(0, token) == Some(at) && reaches(1, token).is_none_or(|other| other > at))
        .expect("the texts differ");
    for (eos, pad, filler) in [(json!(token), json!(null), token), (json!([token, -7]), json!(3), 3)] {
        let ending = model::<f64>(json!({"eos_token_id": eos, "pad_token_id": pad}));
        assert_eq!(ending.generate(&ids(1, 5), None, 12).unwrap(), texts.slice(s![..1, ..=at]));
        let both = ending.generate(&ids(2, 5), None, 12).unwrap();
        let length = reaches(1, token).map_or(12, |other| other + 1);
        assert_eq!(both.ncols(), length);
        assert_eq!(both.slice(s![0, ..=at]), texts.slice(s![0, ..=at]));
        assert!(both.slice(s![0, at + 1..]).iter().all(|&t| t == filler));
        assert_eq!(both.slice(s![1, ..]), texts.slice(s![1, ..length]));
    }
}

#[test]
fn of_equal_logits_the_lower_token_id_is_generated() {
    let zero = Exchanged(common::weights(), |name: &str, shape: &[usize]| {
        let zeros = std::iter::repeat_n(0.0, shape.iter().product());
        (name == "lm_head.weight")
            .then(|| dsv2_reference::Tensor::from_values(dsv2_reference::Dtype::F32, shape, zeros))
    });
    let config = common::config(json!({}));
    let model = DeepseekV2ForCausalLM::<f64>::load(&config, dsv2_reference::Dialect::Hf, &zero).unwrap();
    assert_eq!(model.generate(&ids(1, 3), None, 4).unwrap(), array![[0, 0, 0, 0]]);
}

#[test]
fn no_new_tokens_are_none_and_a_mask_of_another_shape_is_refused() {
    let model = endless(yarn());
    assert_eq!(model.generate(&ids(2, 5), None, 0).unwrap().dim(), (2, 0));
    let error = model.generate(&ids(2, 5), Some(&Array2::from_elem((2, 6), true)), 3).unwrap_err();
    assert_eq!(error.to_string(), "input `attention_mask`: expected shape [2, 5], found shape [2, 6]");
    let error = model.generate(&Array2::zeros((1, 0)), None, 3).unwrap_err();
    assert_eq!(error.to_string(), "input `input_ids`: expected at least one sequence of one token, found shape [1, 0]");
}
