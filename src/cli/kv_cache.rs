//! `dsv2 kv-cache`.

use std::path::PathBuf;

use clap::Args;
use dsv2::kv_cache::{KvCacheTable, Room};
use dsv2::{Error, Result};
use dsv2_foreign::{Place, Text};
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::config::PRESETS;

use super::Done;

#[derive(Args)]
pub struct KvCacheArgs {
    /// A checkpoint folder (its config.json is read)
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// A released model; without it and without a folder, all of them
    #[arg(long, value_parser = PRESETS)]
    preset: Option<String>,
    /// Memory for caches, in units of 10^9 bytes
    #[arg(long, value_name = "GB", default_value_t = 10.0)]
    memory: f64,
    /// Sequences that share the memory
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Print one JSON object in place of tables
    #[arg(long)]
    json: bool,
}

pub fn run(args: &KvCacheArgs) -> Result<Done> {
    // Up to 2^53 bytes a number of gigabytes has no more digits than f64 can hold.
    let memory = Some(args.memory * 1e9).filter(|bytes| (0.0..=9e15).contains(bytes));
    let memory = memory.ok_or_else(|| Error::request("--memory", "0 to 9000000 (GB)", args.memory))?;
    let room = Room { memory: memory as u64, batch: args.batch };
    let tables = match (&args.model, &args.preset) {
        (Some(dir), _) => {
            let config = DeepseekV2Config::from_file(&dir.join("config.json"))?;
            vec![KvCacheTable::new(&Place(dir).to_string(), &config, room)?]
        }
        (None, Some(name)) => vec![KvCacheTable::new(name, &DeepseekV2Config::preset(name)?, room)?],
        (None, None) => KvCacheTable::of_presets(room)?,
    };
    let output = if args.json {
        Text::json(&serde_json::json!({ "tables": tables }).to_string())
    } else {
        Text::lines(&tables.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"))
    };
    Ok(Done { output, conforms: true })
}
