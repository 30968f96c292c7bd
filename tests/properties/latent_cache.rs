//! Laws of the latent cache: pieces, order, company and forgetting make no difference, not by a bit.

use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::{AttentionMask, ModelInput};
use dsv2_testing::for_all;
use ndarray::{Array2, Array4, ArrayViewMutD, Axis, concatenate, s};
use proptest::prelude::*;

use crate::models::{Played, Program, Step, Tiny, altered, cut, fed, feed, pieces, play, reference, tapped, tiny};

/// Gives an input without positions these.
fn positions(input: &mut ModelInput<f64>, at: impl Fn(usize) -> usize) {
    let length = input.tokens.dim().1;
    input.position_ids = Some(Array2::from_shape_fn((1, length), |(_, s)| at(s) as i64));
}

/// Lets query q of an input see the keys that `allow` says; keys of the input itself begin at `cached`.
fn visible(cached: usize, input: &mut ModelInput<f64>, allow: impl Fn(usize, usize) -> bool) {
    let length = input.tokens.dim().1;
    let bias = Array4::from_shape_fn((1, 1, length, cached + length), |(_, _, q, t)| {
        if allow(cached + q, t) { 0.0 } else { f64::NEG_INFINITY }
    });
    input.attention_mask = Some(AttentionMask::Additive(bias));
}

/// Feeds each piece twice; the answer is that of the second time.
fn feeds_twice(tiny: &Tiny, steps: &[Step]) -> Played {
    let twice: Vec<Step> = steps.iter().flat_map(|step| [step.clone(), step.clone()]).collect();
    let mut played = reference(tiny, &twice);
    played.outputs = played.outputs.into_iter().skip(1).step_by(2).collect();
    played
}

#[test]
fn a_prompt_in_pieces_has_the_bits_of_the_whole() {
    let law = |program: &Program, (tiny, pieces): (Tiny, Vec<usize>)| {
        let ids = tiny.ids(2, pieces.iter().sum());
        let whole = program(&tiny, &[feed(&ids)]);
        let in_pieces = program(&tiny, &cut(&ids, &pieces));
        prop_assert_eq!(in_pieces.joined(), whole.joined());
        for (a, b) in in_pieces.cache.layers().iter().zip(whole.cache.layers()) {
            prop_assert_eq!((a.compressed_kv(), a.k_pe()), (b.compressed_kv(), b.k_pe()));
        }
        Ok(())
    };
    for_all((tiny(), pieces()), law)
        .tried(128)
        .holds_for(&reference)
        .fails_for("positions start again with each piece", &fed(|_, input| positions(input, |s| s)))
        .fails_for(
            "positions are off by one in later pieces",
            &fed(|cached, input| positions(input, |s| cached + s + usize::from(cached > 0))),
        )
        .fails_for("the cache is given each piece twice", &feeds_twice)
        .fails_for(
            "later pieces see themselves only", // a prefill kernel that is called without its past
            &fed(|cached, input| visible(cached, input, |q, t| t >= cached && t <= q)),
        )
        .fails_for("the tokens of a piece see each other", &fed(|cached, input| visible(cached, input, |_, _| true)))
        .fails_for(
            "the causal mask is aligned with the first key, not the last", // FlashAttention before 2.1
            &fed(|cached, input| visible(cached, input, |q, t| t <= q - cached)),
        );
}

#[test]
fn later_tokens_do_not_change_a_bit_of_earlier_ones() {
    let law = |program: &Program, (tiny, before, after): (Tiny, usize, usize)| {
        let ids = tiny.ids(1, before + after);
        let mut others = ids.clone();
        others.slice_mut(s![.., before..]).mapv_inplace(Tiny::other);
        let [all, other, alone] =
            [&ids, &others, &ids.slice(s![.., ..before]).to_owned()].map(|ids| program(&tiny, &[feed(ids)]));
        prop_assert_eq!(all.last().slice(s![.., ..before, ..]), other.last().slice(s![.., ..before, ..]));
        prop_assert_eq!(all.last().slice(s![.., ..before, ..]), alone.last());
        Ok(())
    };
    for_all((tiny(), 1..=4_usize, 1..=3_usize), law)
        .tried(128)
        .holds_for(&reference)
        .fails_for("no causal mask", &fed(|cached, input| visible(cached, input, |_, _| true)))
        .fails_for("the causal mask is off by one", &fed(|cached, input| visible(cached, input, |q, t| t <= q + 1)))
        .fails_for("latents are divided by the largest of the prompt", &tapped(by_the_largest));
}

