//! Generation on the device: the reference's tokens, whatever company a prompt has; and draws that can be repeated.

use std::sync::Arc;

use dsv2_optimized::device::Counts;
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::{GenerateOptions, Sampling};
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Tensor, Variant};
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{AttentionForm, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect};
use ndarray::{Array2, Axis, array, concatenate, s};
use serde_json::{Value, json};

/// A small model with YaRN and group-limited routing; `change` overrides fields of its config.
fn config(change: Value) -> DeepseekV2Config {
    let mut all = json!({"vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 40, "moe_intermediate_size": 20, "n_routed_experts": 12, "num_experts_per_tok": 3,
        "n_shared_experts": 1, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "first_k_dense_replace": 1, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8, "v_head_dim": 10, "routed_scaling_factor": 2.0, "eos_token_id": null,
        "max_position_embeddings": 512, "rope_scaling": {"type": "yarn", "factor": 8, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.7, "mscale_all_dim": 0.7, "original_max_position_embeddings": 64}});
    let fields = change.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(fields);
    DeepseekV2Config::from_value(all).unwrap()
}

fn weights(seed: u64) -> GeneratedWeights {
    let rules = json!([{"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
        {"suffix": "embed_tokens.weight", "std": 1.0}, {"suffix": "lm_head.weight", "gain": 2.0},
        {"suffix": "weight", "gain": 1.3}, {"suffix": "bias", "std": 0.3}]);
    serde_json::from_value(json!({"seed": seed, "rules": rules})).unwrap()
}

fn load(change: Value, seed: u64, element: Element) -> CausalLm {
    let device: Arc<dyn Device> = Emulated::new(Library::embedded());
    let settings = Settings::new(element, Variant::Tuned);
    CausalLm::load(&config(change), Dialect::Hf, &weights(seed), &device, settings, &mut |_| ()).unwrap()
}

fn reference(change: Value, seed: u64) -> DeepseekV2ForCausalLM<f32> {
    DeepseekV2ForCausalLM::load(&config(change), Dialect::Hf, &weights(seed)).unwrap()
}

fn ids(batch: usize, length: usize) -> Array2<i64> {
    Array2::from_shape_fn((batch, length), |(b, s)| (37 * b as i64 + 23 * s as i64 + 5) % 90)
}

/// Pages so small that sequences have several.
fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { page_size: 4, ..GenerateOptions::new(max_new_tokens) }
}

fn nucleus(top_p: f32, seed: u64) -> GenerateOptions {
    GenerateOptions { sampling: Sampling::TopP { temperature: 1.5, top_p, seed }, ..greedy(4) }
}

#[test]
fn greedy_tokens_are_the_references() {
    for seed in [1, 2, 3] {
        let (ours, theirs) = (load(json!({}), seed, Element::F32), reference(json!({}), seed));
        let expected = theirs.generate(&ids(2, 5), None, 8).unwrap();
        let distinct: std::collections::BTreeSet<_> = expected.iter().collect();
        assert!(distinct.len() > 4, "an interesting text: {expected}");
        assert_eq!(ours.generate(&ids(2, 5), None, &greedy(8)).unwrap(), expected, "seed {seed}");
        let expanded = GenerateOptions { decode: AttentionForm::Expanded, ..greedy(8) };
        assert_eq!(ours.generate(&ids(2, 5), None, &expanded).unwrap(), expected, "seed {seed}, expanded");
    }
}

#[test]
fn weights_that_the_device_makes_are_the_hosts() {
    for element in [Element::F32, Element::Bf16] {
        let device: Arc<dyn Device> = Emulated::new(Library::embedded());
        let (config, settings, mut told) = (config(json!({})), Settings::new(element, Variant::Tuned), 0);
        let progress = &mut |bytes| told += bytes;
        let model = CausalLm::load_generated(&config, Dialect::Hf, &weights(1), &device, settings, progress).unwrap();
        // Drawn from all tokens: nothing shows a wrong weight as well.
        let options = nucleus(1.0, 5);
        let plan = options.plan(model.model().config(), Dialect::Hf, settings, 3, 5, false).unwrap();
        assert_eq!(told, plan.weights, "{element}: what the progress adds up to");
        let expected = load(json!({}), 1, element).generate(&ids(3, 5), None, &options).unwrap();
        assert_eq!(model.generate(&ids(3, 5), None, &options).unwrap(), expected, "{element}");
    }
}

