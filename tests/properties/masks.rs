//! Laws of the attention mask: what is masked is as good as not there.

use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::{AttentionMask, ModelInput, Tokens};
use dsv2_testing::for_all;
use ndarray::{Array2, Array3, Array4, ArrayViewMutD, Axis, s};
use proptest::prelude::*;

use crate::models::{
    ATTN_OUTPUT, Played, Program, Step, Tiny, distance, fed, feed, feed_input, play, reference, tapped, tiny,
};

/// Feeds one sequence with a mask \[S\].
fn masked(tiny: &Tiny, mask: &[bool], positions: Option<Vec<i64>>) -> Step {
    let row = |row: &[i64]| Array2::from_shape_vec((1, row.len()), row.to_vec()).expect("one row");
    feed_input(ModelInput {
        tokens: Tokens::InputIds(tiny.ids(1, mask.len())),
        attention_mask: Some(AttentionMask::Padding(
            Array2::from_shape_vec((1, mask.len()), mask.to_vec()).expect("one row"),
        )),
        position_ids: positions.map(|positions| row(&positions)),
    })
}

/// Removes the mask, or makes another of it.
fn remasked(of: fn(&[bool]) -> Option<Vec<bool>>) -> impl Fn(&Tiny, &[Step]) -> Played {
    fed(move |_, input| {
        if let Some(AttentionMask::Padding(mask)) = &input.attention_mask {
            let other = of(mask.as_slice().expect("one row"));
            let shape = mask.dim();
            input.attention_mask =
                Some(AttentionMask::Padding(other.map_or(Array2::from_elem(shape, true), |mask| {
                    Array2::from_shape_vec(shape, mask).expect("as long")
                })));
        }
    })
}

/// The mask as numbers 0 and 1, added to the scores: Transformers' eager attention with a boolean 4-D mask.
fn adds_the_mask() -> impl Fn(&Tiny, &[Step]) -> Played {
    fed(|_, input| {
        if let Some(AttentionMask::Padding(mask)) = &input.attention_mask {
            let length = mask.ncols();
            let bias = Array4::from_shape_fn((1, 1, length, length), |(_, _, q, t)| {
                if t > q { f64::NEG_INFINITY } else { f64::from(u8::from(mask[[0, t]])) }
            });
            input.attention_mask = Some(AttentionMask::Additive(bias));
        }
    })
}

/// The mask multiplies the weights after the softmax.
fn masks_too_late(tiny: &Tiny, steps: &[Step]) -> Played {
    let [Step::Feed(input)] = steps else { return reference(tiny, steps) };
    let Some(AttentionMask::Padding(mask)) = input.attention_mask.clone() else { return reference(tiny, steps) };
    let causal = feed_input(ModelInput { attention_mask: None, ..*input.clone() });
    play(tiny, &tiny.weights(), CacheFormat::Plain, &[causal], &mut |name, mut value| {
        if name.ends_with(".attn_weights") {
            for (t, mut weights) in value.axis_iter_mut(Axis(3)).enumerate() {
                if !mask[[0, t]] {
                    weights.fill(0.0);
                }
            }
        }
    })
}

#[test]
fn masked_keys_are_as_good_as_none() {
    // Worst case of 1500: 7.4e-16.
    let law = |program: &Program, (tiny, hidden): (Tiny, Vec<bool>)| {
        let mask: Vec<bool> = hidden.iter().map(|hidden| !hidden).chain([true]).collect();
        let kept: Vec<usize> = (0..mask.len()).filter(|&t| mask[t]).collect();
        let with = program(&tiny, &[masked(&tiny, &mask, None)]);
        let without = reference(
            &tiny,
            &[feed_input(ModelInput {
                tokens: Tokens::InputIds(tiny.ids(1, mask.len()).select(Axis(1), &kept)),
                attention_mask: Some(AttentionMask::Padding(Array2::from_elem((1, kept.len()), true))),
                position_ids: Some(Array2::from_shape_fn((1, kept.len()), |(_, s)| kept[s] as i64)),
            })],
        );
        let distance = distance(&with.last().select(Axis(1), &kept), without.last());
        prop_assert!(distance <= 1e-14, "{distance:e}");
        Ok(())
    };
    for_all((tiny(), prop::collection::vec(any::<bool>(), 0..=5)), law)
        .tried(128)
        .holds_for(&reference)
        .fails_for("the mask is ignored", &remasked(|_| None))
        .fails_for(
            "the mask is turned around", // padding taken to be on the other side
            &remasked(|mask| Some(mask.iter().rev().copied().collect())),
        )
        .fails_for("the mask is added as 0 and 1", &adds_the_mask())
        .fails_for("the mask multiplies the weights after the softmax", &masks_too_late);
}

#[test]
fn left_padding_with_a_mask_leaves_a_sequence_as_it_is() {
    // With positions counted from the first real token; or with those of the padded row, where all angles are rounded
    // to fp32 at other places. Worst cases of 1500: none at all, and 5.9e-9.
    let law = |program: &Program, (tiny, padding, length, counted): (Tiny, usize, usize, bool)| {
        let ids = tiny.ids(1, padding + length);
        let mask: Vec<bool> = (0..padding + length).map(|t| t >= padding).collect();
        let positions = |t: usize| t.saturating_sub(padding) as i64;
        let positions = counted.then(|| (0..padding + length).map(positions).collect());
        let padded = program(&tiny, &[masked(&tiny, &mask, positions)]);
        let alone = reference(&tiny, &[feed(&ids.slice(s![.., padding..]).to_owned())]);
        let distance = distance(&padded.last().slice(s![.., padding.., ..]).to_owned(), alone.last());
        prop_assert!(distance <= if counted { 1e-14 } else { 1e-7 }, "{distance:e}");
        Ok(())
    };
    for_all((tiny(), 1..=3_usize, 1..=4_usize, any::<bool>()), law)
        .tried(128)
        .holds_for(&reference)
        .fails_for("the mask is ignored", &remasked(|_| None))
        .fails_for("the mask is added as 0 and 1", &adds_the_mask())
        .fails_for("the mask multiplies the weights after the softmax", &masks_too_late);
}

#[test]
fn a_query_without_any_key_gets_zero() {
    let law = |program: &Program, (tiny, padding): (Tiny, usize)| {
        let mask: Vec<bool> = (0..padding + 1).map(|t| t >= padding).collect();
        let played = program(&tiny, &[masked(&tiny, &mask, None)]);
        let output: Array3<f64> = played.stage(ATTN_OUTPUT);
        prop_assert!(output.slice(s![.., ..padding, ..]).iter().all(|&x| x == 0.0));
        prop_assert!(played.last().iter().all(|x| x.is_finite()));
        Ok(())
    };
    // What a softmax makes of a row of equal numbers, if the lowest finite one stands for minus infinity.
    let uniform = |_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>| {
        if name.ends_with(".attn_weights") {
            let keys = value.len_of(Axis(3)) as f64;
            for mut row in value.rows_mut() {
                if row.sum() == 0.0 {
                    row.fill(1.0 / keys);
                }
            }
        }
    };
    let not_a_number = |_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>| {
        if name.ends_with(".attn_weights") {
            for mut row in value.rows_mut() {
                let sum = row.sum();
                row.mapv_inplace(|p| p / sum);
            }
        }
    };
    for_all((tiny(), 1..=3_usize), law)
        .tried(48)
        .holds_for(&reference)
        .fails_for("such a query attends to all keys alike", &tapped(uniform)) // Transformers' eager attention
        .fails_for("zero by zero", &tapped(not_a_number));
}
