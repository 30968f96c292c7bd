//! The model against the reference, and its two forms of attention against each other.

use std::cell::Cell;
use std::sync::Arc;

use dsv2_optimized::Device;
use dsv2_reference::AttentionForm::{Absorbed, Expanded};
use dsv2_testing::for_all;
use ndarray::Array2;
use proptest::prelude::*;
use proptest::sample::Index;

use super::runs::{Feed, Program, cut, fed, on, pieces, play};
use super::tiny::{Tiny, right, tiny, wrong};
use super::truth::Truth;

#[test]
fn every_small_model_is_near_the_reference_in_both_forms_and_so_is_its_cache() {
    let near_ties = Cell::new(0);
    let law = |device: &Arc<dyn Device>, (tiny, batch, pieces, page_size): (Tiny, usize, Vec<usize>, usize)| {
        let feeds = cut(&tiny.ids(batch, pieces.iter().sum()), &pieces);
        let truth = Truth::of(&tiny, &feeds);
        if truth.is_near_tie(&tiny) {
            near_ties.set(near_ties.get() + 1);
            return Err(TestCaseError::reject("a near tie of two experts"));
        }
        let expanded = play(device, &tiny, &feeds, Expanded, page_size)?;
        let absorbed = play(device, &tiny, &feeds, Absorbed, page_size)?;
        for (name, played) in [("expanded", &expanded), ("absorbed", &absorbed)] {
            truth.judge(name, &played.logits)?;
            for (stage, got) in &played.stages {
                if stage.ends_with("topk_indices") {
                    prop_assert_eq!(got, &truth.exact.stages[stage], "{} {}", name, stage);
                } else {
                    truth.judge_stage(name, stage, got)?;
                }
            }
            let seen = played.stages.keys().filter(|stage| stage.starts_with("past_key_values")).count();
            prop_assert_eq!(seen, 2 * tiny.config.num_hidden_layers, "the cache was looked at");
        }
        truth.compare("absorbed against expanded", "", &absorbed.logits, &expanded.logits)
    };
    for_all((tiny(), 1..=3_usize, pieces(), 1..=9_usize), law)
        .tried(32)
        .holds_for(&right())
        .fails_for("a query does not see its own token", &wrong("mla_decode", "mla_decode_hides_the_token_itself"))
        .fails_for("experts know only SiLU", &wrong("experts", "gate_up_knows_only_silu"))
        .fails_for("YaRN's factor is left out of the sine", &wrong("rotary", "rotary_factor_on_cosines_only"))
        .fails_for("pairs are halves of a head", &wrong("rope", "rope_of_halves"))
        .fails_for("keys are taken for values", &wrong("mla_prefill", "mla_prefill_keys_for_values"))
        .fails_for("the latent has no gain", &wrong("latent", "latent_without_gain"));
    println!("{} cases set aside: two experts are as good as each other, as far as fp32 can tell", near_ties.get());
}

#[test]
fn a_cache_that_was_cropped_and_reordered_is_near_the_references() {
    // Also where it remembers how long it once was: the rope type `dynamic`.
    let law = |program: &Program, (tiny, pieces, kept, from): (Tiny, Vec<usize>, Index, Vec<usize>)| {
        let total: usize = pieces.iter().sum();
        let mut feeds = cut(&tiny.ids(2, total), &pieces);
        let again = Array2::from_shape_fn((from.len(), 1), |(b, _)| tiny.token(b));
        feeds.push(Feed { crop: Some(kept.index(total + 1)), reorder: Some(from), ..Feed::ids(again) });
        let truth = Truth::of_last(&tiny, &feeds);
        if truth.is_near_tie(&tiny) {
            return Err(TestCaseError::reject("a near tie of two experts"));
        }
        truth.judge("after all", &program(&tiny, &feeds, 3)?.last)
    };
    let from = prop::collection::vec(0..=1_usize, 1..=2);
    let longer = prop::collection::vec(1..=6_usize, 2..=3);
    for_all((tiny(), longer, any::<Index>(), from), law)
        .tried(48)
        .holds_for(&on(right()))
        .fails_for(
            "sequences stay where they are",
            &fed(|feed| {
                feed.reorder.iter_mut().flatten().enumerate().for_each(|(b, from)| *from = b);
            }),
        )
        .fails_for("nothing is cropped", &fed(|feed| feed.crop = None));
}