#[test]
fn left_padding_does_not_change_the_text() {
    let padding = Array2::from_elem((1, 3), 9);
    let prompt = concatenate![Axis(0), ids(1, 8), concatenate![Axis(1), padding, ids(1, 5)]];
    let mask = Array2::from_shape_fn((2, 8), |(b, t)| b == 0 || t >= 3);
    // With the rope type `dynamic` the positions themselves matter, not only their differences.
    let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 8}, "max_position_embeddings": 512});
    for rope in [json!({}), dynamic] {
        let (ours, theirs) = (load(rope.clone(), 4, Element::F32), reference(rope, 4));
        let generated = ours.generate(&prompt, Some(&mask), &greedy(9)).unwrap();
        assert_eq!(generated, theirs.generate(&prompt, Some(&mask), 9).unwrap());
        assert_eq!(generated.slice(s![1.., ..]), ours.generate(&ids(1, 5), None, &greedy(9)).unwrap());
    }
}

#[test]
fn the_end_token_ends_a_text_and_padding_follows_until_all_have_ended() {
    let texts = reference(json!({}), 5).generate(&ids(2, 5), None, 8).unwrap();
    let reaches = |row: usize, token| texts.row(row).iter().position(|&t| t == token);
    let (token, at) = (1..7)
        .map(|at| (texts[[0, at]], at))
        .find(|&(token, at)| reaches(0, token) == Some(at) && reaches(1, token).is_none_or(|other| other > at))
        .expect("the texts differ");
    for (eos, pad, filler) in [(json!(token), json!(null), token), (json!([token, -7]), json!(3), 3)] {
        let change = json!({"eos_token_id": eos, "pad_token_id": pad});
        let (ours, theirs) = (load(change.clone(), 5, Element::F32), reference(change, 5));
        let generated = ours.generate(&ids(2, 5), None, &greedy(8)).unwrap();
        assert_eq!(generated, theirs.generate(&ids(2, 5), None, 8).unwrap());
        assert!(generated.slice(s![0, at + 1..]).iter().all(|t| *t == filler), "{generated}");
        let alone = ours.generate(&ids(1, 5), None, &greedy(8)).unwrap();
        assert_eq!(alone, texts.slice(s![..1, ..=at]), "a text ends with its end token");
    }
}

#[test]
fn a_filler_that_is_no_token_is_refused_when_a_text_has_ended_before_another() {
    let texts = reference(json!({}), 5).generate(&ids(2, 5), None, 8).unwrap();
    let reaches = |row: usize, token| texts.row(row).iter().position(|&t| t == token);
    let ends_first = |&(token, at): &(i64, usize)| {
        reaches(0, token) == Some(at) && reaches(1, token).is_none_or(|other| other > at + 1)
    };
    let (token, _) = (1..6).map(|at| (texts[[0, at]], at)).find(ends_first).expect("the texts differ");
    for (change, found) in [
        (json!({"eos_token_id": token, "pad_token_id": -1}), "-1"),
        (json!({"eos_token_id": [93, token]}), "93"),
        (json!({"eos_token_id": [(1_i64 << 32) + 3, token]}), "4294967299"),
    ] {
        let error = load(change, 5, Element::F32).generate(&ids(2, 5), None, &greedy(8)).unwrap_err().to_string();
        assert_eq!(error, format!("forward: input_ids: expected tokens 0 to 89, found {found}"));
    }
}

#[test]
fn a_prompt_has_the_same_text_alone_and_in_a_batch() {
    for element in [Element::F32, Element::Bf16] {
        let model = load(json!({}), 6, element);
        for options in [greedy(8), nucleus(0.9, 1)] {
            let together = model.generate(&ids(3, 6), None, &options).unwrap();
            let alone = model.generate(&ids(1, 6), None, &options).unwrap();
            assert_eq!(alone, together.slice(s![..1, ..]), "{element} {options:?}");
        }
        let together = model.generate(&ids(3, 6), None, &greedy(8)).unwrap();
        for b in 1..3 {
            let alone = ids(3, 6).slice(s![b..b + 1, ..]).to_owned();
            let alone = model.generate(&alone, None, &greedy(8)).unwrap();
            assert_eq!(alone, together.slice(s![b..b + 1, ..]), "{element} sequence {b}");
        }
    }
}

