//! Checklist items 34 to 44: masks and position ids.

use crate::common::{Stages, difference, ids, input, input_refusal, input_with, logits, logits_after, model, tiny};
use approx::assert_abs_diff_eq;
use dsv2_reference::AttentionMask::{Additive, Padding};
use dsv2_reference::{AttentionMask, LatentCache, NoTap, Run};
use ndarray::{Array2, Array3, Array4, array, concatenate, s};
use serde_json::{Value, json};

/// Three rotary embeddings that depend on differences of positions only.
fn ropes() -> [Value; 3] {
    [Value::Null, json!({"type": "linear", "factor": 4}), tiny(json!({}))["rope_scaling"].clone()]
}

const PADS: usize = 3;

/// `PADS` padding tokens in front of each row.
fn left_padded(ids: &Array2<i64>) -> Array2<i64> {
    concatenate![ndarray::Axis(1), Array2::zeros((ids.nrows(), PADS)), *ids]
}

fn left_mask(batch: usize, length: usize) -> Array2<bool> {
    Array2::from_shape_fn((batch, PADS + length), |(_, t)| t >= PADS)
}

/// What `generate` derives from the mask: 0 for padding, then 0, 1, 2, ...
fn counted_positions(batch: usize, length: usize) -> Array2<i64> {
    Array2::from_shape_fn((batch, PADS + length), |(_, t)| t.saturating_sub(PADS) as i64)
}

fn real_part(logits: &Array3<f64>) -> Array3<f64> {
    logits.slice(s![.., PADS.., ..]).to_owned()
}

#[test]
fn left_padding_without_position_ids_changes_only_the_rounding_of_angles() {
    for rope in ropes() {
        let model = model::<f64>(json!({"rope_scaling": rope}));
        let plain = logits(&model, &input(ids(2, 8)));
        let padded = logits(&model, &input_with(left_padded(&ids(2, 8)), Some(Padding(left_mask(2, 8))), None));
        assert_abs_diff_eq!(real_part(&padded), plain, epsilon = 1e-5);
        assert!(difference(&real_part(&padded), &plain) > 0.0);
    }
}

#[test]
fn left_padding_that_makes_a_dynamic_rope_grow_changes_the_result() {
    let model = model::<f64>(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 9}));
    let plain = logits(&model, &input(ids(1, 8)));
    let mask = || Some(Padding(left_mask(1, 8)));
    let padded = logits(&model, &input_with(left_padded(&ids(1, 8)), mask(), None));
    assert!(difference(&real_part(&padded), &plain) > 1e-3);
    let counted = input_with(left_padded(&ids(1, 8)), mask(), Some(counted_positions(1, 8)));
    assert_abs_diff_eq!(real_part(&logits(&model, &counted)), plain, epsilon = 1e-12);
}

#[test]
fn rows_of_different_lengths_share_a_batch() {
    let model = model::<f64>(json!({}));
    let mut together = ids(2, 8);
    let short = together.slice(s![1..2, 3..]).to_owned();
    together.slice_mut(s![1, ..3]).fill(0);
    let mask = Array2::from_shape_fn((2, 8), |(b, t)| b == 0 || t >= 3);
    let positions = array![[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 2, 3, 4]];
    let batch = logits(&model, &input_with(together, Some(Padding(mask)), Some(positions)));
    assert_abs_diff_eq!(batch.slice(s![..1, .., ..]), logits(&model, &input(ids(1, 8))), epsilon = 1e-12);
    assert_abs_diff_eq!(batch.slice(s![1.., 3.., ..]), logits(&model, &input(short)), epsilon = 1e-12);
}

#[test]
fn right_padding_does_not_touch_the_real_tokens_with_or_without_a_mask() {
    let model = model::<f64>(json!({}));
    let plain = logits(&model, &input(ids(2, 6)));
    let padded = concatenate![ndarray::Axis(1), ids(2, 6), Array2::from_elem((2, 4), 7)];
    let mask = Array2::from_shape_fn((2, 10), |(_, t)| t < 6);
    let unmasked = logits(&model, &input(padded.clone()));
    let masked = logits(&model, &input_with(padded, Some(Padding(mask)), None));
    assert_eq!(unmasked.slice(s![.., ..6, ..]), plain);
    assert_eq!(masked.slice(s![.., ..6, ..]), plain);
    assert!(difference(&masked, &unmasked) > 0.0, "the padding's own rows do see the mask");
}

