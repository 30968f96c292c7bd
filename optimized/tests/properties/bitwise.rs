//! Laws that hold to the bit: it does not matter how a sequence was fed, beside which others, and what happened to its
//! cache before.

use std::sync::Arc;

use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::{Device, Result};
use dsv2_reference::{AttentionForm, ModelInput};
use dsv2_testing::for_all;
use ndarray::Array2;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;

use super::runs::{Feed, bits, cache, cut, logits, pieces, play, rows};
use super::tiny::{Tiny, right, steady, wrong};

/// Tokens of a page.
fn page_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1..=8_usize, Just(16), Just(32), Just(64), Just(128)]
}

#[test]
fn a_prompt_in_pieces_gives_the_bits_of_the_whole() {
    let law = |device: &Arc<dyn Device>, (tiny, batch, pieces, page_size): (Tiny, usize, Vec<usize>, usize)| {
        let ids = tiny.ids(batch, pieces.iter().sum());
        let whole = play(device, &tiny, &[Feed::ids(ids.clone())], tiny.form, page_size)?;
        let in_pieces = play(device, &tiny, &cut(&ids, &pieces), tiny.form, page_size)?;
        prop_assert_eq!(bits(&whole.logits), bits(&in_pieces.logits));
        Ok(())
    };
    for_all((steady(), 1..=3_usize, pieces(), page_sizes()), law)
        .tried(32)
        .holds_for(&right())
        .fails_for("a row's sum depends on where it lies", &wrong("rms_norm", "rms_norm_by_alignment"))
        .fails_for("positions are counted anew in each call", &wrong("rotary", "rotary_counts_positions"));
}

/// What may happen to a cache.
#[derive(Debug, Clone)]
enum Step {
    /// So many new tokens for each sequence.
    Append(usize),
    /// Each sequence is cut to a part of its length.
    Crop(Vec<Index>),
    /// Sequences change places, are forked and forgotten.
    Reorder(Vec<Index>),
}

/// Sequences that a cache has room for, and tokens of each.
const ROOM: (usize, usize) = (3, 24);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let indices = || prop::collection::vec(any::<Index>(), 1..=ROOM.0);
    let step = prop_oneof![
        3 => (1..=4_usize).prop_map(Step::Append),
        1 => prop::collection::vec(any::<Index>(), ROOM.0).prop_map(Step::Crop),
        2 => indices().prop_map(Step::Reorder),
    ];
    prop::collection::vec(step, 1..=6)
}

/// The logits of a sequence's last tokens, computed from nothing and alone.
fn afresh(model: &CausalLm, form: AttentionForm, sequence: &[i64], new: usize) -> Result<Vec<u32>> {
    let ids = Array2::from_shape_vec((1, sequence.len()), sequence.to_vec()).expect("one row");
    let whole = logits(model, ModelInput::ids(ids), None, form)?;
    Ok(rows(&whole, 0, sequence.len() - new..sequence.len()))
}

#[test]
fn a_cache_is_what_its_tokens_are_whatever_was_done_to_it() {
    let law = |device: &Arc<dyn Device>, (tiny, steps, page_size): (Tiny, Vec<Step>, usize)| -> TestCaseResult {
        let model = tiny.on(device);
        let mut cache = cache(&model, ROOM.0, ROOM.1, page_size);
        // What should be in it.
        let mut sequences: Vec<Vec<i64>> = vec![vec![]; ROOM.0];
        let mut drawn = 0;
        for step in steps.iter().chain([&Step::Append(1)]) {
            match step {
                Step::Crop(kept) => {
                    for (sequence, kept) in sequences.iter_mut().zip(kept) {
                        sequence.truncate(kept.index(sequence.len() + 1));
                    }
                    cache.crop(&sequences.iter().map(Vec::len).collect::<Vec<_>>());
                }
                Step::Reorder(from) => {
                    let from: Vec<usize> = from.iter().map(|b| b.index(sequences.len())).collect();
                    sequences = from.iter().map(|b| sequences[*b].clone()).collect();
                    cache.reorder(&from)?;
                }
                Step::Append(new) => {
                    let ids = Array2::from_shape_fn((sequences.len(), *new), |(b, s)| tiny.token(drawn + 10 * b + s));
                    drawn += 100;
                    for (sequence, new) in sequences.iter_mut().zip(ids.rows()) {
                        sequence.extend(new);
                    }
                    let together = logits(&model, ModelInput::ids(ids), Some(&mut cache), tiny.form)?;
                    for (b, sequence) in sequences.iter().enumerate() {
                        let alone = afresh(&model, tiny.form, sequence, *new)?;
                        prop_assert_eq!(rows(&together, b, 0..*new), alone, "sequence {} after {:?}", b, step);
                    }
                }
            }
            prop_assert_eq!(cache.lengths(), sequences.iter().map(Vec::len).collect::<Vec<_>>());
        }
        Ok(())
    };
    for_all((steady(), steps(), page_sizes()), law)
        .tried(24)
        .holds_for(&right())
        .fails_for(
            "all sequences have the first one's length",
            &wrong("mla_decode", "mla_decode_length_of_the_first_sequence"),
        )
        .fails_for(
            "positions are those of the first sequence",
            &wrong("mla_prefill", "mla_prefill_positions_of_the_first_sequence"),
        )
        .fails_for("pages are looked up one too late", &wrong("mla_decode", "mla_decode_slot_of_the_table"));
}