#[test]
fn a_seed_repeats_its_text_and_another_draws_another() {
    let model = load(json!({}), 7, Element::F32);
    let draw = |top_p, seed| model.generate(&ids(2, 5), None, &nucleus(top_p, seed)).unwrap();
    assert_eq!(draw(0.95, 11), draw(0.95, 11));
    assert_ne!(draw(0.95, 11), draw(0.95, 12));
    let same = model.generate(&concatenate![Axis(0), ids(1, 5), ids(1, 5)], None, &nucleus(0.95, 11)).unwrap();
    assert_ne!(same.row(0), same.row(1), "the same prompt at two places of a batch");
    // At this temperature all tokens are alike, and the draws alone decide.
    let sampling = Sampling::TopP { temperature: 1e6, top_p: 1.0, seed: 3 };
    let hot = model.generate(&ids(1, 5), None, &GenerateOptions { sampling, ..greedy(4) }).unwrap();
    assert!(hot.iter().any(|token| *token != hot[[0, 0]]), "each step has a draw of its own: {hot}");
    let likeliest = model.generate(&ids(2, 5), None, &greedy(4)).unwrap();
    assert_ne!(draw(0.95, 11), likeliest);
    for top_p in [0.0, 1e-6] {
        assert_eq!(draw(top_p, 11), likeliest, "top_p {top_p}");
    }
}

/// Counts how often it is asked.
struct Counter(usize);

impl Tap for Counter {
    fn wants(&self, stage: &str) -> bool {
        stage == "lm_head"
    }

    fn stage(&mut self, _: &str, value: &Tensor) -> Result<bool> {
        assert_eq!(value.shape(), [2, 1, 90], "logits of the last position alone");
        self.0 += 1;
        Ok(false)
    }
}

#[test]
fn steps_give_the_same_tokens_and_can_be_looked_at() {
    let model = load(json!({}), 8, Element::Bf16);
    let whole = model.generate(&ids(2, 5), None, &greedy(4)).unwrap();
    let mut counter = Counter(0);
    let mut generation = model.start(&ids(2, 5), None, &greedy(4)).unwrap();
    for column in whole.columns() {
        assert_eq!(generation.step(Some(&mut counter)).unwrap().unwrap(), column);
    }
    assert_eq!(generation.step(None).unwrap(), None);
    assert_eq!(counter.0, 4);
}

/// Keeps the logits of every step; a step that is looked at is not captured.
struct Logits(Vec<Vec<f32>>);

impl Tap for Logits {
    fn wants(&self, stage: &str) -> bool {
        stage == "lm_head"
    }

    fn stage(&mut self, _: &str, value: &Tensor) -> Result<bool> {
        self.0.push(value.to_f32()?);
        Ok(false)
    }
}

/// Models of every form that a step has: queries with a latent and without, biases, dense layers alone.
fn forms() -> [Value; 5] {
    [
        json!({}),
        json!({"q_lora_rank": null}),
        json!({"q_lora_rank": null, "attention_bias": true}),
        json!({"topk_method": "greedy", "hidden_act": "gelu", "kv_lora_rank": 23, "first_k_dense_replace": 0}),
        json!({"first_k_dense_replace": 2, "attention_bias": true}),
    ]
}

#[test]
fn a_captured_step_has_the_bits_of_one_that_is_looked_at() {
    let mask = Array2::from_shape_fn((2, 6), |(b, t)| b == 0 || t >= 3);
    for (change, element) in forms().into_iter().flat_map(|it| [(it.clone(), Element::F32), (it, Element::Bf16)]) {
        let model = load(change.clone(), 10, element);
        for (mask, options) in [(None, greedy(5)), (Some(&mask), greedy(5)), (None, nucleus(0.9, 3))] {
            let what = format!("{change}, {element}, {options:?}, padded: {}", mask.is_some());
            let (mut seen, mut tokens) = (Logits(vec![]), vec![]);
            let mut generation = model.start(&ids(2, 6), mask, &options).unwrap();
            while let Some(next) = generation.step(Some(&mut seen)).unwrap() {
                tokens.push(next);
                assert!(generation.logits().is_none(), "{what}");
            }
            let mut captured = model.start(&ids(2, 6), mask, &options).unwrap();
            for (step, (expected, logits)) in tokens.iter().zip(&seen.0).enumerate() {
                assert_eq!(captured.step(None).unwrap().as_ref(), Some(expected), "{what}, step {step}");
                if step > 0 {
                    let found = captured.logits().expect("it is captured").to_f32().unwrap();
                    let bits = |of: &[f32]| of.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&found), bits(logits), "{what}, step {step}");
                }
            }
        }
    }
}

