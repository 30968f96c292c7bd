//! Checklist items 21 to 25: what is rotated, and by which angle.

use crate::common::{self, Stages, config, difference, ids, input, input_with, logits, logits_after, model};
use crate::yarn_and_scale::{plain, v2_with};
use approx::{assert_abs_diff_eq, assert_relative_eq};
use dsv2_reference::model::rope::RotaryEmbedding;
use dsv2_reference::{Dialect, LatentCache, Run, StageValue};
use ndarray::{Array2, array, s};
use serde_json::{Value, json};

#[test]
fn neighbouring_elements_are_the_pairs_that_turn() {
    let model = model::<f64>(json!({}));
    let stages = Stages::of_ids(&model, ids(2, 7));
    let at = |name: &str| format!("model.layers.1.self_attn.{name}");
    let (cos, sin) = (stages.d3("model.rotary_emb.cos"), stages.d3("model.rotary_emb.sin"));
    let (q, q_pe) = (stages.d3(&at("q_b_proj")), stages.d4(&at("q_pe")));
    let (kv_a, k_pe) = (stages.d3(&at("kv_a_proj_with_mqa")), stages.d4(&at("k_pe")));
    let mut halves_differ = 0.0_f64;
    for ((b, h, t, e), &turned) in q_pe.indexed_iter() {
        // n = 6, r = 8: a head's query is 14 wide, its rotary part comes last.
        let x = |e: usize| q[[b, t, 14 * h + 6 + e]];
        let (i, angle) = (e / 2, [0, t, e / 2]);
        let by_hand = match e % 2 {
            0 => x(2 * i) * cos[angle] - x(2 * i + 1) * sin[angle],
            _ => x(2 * i) * sin[angle] + x(2 * i + 1) * cos[angle],
        };
        assert_abs_diff_eq!(turned, by_hand, epsilon = 1e-15);
        // Llama's (NeoX's) layout: element e turns with element e + r/2.
        let (i, angle) = (e % 4, [0, t, e % 4]);
        let of_halves = match e / 4 {
            0 => x(i) * cos[angle] - x(i + 4) * sin[angle],
            _ => x(i) * sin[angle] + x(i + 4) * cos[angle],
        };
        halves_differ = halves_differ.max((turned - of_halves).abs());
    }
    assert!(halves_differ > 1.0, "{halves_differ}");
    for ((b, _, t, e), &turned) in k_pe.indexed_iter() {
        let x = |e: usize| kv_a[[b, t, 12 + e]]; // c = 12: the latent comes first
        let (i, angle) = (e / 2, [0, t, e / 2]);
        let by_hand = match e % 2 {
            0 => x(2 * i) * cos[angle] - x(2 * i + 1) * sin[angle],
            _ => x(2 * i) * sin[angle] + x(2 * i + 1) * cos[angle],
        };
        assert_abs_diff_eq!(turned, by_hand, epsilon = 1e-15);
    }
}

#[test]
fn rotating_halves_instead_changes_the_logits() {
    let model = model::<f64>(json!({}));
    let right = logits(&model, &input(ids(1, 9)));
    // From the pairs' layout to the halves', on queries only: as if the two were mixed up.
    let (wrong, _) = Stages::of(&model, &input(ids(1, 9)), &Run::default(), |name, value| {
        if let (true, StageValue::Real(mut q_pe)) = (name.ends_with("q_pe"), value) {
            let pairs = q_pe.to_owned();
            for e in 0..8 {
                q_pe.slice_mut(s![.., .., .., e]).assign(&pairs.slice(s![.., .., .., 2 * (e % 4) + e / 4]));
            }
        }
    });
    assert!(difference(&right, &wrong.logits) > 0.5);
}

#[test]
fn logits_depend_on_differences_of_positions_only() {
    for rope in [Value::Null, json!({"type": "linear", "factor": 4}), common::tiny(json!({}))["rope_scaling"].clone()] {
        let model = model::<f64>(json!({"rope_scaling": rope}));
        let positions = Array2::from_shape_fn((1, 9), |(_, s)| s as i64);
        let near = logits(&model, &input_with(ids(1, 9), None, Some(positions.clone())));
        let far = logits(&model, &input_with(ids(1, 9), None, Some(positions + 100)));
        // The angles are fp32 numbers: near 100 they are rounded more coarsely.
        assert_abs_diff_eq!(near, far, epsilon = 2e-5);
        assert!(difference(&near, &far) > 0.0);
    }
}

