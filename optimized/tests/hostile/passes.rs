//! Inputs that no pass takes, and caches that are another model's or too small.

use std::sync::Arc;

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::{Device, Element, Emulated, Library};
use dsv2_reference::{AttentionForm, AttentionMask, CausalLmLabels, DeepseekV2Config, LogitsToKeep, Tokens};
use ndarray::{Array2, Array3, Array4, array};
use serde_json::json;

use super::{cache, config, device, input, load, refused, weights, with};

/// An input of one sequence with something changed.
fn change(length: usize, change: impl FnOnce(&mut CausalLmInput)) -> CausalLmInput {
    let mut input = input(1, length);
    change(&mut input);
    input
}

/// The logits of so many tokens of one sequence.
fn run(model: &CausalLm, cache: &mut LatentCache, length: usize) -> Vec<f32> {
    let (logits, _) = model.forward(&input(1, length), Some(cache), AttentionForm::Absorbed, None).unwrap();
    logits.to_f32().unwrap()
}

/// What two tokens after three others give.
fn undisturbed(model: &CausalLm) -> Vec<f32> {
    let mut cache = cache(model.model(), 1, 5);
    run(model, &mut cache, 3);
    run(model, &mut cache, 2)
}

/// The same with a cache that goes through an attempt in between.
fn survives(model: &CausalLm, tokens: usize, expected: &[f32], attempt: impl Fn(&mut LatentCache)) {
    let mut cache = cache(model.model(), 1, tokens);
    run(model, &mut cache, 3);
    attempt(&mut cache);
    assert_eq!(cache.lengths(), [3]);
    assert_eq!(run(model, &mut cache, 2), expected);
}

#[test]
fn impossible_inputs_are_refused_and_the_cache_is_as_it_was() {
    let model = load(&config(), &weights(), &device()).unwrap();
    let masked = |mask| change(4, |input| input.input.attention_mask = Some(mask));
    let placed = |positions| change(4, |input| input.input.position_ids = Some(positions));
    let embedded = |embeds| change(4, |input| input.input.tokens = Tokens::InputsEmbeds(embeds));
    let labelled = |labels| change(4, |input| input.labels = Some(CausalLmLabels::new(labels)));
    let kept = |keep| change(4, |input| input.logits_to_keep = keep);
    let with_token = |token| change(2, |input| input.input.tokens = Tokens::InputIds(array![[3, token]]));
    let additive =
        |x: f32| AttentionMask::Additive(Array4::from_shape_fn((1, 1, 4, 7), |at| if at.3 == 6 { x } else { 0.0 }));
    let rows: Vec<(CausalLmInput, &str)> = vec![
        (input(1, 0), "forward: input_ids: expected at least one sequence of one token, found [1, 0]"),
        (input(0, 3), "forward: input_ids: expected at least one sequence of one token, found [0, 3]"),
        (input(2, 3), "forward: past_key_values: expected a cache of 2 sequences, found 1"),
        (input(1, 30), "LatentCache: pages: expected 15 for 30 more tokens, found 6 free of 2 tokens"),
        (with_token(11), "forward: input_ids: expected tokens 0 to 10, found 11"),
        (with_token(-1), "forward: input_ids: expected tokens 0 to 10, found -1"),
        (with_token(i64::MIN), "forward: input_ids: expected tokens 0 to 10, found -9223372036854775808"),
        (
            placed(array![[3, 4, 5, i64::from(i32::MAX) + 1]]),
            "forward: position_ids: expected positions up to 2147483647, found 2147483648",
        ),
        (
            placed(array![[3, 4, 5, i64::MAX]]),
            "forward: position_ids: expected positions up to 2147483647, found 9223372036854775807",
        ),
        (placed(array![[3, 4, 5]]), "forward: position_ids: expected shape [1 or 1, 4], found [1, 3]"),
        (placed(array![[3], [4], [5], [6]]), "forward: position_ids: expected shape [1 or 1, 4], found [4, 1]"),
        (placed(Array2::zeros((0, 4))), "forward: position_ids: expected shape [1 or 1, 4], found [0, 4]"),
        (
            masked(AttentionMask::Padding(Array2::from_elem((1, 4), true))),
            "forward: attention_mask: expected shape [1, 7], cached and new tokens, found [1, 4]",
        ),
        (
            masked(AttentionMask::Padding(Array2::from_elem((2, 7), true))),
            "forward: attention_mask: expected shape [1, 7], cached and new tokens, found [2, 7]",
        ),
        (
            masked(AttentionMask::Additive(Array4::zeros((1, 1, 4, 4)))),
            "forward: attention_mask: expected shape [1 or 1, 1, 1 or 4, 7], found [1, 1, 4, 4]",
        ),
        (
            masked(AttentionMask::Additive(Array4::zeros((1, 2, 4, 7)))),
            "forward: attention_mask: expected shape [1 or 1, 1, 1 or 4, 7], found [1, 2, 4, 7]",
        ),
        (masked(additive(f32::NAN)), "forward: attention_mask: expected no NaN and no plus infinity, found NaN"),
        (masked(additive(f32::INFINITY)), "forward: attention_mask: expected no NaN and no plus infinity, found inf"),
        (embedded(Array3::zeros((1, 4, 7))), "forward: inputs_embeds: expected rows of 8, found [1, 4, 7]"),
        (
            embedded(Array3::from_elem((1, 4, 8), f32::NAN)),
            "forward: inputs_embeds: expected finite numbers, found NaN",
        ),
        (labelled(array![[1, 2, 11, 3]]), "loss: labels: expected 0 to 10, or -100 to ignore, found 11"),
        (labelled(array![[1, 2, -1, 3]]), "loss: labels: expected 0 to 10, or -100 to ignore, found -1"),
        (labelled(array![[1, 2, 3]]), "loss: labels: expected shape [1, 4], found [1, 3]"),
        (kept(LogitsToKeep::Positions(vec![0, 4])), "forward: logits_to_keep: expected positions -4 to 3, found 4"),
        (kept(LogitsToKeep::Positions(vec![-5])), "forward: logits_to_keep: expected positions -4 to 3, found -5"),
        (
            kept(LogitsToKeep::Positions(vec![i64::MIN, i64::MAX])),
            "forward: logits_to_keep: expected positions -4 to 3, found -9223372036854775808",
        ),
        (
            kept(LogitsToKeep::PerSample(array![[0], [1]])),
            "forward: logits_to_keep: expected shape [1, n], found [2, 1]",
        ),
        (kept(LogitsToKeep::PerSample(array![[9]])), "forward: logits_to_keep: expected positions -4 to 3, found 9"),
        (
            kept(LogitsToKeep::Mask(Array2::from_elem((1, 5), true))),
            "forward: logits_to_keep: expected shape [1, 4], found [1, 5]",
        ),
    ];
    let undisturbed = undisturbed(&model);
    let forms = [AttentionForm::Expanded, AttentionForm::Absorbed].into_iter().cycle();
    for ((input, expected), form) in rows.into_iter().zip(forms) {
        survives(&model, 16, &undisturbed, |cache| {
            assert_eq!(refused(model.forward(&input, Some(cache), form, None)), expected);
        });
    }
}