/// A scale per tensor, from all tokens there are.
fn by_the_largest(_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>) {
    if name.ends_with(".kv_a_layernorm") {
        let largest = value.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        value.mapv_inplace(|x| x / largest);
    }
}

#[test]
fn cached_tokens_stay_as_they_are_when_others_follow() {
    let law = |program: &Program, (tiny, before, after): (Tiny, usize, usize)| {
        let steps = cut(&tiny.ids(2, before + after), &[before, after]);
        let (first, both) = (program(&tiny, &steps[..1]), program(&tiny, &steps));
        for (first, both) in first.cache.layers().iter().zip(both.cache.layers()) {
            let (latents, keys) = (both.compressed_kv(), both.k_pe());
            prop_assert_eq!(first.compressed_kv(), latents.slice(s![.., ..before, ..]));
            prop_assert_eq!(first.k_pe(), keys.slice(s![.., ..before, ..]));
        }
        Ok(())
    };
    let turn_again = |_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>| {
        if name.starts_with("past_key_values.") && name.ends_with(".k_pe") {
            value.mapv_inplace(|x| -x);
        }
    };
    let norm_again = |_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>| {
        if name.starts_with("past_key_values.") && name.ends_with(".compressed_kv") {
            for mut latent in value.rows_mut() {
                let norm = latent.dot(&latent).sqrt();
                latent.mapv_inplace(|x| x / norm);
            }
        }
    };
    for_all((tiny(), 1..=4_usize, 1..=3_usize), law)
        .tried(64)
        .holds_for(&reference)
        .fails_for("cached keys are turned again at each step", &tapped(turn_again))
        .fails_for("cached latents are normed again at each step", &tapped(norm_again));
}

#[test]
fn cropped_tokens_can_be_fed_again_or_replaced() {
    let law = |program: &Program, (tiny, kept, dropped, from_the_end): (Tiny, usize, usize, bool)| {
        let ids = tiny.ids(2, kept + dropped);
        let next = ids.slice(s![.., kept..]).mapv(Tiny::other);
        let length = if from_the_end { -(dropped as i64) } else { kept as i64 };
        let cropped = program(&tiny, &[feed(&ids), Step::Crop(length), feed(&next)]);
        let fresh = program(&tiny, &[feed(&concatenate![Axis(1), ids.slice(s![.., ..kept]), next])]);
        prop_assert_eq!(cropped.last(), fresh.last().slice(s![.., kept.., ..]));
        prop_assert_eq!(cropped.cache.layers()[0].k_pe(), fresh.cache.layers()[0].k_pe());
        Ok(())
    };
    let crops = |crop: fn(i64) -> i64| {
        altered(move |step| match step {
            Step::Crop(length) => Step::Crop(crop(*length)),
            step => step.clone(),
        })
    };
    let counts_on = |tiny: &Tiny, steps: &[Step]| {
        let mut seen = 0;
        let mut steps = steps.to_vec();
        for step in &mut steps {
            if let Step::Feed(input) = step {
                positions(input, |s| seen + s);
                seen += input.tokens.dim().1;
            }
        }
        reference(tiny, &steps)
    };
    for_all((tiny(), 1..=3_usize, 1..=3_usize, any::<bool>()), law)
        .tried(96)
        .holds_for(&reference)
        .fails_for("crop keeps one token too many", &crops(|length| if length < 0 { length + 1 } else { length }))
        .fails_for("a negative length is the length to keep", &crops(|length| length.abs()))
        .fails_for("positions count on after a crop", &counts_on);
}

#[test]
fn reordered_sequences_go_on_as_if_they_had_always_been_there() {
    let law = |program: &Program, (tiny, rows): (Tiny, Vec<usize>)| {
        let prompts = tiny.ids(3, 4);
        let next = Array2::from_shape_fn((rows.len(), 1), |(b, _)| b as i64);
        let reordered = program(&tiny, &[feed(&prompts), Step::Reorder(rows.clone()), feed(&next)]);
        let fresh = program(&tiny, &[feed(&concatenate![Axis(1), prompts.select(Axis(0), &rows), next])]);
        prop_assert_eq!(reordered.last(), fresh.last().slice(s![.., 4.., ..]));
        Ok(())
    };
    let scatter = |rows: &[usize]| {
        let mut order = rows.to_vec();
        rows.iter().enumerate().for_each(|(to, &from)| order[from % rows.len()] = to.min(2));
        order
    };
    let reorders = |order: fn(&[usize]) -> Vec<usize>| {
        altered(move |step| match step {
            Step::Reorder(rows) => Step::Reorder(order(rows)),
            step => step.clone(),
        })
    };
    for_all((tiny(), prop::collection::vec(0..3_usize, 1..=4)), law)
        .tried(64)
        .holds_for(&reference)
        .fails_for("the cache stays in its order", &reorders(|rows| (0..rows.len()).map(|row| row % 3).collect()))
        .fails_for("rows say where a sequence goes, not where it comes from", &reorders(scatter));
}

