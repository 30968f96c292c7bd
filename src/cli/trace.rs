//! `dsv2 trace`.

use std::path::PathBuf;

use clap::Args;
use dsv2::backend::{Precision, Settings};
use dsv2::case::Case;
use dsv2::{Error, Result, golden, output};
use dsv2_foreign::{Place, Text, list};
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::tap::NoTap;

use super::feed::FeedArgs;
use super::{Attention, BackendName, Done, cache_format, precision};

/// The arguments of `dsv2 trace`.
#[derive(Args)]
pub struct TraceArgs {
    /// A Hugging Face checkpoint folder: config.json and model.safetensors, or its shards and their index
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A safetensors file: input_ids or inputs_embeds, and optionally attention_mask, position_ids, labels, ...
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What runs it
    #[arg(long, value_enum, default_value = "reference")]
    backend: BackendName,
    /// What to compute in: f64, f32, tf32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = precision)]
    dtype: Precision,
    /// Which form of attention
    #[arg(long, value_enum, default_value = "expanded")]
    attention: Attention,
    #[command(flatten)]
    feed: FeedArgs,
    /// How the cache keeps latents and keys: plain, bf16, fp8, int8 or six-bit
    #[arg(long, default_value = "plain", value_parser = cache_format)]
    cache: CacheFormat,
    /// Only stages whose name matches, such as 'model.layers.0.*'
    #[arg(long, value_name = "GLOB")]
    stages: Option<String>,
}

pub fn run(args: &TraceArgs) -> Result<Done> {
    let pattern = golden::pattern("--stages", args.stages.as_deref().unwrap_or("*"))?;
    output::check_place(&args.output)?;
    let case = Case::open_as(&args.model, &args.inputs, args.feed.feed())?;
    case.check_cache(args.cache)?;
    let wanted = |name: &str| pattern.matches(name);
    let attention = args.attention.into();
    let settings =
        Settings { precision: args.dtype, attention, stages: Some(&wanted), cache: args.cache, ..Settings::default() };
    let trace = args.backend.backend().run(&case, &settings, &mut NoTap)?;
    if trace.is_empty() {
        return Err(Error::request("--stages", "a pattern that matches a stage", format!("\"{pattern}\"")));
    }
    let trace = if let Some(packed) = &case.inputs.packed { packed.as_dumped(&trace) } else { trace };
    trace.write(&args.output)?;
    let left_out = match &case.inputs.left_out[..] {
        [] => String::new(),
        names => format!(" (not fed: {})", list(names, 8)),
    };
    let said = format!("{}: {} stages{left_out}", Place(&args.output), trace.len());
    Ok(Done { output: Text::lines(&said), conforms: true })
}
