//! The models that are measured, and what they are fed: weights and texts are random, every sequence has its own text.

use std::path::PathBuf;

use dsv2_reference::config::Head;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::{Entry, write_checkpoint};
use dsv2_reference::weights::generator::{GeneratedWeights, splitmix64};
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype, Result};
use ndarray::Array2;

use crate::work::Work;

/// Prompts go in pieces of so many tokens, so that the scores of a piece stay small.
pub const PIECE: usize = 512;

/// A model, without weights.
#[derive(Clone)]
pub struct Model {
    pub name: &'static str,
    pub config: DeepseekV2Config,
    pub work: Work,
}

impl Model {
    /// V2-Lite with 4 of its layers, 2.25e9 weights.
    pub const V2_LITE_4: &'static str = "v2-lite-4";

    /// By a name of this program.
    pub fn new(name: &'static str, config: DeepseekV2Config) -> Self {
        Model { name, work: Work::new(&config), config }
    }

    /// V2-Lite's proportions in a model of 65 million weights: what `make_checkpoint --size mid` writes.
    pub fn mid() -> Self {
        let config = include_str!("../../../reference/examples/make_checkpoint/mid.json");
        Model::new("mid", DeepseekV2Config::from_json_str(config).expect("a possible config"))
    }

    /// `length` random tokens of each of `batch` texts, from number `text` on: \[batch,length\].
    pub fn tokens(&self, text: usize, batch: usize, length: usize) -> Array2<i64> {
        let vocab = self.config.vocab_size as u64;
        let token = |text: usize, at: usize| splitmix64(splitmix64(text as u64) ^ at as u64) % vocab;
        Array2::from_shape_fn((batch, length), |(b, at)| token(text + b, at) as i64)
    }
}

/// Random weights, by which a layer neither shrinks nor grows what passes through.
pub fn weights() -> GeneratedWeights {
    let rules = include_str!("../../../reference/examples/make_checkpoint/weights.json");
    serde_json::from_str(rules).expect("rules of weights")
}

/// Writes [`Model::V2_LITE_4`] as a checkpoint of random weights, unless it is there.
pub fn v2_lite_4_in(folder: PathBuf) -> Result<PathBuf> {
    if folder.join("config.json").exists() {
        return Ok(folder);
    }
    let config = DeepseekV2Config { num_hidden_layers: 4, ..DeepseekV2Config::preset("v2-lite")? };
    let shapes = config.weight_shapes(Head::CausalLm, Dialect::Hf);
    let entries: Vec<Entry> =
        shapes.into_iter().map(|(name, shape)| Entry { name, dtype: Dtype::Bf16, shape }).collect();
    let weights = weights();
    let make = |entry: &Entry| weights.tensor(&entry.name, &entry.shape);
    eprintln!("writing {}: 4.5 GB, once", folder.display());
    if let Some(parent) = folder.parent() {
        // What keeps it from being made, the writer will say.
        let _ = std::fs::create_dir_all(parent);
    }
    write_checkpoint(&folder, &config.to_json(), &entries, make, Some(5_000_000_000))?;
    Ok(folder)
}