#[test]
fn padding_in_the_middle_hides_a_token_from_all_later_ones() {
    let model = model::<f64>(json!({}));
    let mask = || Some(Padding(array![[true, true, false, true, true]]));
    let mut other = ids(1, 5);
    other[[0, 2]] = 49;
    let a = logits(&model, &input_with(ids(1, 5), mask(), None));
    let b = logits(&model, &input_with(other, mask(), None));
    for t in [0, 1, 3, 4] {
        assert_eq!(a.slice(s![.., t, ..]), b.slice(s![.., t, ..]));
    }
    assert!(difference(&a, &logits(&model, &input(ids(1, 5)))) > 1e-2);
}

#[test]
fn a_2_d_mask_is_made_of_booleans_and_a_4_d_mask_of_numbers() {
    // The compiler is the judge: these are all the masks there are. No integer and no 4-D boolean needs a meaning.
    let axes = |mask: AttentionMask<f64>| match mask {
        Padding(mask) => <Array2<bool>>::ndim(&mask),
        Additive(mask) => <Array4<f64>>::ndim(&mask),
    };
    assert_eq!(axes(Padding(array![[true]])), 2);
    assert_eq!(axes(Additive(Array4::zeros((1, 1, 1, 1)))), 4);
}

#[test]
fn a_padding_mask_of_ones_is_no_mask() {
    let model = model::<f64>(json!({}));
    let ones = Array2::from_elem((2, 7), true);
    assert_eq!(logits(&model, &input_with(ids(2, 7), Some(Padding(ones)), None)), logits(&model, &input(ids(2, 7))));
}

/// 0 where the causal rule and `mask` allow, `forbidden` elsewhere.
fn additive(mask: &Array2<bool>, forbidden: f64) -> Array4<f64> {
    let (batch, length) = mask.dim();
    Array4::from_shape_fn(
        (batch, 1, length, length),
        |(b, _, q, t)| if t <= q && mask[[b, t]] { 0.0 } else { forbidden },
    )
}

#[test]
fn an_additive_mask_equals_the_padding_mask_that_it_spells_out() {
    let model = model::<f64>(json!({}));
    let mask = Array2::from_shape_fn((2, 8), |(b, t)| b == 0 || !(2..4).contains(&t));
    let by_padding = logits(&model, &input_with(ids(2, 8), Some(Padding(mask.clone())), None));
    for forbidden in [f64::NEG_INFINITY, f64::from(f32::MIN), f64::MIN, f64::from(f32::MIN) / 2.0] {
        let by_bias = input_with(ids(2, 8), Some(Additive(additive(&mask, forbidden))), None);
        assert_eq!(logits(&model, &by_bias), by_padding);
    }
    let all = Array2::from_elem((1, 8), true);
    let one_for_all = input_with(ids(2, 8), Some(Additive(additive(&all, f64::NEG_INFINITY))), None);
    assert_eq!(logits(&model, &one_for_all), logits(&model, &input(ids(2, 8))));
}

#[test]
fn a_finite_bias_is_added_to_the_scores() {
    let model = model::<f64>(json!({}));
    let mut bias = additive(&Array2::from_elem((1, 5), true), f64::NEG_INFINITY);
    bias[[0, 0, 4, 1]] = 1.25;
    let stage = "model.layers.0.self_attn.attn_scores";
    let biased = Stages::of(&model, &input_with(ids(1, 5), Some(Additive(bias)), None), &Run::default(), |_, _| {}).1;
    let plain = Stages::of_ids(&model, ids(1, 5));
    let (biased, plain) = (biased.d4(stage), plain.d4(stage));
    for (at, score) in biased.indexed_iter() {
        let (_, _, q, t) = at;
        let expected = plain[at] + if (q, t) == (4, 1) { 1.25 } else { 0.0 };
        assert_eq!(*score, expected);
    }
}

#[test]
fn an_additive_mask_of_zeros_lets_every_token_see_every_other() {
    let model = model::<f64>(json!({}));
    let run = |ids| {
        let input = input_with(ids, Some(Additive(Array4::zeros((1, 1, 6, 6)))), None);
        Stages::of(&model, &input, &Run::default(), |_, _| {}).1
    };
    let stages = run(ids(1, 6));
    let weights = stages.d4("model.layers.0.self_attn.attn_weights");
    assert!(weights.iter().all(|p| *p > 0.0));
    weights.rows().into_iter().for_each(|row| assert_abs_diff_eq!(row.sum(), 1.0, epsilon = 1e-14));
    let mut other = ids(1, 6);
    other[[0, 5]] = 49;
    let first = s![0, 0, ..];
    assert_ne!(stages.d3("lm_head").slice(first), run(other).d3("lm_head").slice(first));
}

