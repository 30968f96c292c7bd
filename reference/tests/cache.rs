//! Checklist items 45 to 54: the latent cache.

use crate::bits::structures;
use crate::common::{Stages, config, ids, input, input_with, logits, logits_after, model};
use approx::assert_abs_diff_eq;
use dsv2_reference::AttentionMask::Padding;
use dsv2_reference::{
    AttentionForm, CausalLmInput, CausalLmLabels, DeepseekV2Config, LatentCache, NoTap, Real, Run, StageValue,
};
use ndarray::{Array2, Axis, array, concatenate, s};
use serde_json::json;

#[test]
fn absorbed_decoding_after_an_expanded_prompt_gives_the_same_logits() {
    for structure in structures() {
        let model = model::<f64>(structure);
        let whole = logits(&model, &input(ids(2, 12)));
        let mut cache = LatentCache::new(model.model().config(), 2);
        logits_after(&model, &mut cache, &input(ids(2, 12).slice(s![.., ..5]).to_owned()));
        let run = Run { attention: AttentionForm::Absorbed, ..Run::default() };
        for t in 5..12 {
            let token = input(ids(2, 12).slice(s![.., t..t + 1]).to_owned());
            let step = model.forward(&token, Some(&mut cache), &run, &mut NoTap).unwrap().logits;
            assert_abs_diff_eq!(step, whole.slice(s![.., t..t + 1, ..]), epsilon = 1e-12);
        }
    }
}

#[test]
fn the_cache_holds_the_normed_latent_and_the_rotated_key() {
    let stages = Stages::of_ids(&model::<f64>(json!({})), ids(2, 7));
    for layer in 0..3 {
        let [latent, cached_latent] = ["self_attn.kv_a_layernorm", "compressed_kv"].map(|name| match name {
            "compressed_kv" => stages.d3(&format!("past_key_values.{layer}.compressed_kv")),
            _ => stages.d3(&format!("model.layers.{layer}.{name}")),
        });
        assert_eq!(cached_latent.dim(), (2, 7, 12));
        assert_eq!(cached_latent, latent);
        let key = stages.d4(&format!("model.layers.{layer}.self_attn.k_pe"));
        assert_eq!(stages.d3(&format!("past_key_values.{layer}.k_pe")), key.index_axis(Axis(1), 0));
    }
}

#[test]
fn a_token_leaves_c_plus_r_numbers_in_each_layer() {
    let numbers = |preset| DeepseekV2Config::preset(preset).unwrap().kv_cache_elements_per_token();
    assert_eq!((numbers("v2"), numbers("v2-lite")), (576 * 60, 576 * 27));
    let model = model::<f32>(json!({}));
    let mut cache = LatentCache::new(model.model().config(), 2);
    logits_after(&model, &mut cache, &input(ids(2, 7)));
    assert_eq!(cache.layers().len(), 3);
    for layer in cache.layers() {
        assert_eq!((layer.compressed_kv().dim(), layer.k_pe().dim()), ((2, 7, 12), (2, 7, 8)));
    }
    assert_eq!(cache.allocated_bytes(), 3 * 2 * 7 * 20 * 4);
    assert_eq!(config(json!({})).kv_cache_elements_per_token(), 60);
}

#[test]
fn feeding_the_prompt_again_appends_it() {
    let model = model::<f64>(json!({}));
    let mut cache = LatentCache::new(model.model().config(), 1);
    logits_after(&model, &mut cache, &input(ids(1, 4)));
    let again = logits_after(&model, &mut cache, &input(ids(1, 4)));
    assert_eq!(cache.len(), 8);
    let twice = logits(&model, &input(concatenate![Axis(1), ids(1, 4), ids(1, 4)]));
    assert_eq!(again, twice.slice(s![.., 4.., ..]));
}

fn cropping_and_redoing_has_the_same_bits<T: Real>() {
    let model = model::<T>(json!({}));
    let whole = logits(&model, &input(ids(2, 9)));
    let mut cache = LatentCache::new(model.model().config(), 2);
    logits_after(&model, &mut cache, &input(ids(2, 9)));
    let complete = cache.clone();
    for (crop, kept) in [(-3, 6), (4, 4)] {
        let mut cache = complete.clone();
        cache.crop(crop).unwrap();
        assert_eq!(cache.len(), kept);
        let redone = logits_after(&model, &mut cache, &input(ids(2, 9).slice(s![.., kept..]).to_owned()));
        assert_eq!(redone, whole.slice(s![.., kept.., ..]));
    }
}

#[test]
fn cropped_tokens_can_be_redone_with_the_same_bits() {
    cropping_and_redoing_has_the_same_bits::<f64>();
    cropping_and_redoing_has_the_same_bits::<f32>();
}

