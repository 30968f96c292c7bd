//! Writes a checkpoint with generated bf16 weights, to measure with.
//!
//! ```text
//! cargo run --release -p dsv2-reference --example make_checkpoint -- DIR [LAYERS] [--size v2-lite|mid]
//! ```
//! `v2-lite` (the default) has V2-Lite's width and 4 layers, or as many as told: 2.25e9 weights, 4.5 GB. `mid` has 8 layers
//! of a quarter of the width: 6.5e7 weights, 131 MB, small enough to measure often.

use std::error::Error;
use std::path::PathBuf;

use dsv2_reference::checkpoint::{Entry, write_checkpoint};
use dsv2_reference::config::{EosTokenId, Head};
use dsv2_reference::generator::GeneratedWeights;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{DeepseekV2Config, Dialect, Dtype};

const USAGE: &str = "usage: make_checkpoint DIR [LAYERS] [--size v2-lite|mid]";

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
        "mid" => mid()?,
        other => return Err(format!("--size: expected v2-lite or mid, found {other:?}").into()),
    };
    if let Some(layers) = plain.next() {
        config.num_hidden_layers =
            layers.parse().map_err(|_| format!("LAYERS: expected a number, found {layers:?}"))?;
    }

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

/// V2-Lite with everything smaller, and every part still there.
fn mid() -> Result<DeepseekV2Config, Box<dyn Error>> {
    Ok(DeepseekV2Config {
        vocab_size: 8192,
        hidden_size: 512,
        num_hidden_layers: 8,
        num_attention_heads: 8,
        num_key_value_heads: Some(8),
        kv_lora_rank: 128,
        qk_nope_head_dim: 64,
        qk_rope_head_dim: 32,
        v_head_dim: 64,
        intermediate_size: 2048,
        moe_intermediate_size: 256,
        n_routed_experts: Some(16),
        num_experts_per_tok: Some(4),
        n_shared_experts: Some(1),
        bos_token_id: Some(8190),
        eos_token_id: Some(EosTokenId::One(8191)),
        ..DeepseekV2Config::preset("v2-lite")?
    })
}