#[test]
fn a_mask_of_another_shape_is_refused() {
    let model = model::<f64>(json!({}));
    let refusal = |mask| input_refusal(&model, &input_with(ids(2, 4), Some(mask), None));
    assert_eq!(
        refusal(Padding(Array2::from_elem((2, 5), true))),
        "input `attention_mask`: expected shape [2, 4] (cached and new tokens), found shape [2, 5]"
    );
    assert_eq!(
        refusal(Additive(Array4::zeros((2, 5, 4, 4)))),
        "input `attention_mask`: expected shape [1 or 2, 1 or 4, 1 or 4, 4], found shape [2, 5, 4, 4]"
    );
    assert_eq!(
        refusal(Additive(Array4::from_elem((1, 1, 4, 4), f64::NAN))),
        "input `attention_mask`: expected no NaN and no plus infinity, found NaN"
    );
}

#[test]
fn packed_sequences_without_cache_and_mask_are_separate_runs() {
    let model = model::<f64>(json!({}));
    let positions = array![[0, 1, 2, 0, 1, 2, 3, 4]];
    let packed = logits(&model, &input_with(ids(1, 8), None, Some(positions.clone())));
    let first = logits(&model, &input(ids(1, 8).slice(s![.., ..3]).to_owned()));
    let second = logits(&model, &input(ids(1, 8).slice(s![.., 3..]).to_owned()));
    assert_abs_diff_eq!(packed.slice(s![.., ..3, ..]), first, epsilon = 1e-12);
    assert_abs_diff_eq!(packed.slice(s![.., 3.., ..]), second, epsilon = 1e-12);

    // With a cache, or with a mask, the same positions are just positions.
    let mut cache = LatentCache::new(model.model().config(), 1);
    let cached = logits_after(&model, &mut cache, &input_with(ids(1, 8), None, Some(positions.clone())));
    assert!(difference(&cached, &packed) > 0.1);
    let ones = Padding(Array2::from_elem((1, 8), true));
    assert_eq!(logits(&model, &input_with(ids(1, 8), Some(ones), Some(positions))), cached);
}

#[test]
fn positions_with_gaps_make_each_token_a_sequence_of_its_own_unless_there_is_a_mask() {
    let model = model::<f64>(json!({}));
    let gaps = array![[0, 2, 4, 6]];
    let alone = logits(&model, &input_with(ids(1, 4), None, Some(gaps.clone())));
    for t in 0..4 {
        let token = ids(1, 4).slice(s![.., t..t + 1]).to_owned();
        assert_abs_diff_eq!(alone.slice(s![.., t..t + 1, ..]), logits(&model, &input(token)), epsilon = 1e-12);
    }
    let ones = Padding(Array2::from_elem((1, 4), true));
    assert!(difference(&alone, &logits(&model, &input_with(ids(1, 4), Some(ones), Some(gaps)))) > 0.1);
}

#[test]
fn one_row_of_positions_serves_the_whole_batch() {
    let model = model::<f64>(json!({}));
    let one = array![[3, 4, 5, 6, 7]];
    let each = concatenate![ndarray::Axis(0), one, one];
    assert_eq!(
        logits(&model, &input_with(ids(2, 5), None, Some(one))),
        logits(&model, &input_with(ids(2, 5), None, Some(each)))
    );
    let counted = array![[0, 1, 2, 3, 4]];
    assert_eq!(logits(&model, &input_with(ids(2, 5), None, Some(counted))), logits(&model, &input(ids(2, 5))));
}

#[test]
fn positions_of_another_shape_are_refused() {
    let model = model::<f64>(json!({}));
    let refusal = input_refusal(&model, &input_with(ids(2, 4), None, Some(Array2::zeros((3, 4)))));
    assert_eq!(refusal, "input `position_ids`: expected shape [1 or 2, 4], found shape [3, 4]");
}

#[test]
fn default_positions_count_on_from_the_cache() {
    let model = model::<f64>(json!({}));
    let step = |positions| {
        let mut cache = LatentCache::new(model.model().config(), 1);
        logits_after(&model, &mut cache, &input(ids(1, 4)));
        let next = input_with(array![[9, 8]], None, positions);
        model.forward(&next, Some(&mut cache), &Run::default(), &mut NoTap).unwrap().logits
    };
    assert_eq!(step(None), step(Some(array![[4, 5]])));
    assert!(difference(&step(None), &step(Some(array![[0, 1]]))) > 0.1);
}
