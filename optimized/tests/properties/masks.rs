//! Laws of masks: what is masked is as good as not there.

use std::sync::Arc;

use dsv2_optimized::{Device, Result};
use dsv2_reference::{AttentionForm, AttentionMask, ModelInput};
use dsv2_testing::for_all;
use ndarray::{Array2, Array4, Axis, s};
use proptest::prelude::*;

use super::runs::{Feed, Played, Program, bits, fed, logits, on, reference, rows};
use super::tiny::{Tiny, right, steady, tiny, wrong};
use super::truth::Truth;

/// Which tokens are real: for each sequence at least the last one. Patterns of any kind.
fn patterns() -> impl Strategy<Value = Array2<bool>> {
    (1..=3_usize, 2..=7_usize).prop_flat_map(|(batch, length)| {
        prop::collection::vec(any::<bool>(), batch * length).prop_map(move |real| {
            let mut real = Array2::from_shape_vec((batch, length), real).expect("as many");
            real.column_mut(length - 1).fill(true);
            real
        })
    })
}

/// Feeds with a mask, all of it or in two pieces; the mask covers the cached tokens as well.
fn masked(ids: &Array2<i64>, real: &Array2<bool>, first: usize) -> Vec<Feed> {
    let piece = |start: usize, end: usize| Feed {
        ids: ids.slice(s![.., start..end]).to_owned(),
        mask: Some(real.slice(s![.., ..end]).to_owned()),
        ..Feed::default()
    };
    let length = ids.ncols();
    if first == 0 || first >= length { vec![piece(0, length)] } else { vec![piece(0, first), piece(first, length)] }
}

/// The model that is given another mask.
fn remasked(change: impl Fn(&mut Array2<bool>)) -> impl Fn(&Tiny, &[Feed], usize) -> Result<Played> {
    fed(move |feed| feed.mask.iter_mut().for_each(&change))
}

#[test]
fn tokens_in_padded_places_change_no_bit_of_the_real_ones() {
    let law = |program: &Program, (tiny, real, first, page_size): (Tiny, Array2<bool>, usize, usize)| {
        let ids = tiny.ids(real.nrows(), real.ncols());
        let others = Array2::from_shape_fn(ids.dim(), |at| if real[at] { ids[at] } else { Tiny::other(ids[at]) });
        let run = program(&tiny, &masked(&ids, &real, first), page_size)?.logits;
        let changed = program(&tiny, &masked(&others, &real, first), page_size)?.logits;
        for ((b, s), _) in real.indexed_iter().filter(|(_, real)| **real) {
            prop_assert_eq!(rows(&run, b, s..s + 1), rows(&changed, b, s..s + 1), "token {} of sequence {}", s, b);
        }
        Ok(())
    };
    for_all((tiny(), patterns(), 0..=5_usize, 1..=9_usize), law)
        .tried(32)
        .holds_for(&on(right()))
        .fails_for("the mask is ignored", &remasked(|mask| mask.fill(true)))
        .fails_for(
            "all have the first sequence's mask",
            &remasked(|mask| {
                let first = mask.row(0).to_owned();
                mask.rows_mut().into_iter().for_each(|mut row| row.assign(&first));
            }),
        )
        .fails_for("the mask is turned around", &remasked(|mask| mask.invert_axis(Axis(1))));
}

#[test]
fn left_padding_leaves_a_sequence_near_what_it_is_alone() {
    // With positions counted from the first real token; or with those of the padded row, where other angles are
    // rounded.
    let law = |program: &Program, (tiny, padding, length, counted): (Tiny, usize, usize, bool)| {
        let ids = tiny.ids(1, padding + length);
        let positions = |t: usize| t.saturating_sub(padding) as i64;
        let padded = Feed {
            ids: ids.clone(),
            mask: Some(Array2::from_shape_fn(ids.dim(), |(_, t)| t >= padding)),
            positions: counted.then(|| Array2::from_shape_fn(ids.dim(), |(_, t)| positions(t))),
            ..Feed::default()
        };
        let alone = [Feed::ids(ids.slice(s![.., padding..]).to_owned())];
        // What fp32 makes of the padded sequence, judged by the truth about the one that is alone.
        let of_padded = Truth::of(&tiny, std::slice::from_ref(&padded));
        if of_padded.is_near_tie(&tiny) {
            return Err(TestCaseError::reject("a near tie of two experts"));
        }
        let truth = of_padded.from(padding).by(reference::<f64>(&tiny, &alone, AttentionForm::Expanded));
        let got = program(&tiny, &[padded], 4)?.logits;
        truth.judge("padded", &got.slice_axis(Axis(1), (padding..).into()).to_owned())
    };
    for_all((steady(), 1..=4_usize, 1..=5_usize, any::<bool>()), law)
        .tried(32)
        .holds_for(&on(right()))
        .fails_for("the mask is ignored", &remasked(|mask| mask.fill(true)))
        .fails_for("the mask is turned around", &remasked(|mask| mask.invert_axis(Axis(1))))
        .fails_for("positions turn backwards", &on(wrong("rotary", "rotary_turns_backwards")));
}

#[test]
fn the_causal_rule_as_numbers_gives_the_bits_of_no_mask() {
    let law = |device: &Arc<dyn Device>, (tiny, batch, length, lowest, shared): (Tiny, usize, usize, bool, bool)| {
        let model = tiny.on(device);
        let input = ModelInput::ids(tiny.ids(batch, length));
        let none = logits(&model, input.clone(), None, tiny.form)?;
        let forbidden = if lowest { f32::MIN } else { f32::NEG_INFINITY };
        let rows = if shared { 1 } else { batch };
        let causal = |(_, _, s, t)| if t > s { forbidden } else { 0.0 };
        let mask = Array4::from_shape_fn((rows, 1, length, length), causal);
        let given = ModelInput { attention_mask: Some(AttentionMask::Additive(mask)), ..input };
        prop_assert_eq!(bits(&none), bits(&logits(&model, given, None, tiny.form)?));
        Ok(())
    };
    for_all((tiny(), 1..=3_usize, 1..=9_usize, any::<bool>(), any::<bool>()), law)
        .tried(32)
        .holds_for(&right())
        .fails_for("scores with a mask are not scaled", &wrong("mla_decode", "mla_decode_scale_missing_with_a_mask"))
        .fails_for("without a mask the last key is not seen", &wrong("mla_prefill", "mla_prefill_last_key_skipped"));
}
