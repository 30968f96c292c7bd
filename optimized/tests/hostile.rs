//! Impossible requests: each is refused with one error that names the thing, what was expected and what was found.
//! Nothing panics, and a cache stays as it was, to the bit.

mod classifier;
mod loading;
mod passes;

use std::sync::Arc;

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::{Model, Settings};
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Variant};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect, LogitsToKeep, ModelInput};
use ndarray::Array2;
use serde_json::{Value, json};

const SETTINGS: Settings = Settings::new(Element::F32, Variant::Tuned);

/// A small model. Its rope type remembers how long a sequence has been: part of what a refusal must not change.
fn config() -> DeepseekV2Config {
    with(json!({}))
}

fn with(fields: Value) -> DeepseekV2Config {
    let mut config = json!({
        "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6,
        "moe_intermediate_size": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 6, "q_lora_rank": null, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4, "v_head_dim": 4, "max_position_embeddings": 2,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn weights() -> GeneratedWeights {
    serde_json::from_str(
        r#"{"seed": 9, "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.2}, {"suffix": "", "gain": 1.0}]}"#,
    )
    .unwrap()
}

fn device() -> Arc<dyn Device> {
    Emulated::new(Library::embedded())
}

fn load(config: &DeepseekV2Config, weights: &dyn WeightSource, device: &Arc<dyn Device>) -> Result<CausalLm> {
    CausalLm::load(config, Dialect::Hf, weights, device, SETTINGS, &mut |_| ())
}

fn cache(model: &Model, batch: usize, tokens: usize) -> LatentCache {
    LatentCache::new(model.config(), model.device(), Element::F32, batch, tokens, 2).unwrap()
}

#[track_caller]
fn refused<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string(),
    }
}

/// Tokens alone.
fn input(batch: usize, length: usize) -> CausalLmInput {
    let ids = Array2::from_shape_fn((batch, length), |(b, s)| ((3 * b + 5 * s) % 11) as i64);
    CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::default(), labels: None }
}
