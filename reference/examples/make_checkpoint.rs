//! Writes a checkpoint with generated bf16 weights, to measure with.
//!
//! ```text
//! cargo run --release -p dsv2-reference --example make_checkpoint -- DIR [LAYERS] [--size v2-lite|mid]
//! ```
//! `v2-lite` (the default) has V2-Lite's width and 4 layers, or as many as told: 2.25e9 weights, 4.5 GB. `mid` has 8 layers
//! of a quarter of the width: 6.5e7 weights, 131 MB, small enough to measure often.

use std::error::Error;
use std::path::PathBuf;

use dsv2_reference::config::Head;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::{Entry, write_checkpoint};
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype};

const USAGE: &str = "usage: make_checkpoint DIR [LAYERS] [--size v2-lite|mid]";

/// V2-Lite with everything smaller, and every part still there. The benchmarks measure the same models.
const MID: &str = include_str!("make_checkpoint/mid.json");

/// By which a layer neither shrinks nor grows what passes through.
const WEIGHTS: &str = include_str!("make_checkpoint/weights.json");

fn main() -> Result<(), Box<dyn Error>> {
    let (mut plain, mut size) = (Vec::new(), String::from("v2-lite"));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--size" => size = arguments.next().ok_or(USAGE)?,
            _ => plain.push(argument),
        }
    }
    let mut plain = plain.into_iter();
    let dir = PathBuf::from(plain.next().ok_or(USAGE)?);
    let mut config = match size.as_str() {
        "v2-lite" => DeepseekV2Config { num_hidden_layers: 4, ..DeepseekV2Config::preset("v2-lite")? },
        "mid" => DeepseekV2Config::from_value(serde_json::from_str(MID)?)?,
        other => return Err(format!("--size: expected v2-lite or mid, found {other:?}").into()),
    };
    if let Some(layers) = plain.next() {
        config.num_hidden_layers =
            layers.parse().map_err(|_| format!("LAYERS: expected a number, found {layers:?}"))?;
    }

    let weights: GeneratedWeights = serde_json::from_str(WEIGHTS)?;
    let entries: Vec<Entry> = config
        .weight_shapes(Head::CausalLm, Dialect::Hf)
        .into_iter()
        .map(|(name, shape)| Entry { name, dtype: Dtype::Bf16, shape })
        .collect();
    write_checkpoint(&dir, &config.to_json(), &entries, |e| weights.tensor(&e.name, &e.shape), Some(5_000_000_000))?;
    println!("{}: {} layers, {} parameters", dir.display(), config.num_hidden_layers, config.parameter_count());
    Ok(())
}