#[test]
fn a_left_padded_prompt_decodes_with_a_mask_over_all_tokens() {
    let model = model::<f64>(json!({}));
    let mask = |length| Some(Padding(Array2::from_shape_fn((2, length), |(b, t)| t >= 2 * b)));
    let positions = |from: i64, to: i64| {
        let position = |b: usize, t: usize| (from + t as i64 - 2 * b as i64).max(0);
        Some(Array2::from_shape_fn((2, (to - from) as usize), |(b, t)| position(b, t)))
    };
    let whole = logits(&model, &input_with(ids(2, 9), mask(9), positions(0, 9)));
    let mut cache = LatentCache::new(model.model().config(), 2);
    let chunk = |from, to| ids(2, 9).slice(s![.., from..to]).to_owned();
    logits_after(&model, &mut cache, &input_with(chunk(0, 5), mask(5), positions(0, 5)));
    for t in 5..9 {
        let positions = positions(t as i64, t as i64 + 1);
        let step = logits_after(&model, &mut cache, &input_with(chunk(t, t + 1), mask(t + 1), positions));
        assert_eq!(step, whole.slice(s![.., t..t + 1, ..]));
    }
    // The second row is the same sequence without its two padding tokens.
    let alone = logits(&model, &input(ids(2, 9).slice(s![1.., 2..]).to_owned()));
    assert_abs_diff_eq!(whole.slice(s![1.., 2.., ..]), alone, epsilon = 1e-12);
}

#[test]
fn a_mask_over_only_the_new_token_is_refused() {
    let model = model::<f64>(json!({}));
    let mut cache = LatentCache::new(model.model().config(), 1);
    logits_after(&model, &mut cache, &input(ids(1, 4)));
    let short = input_with(array![[7]], Some(Padding(array![[true]])), None);
    let error = model.forward(&short, Some(&mut cache), &Run::default(), &mut NoTap).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `attention_mask`: expected shape [1, 5] (cached and new tokens), found shape [1, 1]"
    );
    assert_eq!(cache.len(), 4);
}

#[test]
fn without_a_cache_the_logits_are_the_same() {
    let model = model::<f64>(json!({}));
    let mut cache = LatentCache::new(model.model().config(), 2);
    assert_eq!(logits_after(&model, &mut cache, &input(ids(2, 8))), logits(&model, &input(ids(2, 8))));
}

#[test]
fn unwritten_places_hold_nan_and_it_never_leaks() {
    let model = model::<f64>(json!({}));
    let mut cache = LatentCache::new(model.model().config(), 2);
    for chunks in [6, 1, 1, 3] {
        let output = logits_after(&model, &mut cache, &input(ids(2, chunks)));
        assert!(output.iter().all(|x| x.is_finite()));
    }
    let used = 3 * 2 * cache.len() * 20 * size_of::<f64>();
    assert!(cache.allocated_bytes() > used, "there is room that nobody has written");
    cache.crop(-4).unwrap();
    let fresh = logits(&model, &input(concatenate![Axis(1), ids(2, 6), ids(2, 1), ids(2, 5)]));
    assert_eq!(logits_after(&model, &mut cache, &input(ids(2, 5))), fresh.slice(s![.., 7.., ..]));
}

/// Whether two caches hold the same numbers.
fn same(a: &LatentCache<f64>, b: &LatentCache<f64>) -> bool {
    let pairs = || a.layers().iter().zip(b.layers());
    a.len() == b.len() && pairs().all(|(a, b)| a.compressed_kv() == b.compressed_kv() && a.k_pe() == b.k_pe())
}

#[test]
fn a_forward_pass_that_fails_leaves_the_cache_as_it_was() {
    let model = model::<f64>(json!({}));
    let mut cache = LatentCache::new(model.model().config(), 2);
    logits_after(&model, &mut cache, &input(ids(2, 5)));
    let before = cache.clone();

    let mut fails = |input: CausalLmInput<f64>, tap: &mut dyn dsv2_reference::Tap<f64>| {
        assert!(model.forward(&input, Some(&mut cache), &Run::default(), tap).is_err());
        assert!(same(&cache, &before));
    };
    // Before the first layer, in the last layer, in the head, in the loss.
    fails(input(array![[1, 2], [3, 50]]), &mut NoTap);
    let mut misrouted = |name: &str, value: StageValue<f64>| {
        if let ("model.layers.2.mlp.gate.topk_indices", StageValue::Index(mut indices)) = (name, value) {
            indices[[1, 1]] = 8;
        }
    };
    fails(input(ids(2, 3)), &mut misrouted);
    let positions = dsv2_reference::LogitsToKeep::Positions(vec![9]);
    fails(CausalLmInput { logits_to_keep: positions, ..input(ids(2, 3)) }, &mut NoTap);
    let labels = Some(CausalLmLabels::new(array![[1, 2, 50], [1, 2, 3]]));
    fails(CausalLmInput { labels, ..input(ids(2, 3)) }, &mut NoTap);

    let whole = logits(&model, &input(concatenate![Axis(1), ids(2, 5), ids(2, 3)]));
    assert_eq!(logits_after(&model, &mut cache, &input(ids(2, 3))), whole.slice(s![.., 5.., ..]));
}

#[test]
fn a_cache_of_another_batch_or_model_is_refused() {
    let model = model::<f64>(json!({}));
    let refusal = |cache: &mut LatentCache<f64>| {
        model.forward(&input(ids(2, 3)), Some(cache), &Run::default(), &mut NoTap).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&mut LatentCache::new(model.model().config(), 3)),
        "input `past_key_values`: expected a cache of 2 sequences, found a cache of 3 sequences"
    );
    assert_eq!(
        refusal(&mut LatentCache::new(&config(json!({"num_hidden_layers": 2})), 2)),
        "input `past_key_values`: expected 3 layers of 12 and 8 numbers per token, found 2 layers of 12 and 8 numbers per token"
    );
}