#[test]
fn a_look_at_one_step_changes_no_other() {
    let model = load(json!({}), 12, Element::Bf16);
    for options in [greedy(7), nucleus(0.9, 3)] {
        let expected = model.generate(&ids(2, 5), None, &options).unwrap();
        let mut generation = model.start(&ids(2, 5), None, &options).unwrap();
        for (step, column) in expected.columns().into_iter().enumerate() {
            let mut tap = Logits(vec![]);
            let look = step == 2 || step == 3;
            assert_eq!(generation.step(look.then_some(&mut tap as _)).unwrap().unwrap(), column, "step {step}");
        }
    }
}

#[test]
fn a_captured_step_takes_no_memory_and_copies_nothing_but_its_tokens() {
    let (direct, low_rank) = (json!({"q_lora_rank": null}), json!({}));
    // With few sequences the last block of a product goes on with what is behind it; with more that is a launch of its own.
    for (change, batch, of_layer) in
        [(&direct, 1, 9), (&direct, 4, 9), (&low_rank, 3, 10), (&direct, 5, 11), (&low_rank, 5, 13)]
    {
        let launches = |layers: usize| {
            let mut change = change.clone();
            change["num_hidden_layers"] = json!(layers);
            let model = load(change, 11, Element::Bf16);
            let mut generation = model.start(&ids(batch, 5), None, &greedy(6)).unwrap();
            (0..2).for_each(|_| assert!(generation.step(None).unwrap().is_some()));
            let device = model.model().device();
            device.counts();
            let steps: Vec<_> = (0..3).map(|_| generation.step(None).map(|_| device.counts()).unwrap()).collect();
            assert!(steps.iter().all(|step| *step == steps[0]), "{steps:?}");
            let launches = steps[0].launches;
            let nothing_else = Counts { launches, graphs: 1, downloads: 1, synchronizations: 1, ..Counts::default() };
            assert_eq!(steps[0], nothing_else);
            launches
        };
        assert_eq!(
            launches(4) - launches(3),
            of_layer,
            "{change}, {batch} sequences: launches of a layer with experts"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = load(json!({}), 9, Element::F32);
    let refusal = |prompt: &Array2<i64>, mask: Option<&Array2<bool>>, options: &GenerateOptions| {
        model.generate(prompt, mask, options).unwrap_err().to_string()
    };
    let mask = array![[true, true]];
    let expected = "generate: attention_mask: expected shape [1, 5], found [1, 2]";
    assert_eq!(refusal(&ids(1, 5), Some(&mask), &greedy(2)), expected);
    let expected = "forward: input_ids: expected at least one sequence of one token, found [1, 0]";
    assert_eq!(refusal(&Array2::zeros((1, 0)), None, &greedy(2)), expected);
    let expected = "forward: input_ids: expected at least one sequence of one token, found [0, 3]";
    assert_eq!(refusal(&Array2::zeros((0, 3)), None, &greedy(2)), expected);
    let expected = "forward: input_ids: expected tokens 0 to 89, found 90";
    assert_eq!(refusal(&array![[90]], None, &greedy(2)), expected);
    let expected = "MemoryPlan::new: page_size: expected at least 1, found 0";
    assert_eq!(refusal(&ids(1, 5), None, &GenerateOptions { page_size: 0, ..greedy(2) }), expected);
    let expected = "sample: top_p: expected a number within 0 and 1, found 2";
    assert_eq!(refusal(&ids(1, 5), None, &nucleus(2.0, 1)), expected);
    assert_eq!(model.generate(&ids(2, 5), None, &greedy(0)).unwrap().dim(), (2, 0));
}