#[test]
fn a_single_token_sees_neither_rotation_nor_scale() {
    let expected = logits(&model::<f64>(json!({})), &input(ids(1, 1)));
    for rope in [
        Value::Null,
        json!({"type": "linear", "factor": 4, "mscale_all_dim": 1}),
        json!({"type": "yarn", "factor": 40, "attention_factor": 3, "mscale_all_dim": 1}),
    ] {
        assert_eq!(logits(&model::<f64>(json!({"rope_scaling": rope})), &input(ids(1, 1))), expected);
    }
}

#[test]
fn dynamic_frequencies_grow_with_the_longest_position_stick_and_are_reset_by_a_short_call() {
    let config = v2_with(json!({"type": "dynamic", "factor": 4.0}));
    let rotary = RotaryEmbedding::new(&config, Dialect::Hf).unwrap();
    let mut state = rotary.dynamic().unwrap().clone();
    let mut is_for = |length: i64, longest: f64| {
        let theta = 10000.0 * (4.0 * longest / 4096.0 - 3.0).powf(64.0 / 62.0);
        for (found, expected) in state.update(length).into_iter().zip(plain(theta)) {
            assert_relative_eq!(f64::from(found), expected, max_relative = 1e-6);
        }
    };
    is_for(100, 4096.0); // short: plain
    is_for(4096, 4096.0); // exactly the maximum: plain
    is_for(5000, 5000.0); // grows
    is_for(4500, 5000.0); // sticks
    is_for(8192, 8192.0); // grows on
    is_for(4096, 8192.0); // exactly the maximum does not reset
    is_for(4095, 4096.0); // shorter does
    is_for(4097, 4097.0);
}

#[test]
fn dynamic_is_default_for_short_sequences_and_not_for_long_ones() {
    let default = model::<f64>(json!({"rope_scaling": null}));
    let dynamic =
        model::<f64>(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8}));
    let both = |length| [&default, &dynamic].map(|model| logits(model, &input(ids(1, length))));
    let [a, b] = both(8);
    assert_eq!(a, b);
    let [a, b] = both(9);
    assert!(difference(&a, &b) > 1e-3);
    // A call without a cache leaves nothing behind.
    let [a, b] = both(8);
    assert_eq!(a, b);
}

#[test]
fn with_a_cache_dynamic_keeps_the_rotation_of_keys_that_are_already_there() {
    let model = model::<f64>(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8}));
    let mut cache = LatentCache::new(model.model().config(), 1);
    let all = ids(1, 12);
    logits_after(&model, &mut cache, &input(all.slice(s![.., ..6]).to_owned()));
    let before = cache.layers()[0].k_pe().to_owned();
    logits_after(&model, &mut cache, &input(all.slice(s![.., 6..]).to_owned()));
    assert_eq!(cache.layers()[0].k_pe().slice(s![.., ..6, ..]), before);
    let mut at_once = LatentCache::new(model.model().config(), 1);
    logits_after(&model, &mut at_once, &input(all));
    let whole = at_once.layers()[0].k_pe();
    assert!(difference(&whole.slice(s![.., ..6, ..]).to_owned(), &before) > 1e-3);
    assert_eq!(whole.slice(s![.., 6.., ..]), cache.layers()[0].k_pe().slice(s![.., 6.., ..]));
}

#[test]
fn angles_are_fp32_products_however_far_the_position() {
    let rotary = RotaryEmbedding::new(&v2_with(Value::Null), Dialect::Hf).unwrap();
    let positions = array![[1, 100, 4095, 32767, 163839]];
    let tables = rotary.tables::<f64>(&positions, None);
    // How far a computation with real numbers for frequencies and angles would be off.
    let far_off = [1e-7, 1e-5, 1e-3, 5e-3, 2e-2];
    for (s, far_off) in far_off.into_iter().enumerate() {
        let position = positions[[0, s]] as f64;
        let mut unpinned = 0.0_f64;
        for (i, real) in plain(10000.0).into_iter().enumerate() {
            let angle = f64::from(position as f32 * rotary.inv_freq()[i]);
            assert_eq!((tables.cos[[0, s, i]], tables.sin[[0, s, i]]), (angle.cos(), angle.sin()));
            unpinned =
                unpinned.max(((position * real).cos() - angle.cos()).hypot((position * real).sin() - angle.sin()));
        }
        assert!(unpinned < far_off && unpinned > far_off / 100.0, "{position}: {unpinned}");
    }
}

#[test]
fn an_fp32_table_is_the_rounded_f64_table() {
    let rotary = RotaryEmbedding::new(&config(json!({})), Dialect::Hf).unwrap();
    let positions = array![[0, 1, 77, 163839], [5, 6, 7, 8]];
    let (double, single) = (rotary.tables::<f64>(&positions, None), rotary.tables::<f32>(&positions, None));
    assert_eq!(double.cos.mapv(|x| x as f32), single.cos);
    assert_eq!(double.sin.mapv(|x| x as f32), single.sin);
}
