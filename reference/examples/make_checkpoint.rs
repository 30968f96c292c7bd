//! Writes a checkpoint of V2-Lite's width and any depth, with generated bf16 weights, to measure with.
//!
//! ```text
//! cargo run --release -p dsv2-reference --example make_checkpoint -- DIR [LAYERS]
//! ```
//! 4 layers (the default) are 2.25e9 weights, 4.5 GB.

use std::error::Error;
use std::path::PathBuf;

use dsv2_reference::checkpoint::{Entry, write_checkpoint};
use dsv2_reference::config::Head;
use dsv2_reference::generator::GeneratedWeights;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: make_checkpoint DIR [LAYERS]")?);
    let mut config = DeepseekV2Config::preset("v2-lite")?;
    config.num_hidden_layers = arguments.next().map_or(Ok(4), |layers| layers.parse())?;

    let weights: GeneratedWeights = serde_json::from_str(
        r#"{"seed": 0, "rules": [
            {"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
            {"suffix": "embed_tokens.weight", "std": 1.0},
            {"suffix": "q_proj.weight", "gain": 1.5},
            {"suffix": "mlp.gate.weight", "gain": 1.5},
            {"suffix": "weight", "gain": 1.0}]}"#,
    )?;
    let entries: Vec<Entry> = config
        .weight_shapes(Head::CausalLm, Dialect::Hf)
        .into_iter()
        .map(|(name, shape)| Entry { name, dtype: Dtype::Bf16, shape })
        .collect();
    write_checkpoint(&dir, &config.to_json(), &entries, |e| weights.tensor(&e.name, &e.shape), Some(5_000_000_000))?;
    println!("{}: {} layers, {} parameters", dir.display(), config.num_hidden_layers, config.parameter_count());
    Ok(())
}