#[test]
fn a_pass_for_which_memory_does_not_suffice_leaves_the_cache_as_it_was() {
    let device: Arc<dyn Device> = Emulated::with_memory(Library::embedded(), 48 << 10);
    let model = load(&config(), &weights(), &device).unwrap();
    let free = device.memory().unwrap().0;
    let too_much = LatentCache::new(model.model().config(), &device, Element::F32, 1, 1 << 12, 2);
    assert_eq!(refused(too_much), "LatentCache::new: device memory: expected 327680 bytes, found 42672 free");
    assert_eq!(device.memory().unwrap().0, free);
    survives(&model, 200, &undisturbed(&model), |cache| {
        let refusal = refused(model.forward(&input(1, 190), Some(cache), AttentionForm::Expanded, None));
        // Which allocation it is depends on what else a pass takes, and in what order.
        let (start, end) = ("device memory: an allocation of ", " of 49152 bytes are in use");
        assert!(refusal.starts_with(start) && refusal.ends_with(end), "{refusal}");
    });
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let model = load(&config(), &weights(), &device()).unwrap();
    let refusal = |config: &DeepseekV2Config, device: &Arc<dyn Device>, element| {
        let mut cache = LatentCache::new(config, device, element, 1, 8, 2).unwrap();
        let refusal = refused(model.forward(&input(1, 3), Some(&mut cache), AttentionForm::Absorbed, None));
        assert_eq!(cache.lengths(), [0]);
        refusal
    };
    let own = model.model().device();
    assert_eq!(
        refusal(&with(json!({"num_hidden_layers": 1})), own, Element::F32),
        "forward: past_key_values: expected a cache of 2 layers of 10 numbers f32 per token, \
         found a cache of 1 layers of 10 numbers f32 per token"
    );
    assert_eq!(
        refusal(&with(json!({"kv_lora_rank": 5})), own, Element::F32),
        "forward: past_key_values: expected a cache of 2 layers of 10 numbers f32 per token, \
         found a cache of 2 layers of 9 numbers f32 per token"
    );
    assert_eq!(
        refusal(&config(), own, Element::Bf16),
        "forward: past_key_values: expected a cache of 2 layers of 10 numbers f32 per token, \
         found a cache of 2 layers of 10 numbers bf16 per token"
    );
    assert_eq!(
        refusal(&config(), &device(), Element::F32),
        "forward: past_key_values: expected a cache on the model's device, found one on another (emulator)"
    );
}

#[test]
fn positions_of_another_shape_are_refused_where_packed_sequences_are_looked_for() {
    // Without a cache and a mask, positions say where sequences begin: they are looked at before anything else.
    let model = load(&config(), &weights(), &device()).unwrap();
    let refusal = |positions| {
        let input = change(4, |input| input.input.position_ids = Some(positions));
        refused(model.forward(&input, None, AttentionForm::Expanded, None))
    };
    assert_eq!(refusal(array![[0, 1, 0]]), "forward: position_ids: expected shape [1 or 1, 4], found [1, 3]");
    assert_eq!(refusal(Array2::zeros((0, 4))), "forward: position_ids: expected shape [1 or 1, 4], found [0, 4]");
    assert_eq!(refusal(array![[0], [5], [0], [1]]), "forward: position_ids: expected shape [1 or 1, 4], found [4, 1]");
}
