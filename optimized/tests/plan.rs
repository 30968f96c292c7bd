//! The memory plan against what is really taken: every byte of weights and cache, and the largest amount that a pass has
//! at one time.

use std::sync::{Arc, Mutex};

use crate::support::forward::rest_by_inner;
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::generate::{GenerateOptions, Sampling};
use dsv2_optimized::model::head::{CausalLm, CausalLmInput, SequenceClassifier};
use dsv2_optimized::model::plan::{CacheSize, MemoryPlan, Pass};
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Variant};
use dsv2_reference::config::Head;
use dsv2_reference::model::{ModelInput, Tokens};
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{
    AttentionForm, AttentionMask, CausalLmLabels, ClassificationLabels, DeepseekV2Config, Dialect, LogitsToKeep,
};
use ndarray::Array2;
use serde_json::{Value, json};

const WEIGHTS: &str = r#"{"seed": 2, "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
    {"suffix": "embed_tokens.weight", "std": 1.0}, {"suffix": "weight", "gain": 1.0}, {"suffix": "bias", "std": 0.1}]}"#;

/// A small model; `change` overrides fields.
fn config(change: Value) -> DeepseekV2Config {
    let mut all = json!({"vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 40, "moe_intermediate_size": 20, "n_routed_experts": 6, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "topk_method": "greedy", "first_k_dense_replace": 1, "kv_lora_rank": 24,
        "q_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "pad_token_id": 0});
    let fields = change.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(fields);
    DeepseekV2Config::from_value(all).unwrap()
}

/// An emulator that remembers how much was taken at one time, at most.
#[derive(Debug)]
struct Counting {
    inner: Arc<Emulated>,
    /// Of each allocation, its address and its bytes.
    taken: Mutex<(Vec<(u64, usize)>, usize)>,
}

impl Counting {
    fn new() -> Arc<Self> {
        Arc::new(Counting { inner: Emulated::new(Library::embedded()), taken: Mutex::default() })
    }

    fn now(&self) -> usize {
        self.taken.lock().unwrap().0.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The most since the last call.
    fn peak(&self) -> usize {
        std::mem::take(&mut self.taken.lock().unwrap().1)
    }
}

impl Device for Counting {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        let address = self.inner.allocate(bytes)?;
        self.taken.lock().unwrap().0.push((address, bytes));
        let now = self.now();
        let peak = &mut self.taken.lock().unwrap().1;
        *peak = now.max(*peak);
        Ok(address)
    }
    fn free(&self, address: u64) {
        self.taken.lock().unwrap().0.retain(|(taken, _)| *taken != address);
        self.inner.free(address);
    }
    rest_by_inner!();
}

/// Models in which one or another part is the largest.
fn configs() -> Vec<(&'static str, DeepseekV2Config, Dialect)> {
    // The output of attention is wider than keys and values, and queries are wider than the feed-forward network.
    let rotary = json!({"qk_rope_head_dim": 64, "qk_nope_head_dim": 2, "v_head_dim": 2, "num_attention_heads": 4,
        "hidden_size": 200, "intermediate_size": 4, "first_k_dense_replace": 2});
    vec![
        ("usual", config(json!({})), Dialect::Hf),
        (
            "biases, direct queries",
            config(json!({"attention_bias": true, "mlp_bias": true, "q_lora_rank": null})),
            Dialect::Hf,
        ),
        ("a wide query latent", config(json!({"q_lora_rank": 300})), Dialect::Hf),
        ("a wide latent", config(json!({"kv_lora_rank": 400, "num_attention_heads": 1})), Dialect::Hf),
        ("a wide dense layer", config(json!({"intermediate_size": 900})), Dialect::Hf),
        ("wide experts", config(json!({"moe_intermediate_size": 300})), Dialect::Hf),
        ("wide shared experts", config(json!({"n_shared_experts": 12})), Dialect::Hf),
        ("no shared experts", config(json!({"n_shared_experts": null})), Dialect::Deepseek),
        ("a large vocabulary", config(json!({"vocab_size": 3000})), Dialect::Hf),
        ("tied embeddings", config(json!({"tie_word_embeddings": true})), Dialect::Hf),
        ("wide rotary keys", config(rotary), Dialect::Hf),
    ]
}

const SETTINGS: [Settings; 2] =
    [Settings::new(Element::Bf16, Variant::Tuned), Settings::new(Element::F32, Variant::Naive)];
const BATCH: usize = 2;

fn weights() -> GeneratedWeights {
    serde_json::from_str(WEIGHTS).unwrap()
}

fn tokens(new: usize) -> Array2<i64> {
    Array2::from_shape_fn((BATCH, new), |(b, s)| (31 * b as i64 + 17 * s as i64 + 3) % 90)
}

fn used(device: &Arc<dyn Device>) -> usize {
    let (free, total) = device.memory().unwrap();
    total - free
}

#[test]
fn weights_and_cache_take_what_the_plan_says_to_the_byte() {
    for (name, config, dialect) in configs() {
        for settings in SETTINGS {
            let device: Arc<dyn Device> = Emulated::new(Library::embedded());
            let size = CacheSize { batch: 3, tokens: 70, page_size: 16 };
            let plan = |head| MemoryPlan::new(&config, dialect, head, settings, size, &[]).unwrap();
            let mut told = 0;
            let lm =
                CausalLm::load(&config, dialect, &weights(), &device, settings, &mut |bytes| told += bytes).unwrap();
            assert_eq!(used(&device), plan(Head::CausalLm).weights, "{name}");
            assert_eq!(told, plan(Head::CausalLm).weights, "{name}: what the progress adds up to");
            drop(lm);
            assert_eq!(used(&device), 0, "{name}");
            let head = Head::SequenceClassification;
            let classifier =
                SequenceClassifier::load(&config, dialect, &weights(), &device, settings, &mut |_| ()).unwrap();
            assert_eq!(used(&device), plan(head).weights, "{name}");
            drop(classifier);
            let cache = LatentCache::new(&config, &device, settings.element, 3, 70, 16).unwrap();
            assert_eq!(used(&device), plan(head).cache, "{name}");
            drop(cache);
        }
    }
}

/// Runs passes one after another through a cache, and compares the most that each takes with the plan.
#[test]
fn a_pass_takes_no_more_than_the_plan_says_and_not_much_less() {
    for (name, config, dialect) in configs() {
        for settings in SETTINGS {
            let device = Counting::new();
            let shared: Arc<dyn Device> = device.clone();
            let lm = CausalLm::load(&config, dialect, &weights(), &shared, settings, &mut |_| ()).unwrap();
            let size = CacheSize { batch: BATCH, tokens: 24, page_size: 4 };
            let mut cache = LatentCache::new(&config, &shared, settings.element, BATCH, 24, 4).unwrap();
            let before = device.now();
            let mut keys = 0;
            for (new, form, masked, logits) in [
                (9, AttentionForm::Expanded, false, 9),
                (1, AttentionForm::Absorbed, false, 1),
                (5, AttentionForm::Expanded, true, 5),
                (3, AttentionForm::Absorbed, true, 2),
            ] {
                keys += new;
                let pass = Pass { new, keys, form, masked, logits };
                let plan = MemoryPlan::new(&config, dialect, Head::CausalLm, settings, size, &[pass]).unwrap();
                let real = Array2::from_shape_fn((BATCH, keys), |(b, t)| !masked || b > 0 || t > 1);
                let input = CausalLmInput {
                    input: ModelInput {
                        tokens: Tokens::InputIds(tokens(new)),
                        attention_mask: Some(AttentionMask::Padding(real)),
                        position_ids: None,
                    },
                    logits_to_keep: LogitsToKeep::Last(logits as i64),
                    labels: (logits == new).then(|| CausalLmLabels::new(tokens(new))),
                };
                device.peak();
                lm.forward(&input, Some(&mut cache), form, None).unwrap();
                let (taken, planned) = (device.peak() - before, plan.workspace);
                let what = format!("{name}, {settings:?}, {pass:?}: {taken} taken, {planned} planned");
                // The plan counts the labels, whether there are any or not.
                let labels = if input.labels.is_some() { 0 } else { 8 * BATCH * logits + 4 };
                assert!(taken <= planned && planned <= taken + labels, "{what}");
            }
        }
    }
}

#[test]
fn a_classifier_takes_what_the_plan_says() {
    for labels in [2, 700] {
        let config = config(json!({"num_labels": labels}));
        let device = Counting::new();
        let shared: Arc<dyn Device> = device.clone();
        let settings = SETTINGS[0];
        let model = SequenceClassifier::load(&config, Dialect::Hf, &weights(), &shared, settings, &mut |_| ()).unwrap();
        let size = CacheSize { batch: BATCH, tokens: 6, page_size: 3 };
        let mut cache = LatentCache::new(&config, &shared, settings.element, BATCH, 6, 3).unwrap();
        let pass = Pass { new: 6, keys: 6, form: AttentionForm::Expanded, masked: false, logits: 0 };
        let head = Head::SequenceClassification;
        let plan = MemoryPlan::new(&config, Dialect::Hf, head, settings, size, &[pass]).unwrap();
        let before = device.now();
        device.peak();
        let classes = ClassificationLabels::Class(vec![0, 1].into());
        model.forward(&ModelInput::ids(tokens(6)), Some(&classes), Some(&mut cache), pass.form, None).unwrap();
        assert_eq!(device.peak() - before, plan.workspace, "{labels} labels");
    }
}

#[test]
fn generation_takes_no_more_than_its_plan_says() {
    let config = config(json!({}));
    let device = Counting::new();
    let shared: Arc<dyn Device> = device.clone();
    let lm = CausalLm::load(&config, Dialect::Hf, &weights(), &shared, SETTINGS[0], &mut |_| ()).unwrap();
    let options = GenerateOptions { page_size: 4, ..GenerateOptions::new(6) };
    let plan = options.plan(&config, Dialect::Hf, SETTINGS[0], BATCH, 7, false).unwrap();
    device.peak();
    lm.generate(&tokens(7), None, &options).unwrap();
    let peak = device.peak();
    assert!(peak <= plan.total() && plan.total() <= peak + 8 * BATCH + 4, "{peak} taken, {} planned", plan.total());
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_taken() {
    let device: Arc<dyn Device> = Emulated::new(Library::embedded());
    let settings = SETTINGS[0];
    let free = device.memory().unwrap().0;
    let large = config(json!({"vocab_size": 1 << 30}));
    let load = |head: Head| match head {
        Head::CausalLm => CausalLm::load(&large, Dialect::Hf, &weights(), &device, settings, &mut |_| ()).err(),
        _ => SequenceClassifier::load(&large, Dialect::Hf, &weights(), &device, settings, &mut |_| ()).err(),
    };
    for (head, name) in [(Head::CausalLm, "CausalLm"), (Head::SequenceClassification, "SequenceClassifier")] {
        let size = CacheSize { batch: 1, tokens: 1, page_size: 1 };
        let needed = MemoryPlan::new(&large, Dialect::Hf, head, settings, size, &[]).unwrap().weights;
        let expected = format!("{name}::load: device memory: expected {needed} bytes, found {free} free");
        assert_eq!(load(head).unwrap().to_string(), expected);
    }

    let small = config(json!({}));
    let lm = CausalLm::load(&small, Dialect::Hf, &weights(), &device, settings, &mut |_| ()).unwrap();
    let free = device.memory().unwrap().0;
    let cache = |tokens| LatentCache::new(&small, &device, settings.element, 1000, tokens, 64).unwrap_err().to_string();
    // 2 layers, 1000 sequences, 24 + 8 numbers of 2 bytes.
    let needed: u64 = 2 * 1000 * 64_000 * 32 * 2;
    let expected = format!("LatentCache::new: device memory: expected {needed} bytes, found {free} free");
    assert_eq!(cache(64_000), expected);
    assert!(cache(usize::MAX).contains("tokens: expected at most"));

    let prompt = tokens(5);
    for new in [1_000_000_000, usize::MAX] {
        let options = GenerateOptions::new(new);
        let plan = options.plan(&small, Dialect::Hf, settings, BATCH, 5, false).unwrap();
        let error = lm.generate(&prompt, None, &options).unwrap_err().to_string();
        let needed = plan.cache.saturating_add(plan.workspace);
        assert_eq!(error, format!("generate: device memory: expected {needed} bytes, found {free} free"));
    }
    assert_eq!(device.memory().unwrap().0, free, "nothing was taken");
}

#[test]
fn what_no_number_of_bytes_holds_is_planned_as_the_largest_number() {
    let config = config(json!({}));
    for most in [usize::MAX, usize::MAX / 2, usize::MAX / 3] {
        for [batch, prompt, new] in [[most, 1, 2], [1, most, 2], [1, 1, most], [most, most, most]] {
            for sampling in [Sampling::Greedy, Sampling::TopP { temperature: 1.0, top_p: 0.5, seed: 1 }] {
                let options = GenerateOptions { sampling, ..GenerateOptions::new(new) };
                let plan = options.plan(&config, Dialect::Hf, SETTINGS[0], batch, prompt, true).unwrap();
                assert_eq!(plan.total(), usize::MAX, "{batch} prompts of {prompt} tokens, {new} new ones");
            }
        }
    }
}

#[test]
fn the_published_models_need_what_their_papers_say() {
    // 15.7 and 235.7 thousand million weights of two bytes; a cached token of V2-Lite has 27 x 576 numbers.
    for (preset, billions) in [("v2-lite", 15.7), ("v2", 235.7)] {
        let config = DeepseekV2Config::preset(preset).unwrap();
        let size = CacheSize { batch: 1, tokens: 64, page_size: 64 };
        let pass = Pass { new: 1, keys: 64, form: AttentionForm::Absorbed, masked: false, logits: 1 };
        let plan = MemoryPlan::new(&config, Dialect::Hf, Head::CausalLm, SETTINGS[0], size, &[pass]).unwrap();
        assert_eq!((plan.weights as f64 / 2e8).round(), billions * 10.0, "{preset}");
        assert_eq!(plan.cache, 64 * config.num_hidden_layers * 576 * 2);
        let lines: Vec<String> = plan.to_string().lines().map(|line| line.split(' ').next().unwrap().into()).collect();
        assert_eq!(lines, ["weights", "cache", "workspace", "in"]);
    }
}
