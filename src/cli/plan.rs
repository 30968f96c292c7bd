//! `dsv2 plan`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use dsv2::backend::OnRanks;
use dsv2::memory::{NoSize, Size};
use dsv2::plan::{DevicePlan, Request, WeightFormat};
use dsv2::{Error, Result};
use dsv2_foreign::{Place, Text};
use dsv2_optimized::model::parallel;
use dsv2_reference::config::PRESETS;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::{DeepseekV2Config, Dialect};

use super::{Attention, Done, cache_format, dialect};

#[derive(Args)]
#[command(group = ArgGroup::new("planned").required(true).args(["model", "preset"]))]
pub struct PlanArgs {
    /// A checkpoint folder (its config.json is read)
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A released model
    #[arg(long, value_parser = PRESETS)]
    preset: Option<String>,
    /// Whose DeepSeek-V2: hf, hf-pre-5.15 or deepseek
    #[arg(long, default_value = "hf", value_parser = dialect)]
    dialect: Dialect,
    /// How many devices [default: as many as --ranks, or 1]
    #[arg(long, value_name = "N")]
    devices: Option<usize>,
    /// One split alone: heads and columns in P parts, experts in Q blocks [default: all that the devices can have]
    #[arg(long, value_name = "PxQ", value_parser = ranks)]
    ranks: Option<[usize; 2]>,
    /// Whether every rank works on all sequences, or each of the Q has its own
    #[arg(long, default_value = "every")]
    homes: Homes,
    /// The memory of a device, such as 80GB (80 x 10^9 bytes) or 80GiB (80 x 2^30)
    #[arg(long, value_name = "SIZE", default_value = "80GB")]
    device_memory: Size,
    /// How much of it is kept free: for the driver, kernels, a library of collectives, and what is lost between pieces
    #[arg(long, value_name = "SIZE", default_value = "4GB", value_parser = reserve)]
    reserve: Size,
    /// How weights are kept: bf16, f32 or fp8
    #[arg(long, default_value = "bf16")]
    weights: WeightFormat,
    /// How a token is cached: plain, bf16, int8, fp8 or six-bit
    #[arg(long, default_value = "plain", value_parser = cache_format)]
    cache: CacheFormat,
    /// Tokens of a sequence [default: 32768, or as many as the model can see]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Sequences, on all devices together
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// New tokens of a pass over prompts, of all sequences of a device
    #[arg(long, value_name = "N", default_value_t = 2048)]
    chunk: usize,
    /// How attention is computed over prompts
    #[arg(long, default_value = "expanded")]
    attention: Attention,
    /// Print one JSON object in place of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Homes {
    /// Attention on every rank, over all sequences
    Every,
    /// Data-parallel attention
    Own,
}

pub fn run(args: &PlanArgs) -> Result<Done> {
    let request = Request {
        dialect: args.dialect,
        devices: args.devices.or(args.ranks.map(|[tensor, experts]| tensor.saturating_mul(experts))).unwrap_or(1),
        ranks: args.ranks,
        homes: match args.homes {
            Homes::Every => parallel::Homes::Every,
            Homes::Own => parallel::Homes::Own,
        },
        memory: args.device_memory.0,
        reserve: args.reserve.0,
        weights: args.weights,
        cache: args.cache,
        context: args.context,
        batch: args.batch,
        chunk: args.chunk,
        form: args.attention.into(),
    };
    let plan = match (&args.model, &args.preset) {
        (Some(dir), _) => {
            let config = DeepseekV2Config::from_file(&dir.join("config.json"))?;
            DevicePlan::new(&Place(dir).to_string(), &config, &request)?
        }
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            DevicePlan::new(name, &DeepseekV2Config::preset(name)?, &request)?
        }
    };
    let output =
        if args.json { Text::json(&serde_json::json!(plan).to_string()) } else { Text::lines(&plan.to_string()) };
    Ok(Done { output, conforms: true })
}

/// `2x4`
fn ranks(text: &str) -> Result<[usize; 2]> {
    OnRanks::parts(text).ok_or_else(|| Error::request("--ranks", "PxQ, such as 2x4", format!("{text:?}")))
}

/// `4GB`, or nothing.
fn reserve(text: &str) -> Result<Size, NoSize> {
    if text.trim() == "0" { Ok(Size(0)) } else { text.parse() }
}