#[test]
fn a_sequence_has_the_same_bits_in_any_batch() {
    let law = |program: &Program, (tiny, rows): (Tiny, Vec<usize>)| {
        let prompts = tiny.ids(3, 4);
        let each: Vec<_> =
            (0..3).map(|row| program(&tiny, &[feed(&prompts.slice(s![row..=row, ..]).to_owned())])).collect();
        let batch = program(&tiny, &[feed(&prompts.select(Axis(0), &rows))]);
        for (output, &row) in batch.last().outer_iter().zip(&rows) {
            prop_assert_eq!(output, each[row].last().index_axis(Axis(0), 0));
        }
        Ok(())
    };
    let first_cache_for_all = |_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>| {
        if name.starts_with("past_key_values.") {
            let first = value.index_axis(Axis(0), 0).to_owned();
            value.outer_iter_mut().for_each(|mut row| row.assign(&first));
        }
    };
    let swapped = |_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>| {
        if name.ends_with(".attn_output") {
            value.invert_axis(Axis(0));
            let inverted = value.to_owned();
            value.invert_axis(Axis(0));
            value.assign(&inverted);
        }
    };
    for_all((tiny(), prop::collection::vec(0..3_usize, 1..=4)), law)
        .tried(64)
        .holds_for(&reference)
        .fails_for("all sequences read the cache of the first", &tapped(first_cache_for_all))
        .fails_for("outputs come back in the opposite order", &tapped(swapped))
        .fails_for("latents are divided by the largest of the batch", &tapped(by_the_largest));
}

#[test]
fn what_was_never_written_is_never_read() {
    let law = |program: &Program, (tiny, pieces, crop): (Tiny, Vec<usize>, usize)| {
        let total: usize = pieces.iter().sum();
        let mut steps = cut(&tiny.ids(2, total), &pieces);
        steps.push(Step::Crop(total.saturating_sub(crop) as i64));
        steps.push(feed(&tiny.ids(2, 2)));
        prop_assert!(program(&tiny, &steps).joined().iter().all(|x| x.is_finite()));
        Ok(())
    };
    // One place too far is what has not been written yet, and that is NaN.
    let reads_too_far = |_: &Tiny, name: &str, mut value: ArrayViewMutD<f64>| {
        if name.starts_with("past_key_values.") {
            let last = value.len_of(Axis(1)) - 1;
            value.index_axis_mut(Axis(1), last).fill(f64::NAN);
        }
    };
    for_all((tiny(), pieces(), 0..=3_usize), law)
        .tried(64)
        .holds_for(&reference)
        .fails_for("the newest place is read one too far", &tapped(reads_too_far));
}

/// Bytes allocated by a plain cache of fp64 numbers, given so many tokens of so many sequences at once.
type Allocated = dyn Fn(&Tiny, usize, usize) -> usize;

#[test]
fn a_token_leaves_c_plus_r_numbers_in_each_layer() {
    let law = |allocated: &Allocated, (tiny, batch, length): (Tiny, usize, usize)| {
        let config = tiny.config();
        prop_assert_eq!(config.kv_cache_elements_per_token(), (tiny.c + tiny.r) * tiny.layers);
        prop_assert_eq!(allocated(&tiny, batch, length), batch * length * (tiny.c + tiny.r) * tiny.layers * 8);
        Ok(())
    };
    let measured = |tiny: &Tiny, batch: usize, length: usize| {
        let steps = [feed(&tiny.ids(batch, length))];
        play(tiny, &tiny.weights(), CacheFormat::Plain, &steps, &mut |_, _| {}).cache.allocated_bytes()
    };
    for_all((tiny(), 1..=3_usize, 1..=5_usize), law)
        .tried(64)
        .holds_for(&measured)
        .fails_for("a rotary key for each head", &|tiny, batch, length| {
            batch * length * (tiny.c + tiny.heads * tiny.r) * tiny.layers * 8
        })
        .fails_for("expanded keys and values", &|tiny, batch, length| {
            // Transformers before 5.15
            batch * length * tiny.heads * (tiny.n + tiny.r + tiny.v) * tiny.layers * 8
        });
}
