//! `dsv2 trace`.

use std::path::PathBuf;

use clap::Args;
use dsv2::backend::{Precision, Settings};
use dsv2::case::{Case, Feed, Layers};
use dsv2::memory::{Need, Size};
use dsv2::planned::{self, layers_needed};
use dsv2::trace::Stream;
use dsv2::{Error, Result, golden, output};
use dsv2_foreign::{Place, Text, list};
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::stage::Stage;

use super::feed::FeedArgs;
use super::progress::Told;
use super::{Attention, BackendName, Done, cache_format, layers, plan, precision, say_notes};

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
    /// What to compute in: f64, f32, tf32, f16, bf16 or fp8
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
    /// Only stages of these layers, such as 10, 10..12 (10 and 11) or 10..=12; nothing after them is loaded or run
    #[arg(long, value_name = "LAYERS", value_parser = layers)]
    layers: Option<Layers>,
    /// Refuse if more memory than this is needed, such as 8GB or 512MiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Size>,
}

pub fn run(args: &TraceArgs) -> Result<Done> {
    let pattern = golden::pattern("--stages", args.stages.as_deref().unwrap_or("*"))?;
    output::check_place(&args.output)?;
    let config = DeepseekV2Config::from_file(&args.model.join("config.json"))?;
    let layers = args.layers.clone().map(|layers| layers.of(&config)).transpose()?;
    let of_layers = |name: &str| match (&layers, Stage::parse(name)) {
        (Some(layers), Some(stage)) => stage.layer.is_some_and(|layer| layers.0.contains(&layer)),
        _ => true,
    };
    let wanted = |name: &str| pattern.matches(name) && of_layers(name);
    let backend = args.backend.backend();
    let first_layers = backend.runs_some_layers().then(|| layers_needed(config.num_hidden_layers, wanted)).flatten();
    let case = Case::of(config.clone(), &args.model, &args.inputs, Feed { first_layers, ..args.feed.feed() })?;
    case.check_cache(args.cache)?;
    let attention = args.attention.into();
    let settings =
        Settings { precision: args.dtype, attention, stages: Some(&wanted), cache: args.cache, ..Settings::default() };
    let mut planned = planned::stages(&case, attention, args.dtype);
    let computed = backend.takes(&case, &settings, &planned)?;
    planned.retain(|name, _| wanted(name) && !backend.leaves_out(name, &settings));
    if planned.is_empty() {
        return Err(Error::request("--stages", "a pattern that matches a stage", format!("\"{pattern}\"")));
    }
    let less = "fewer tokens take less, and so do the first layers alone (--layers)";
    plan(Need { size: Size(computed), less }, args.memory_limit)?;
    let mut told = Told::new(planned.len(), &wanted);
    let mut stream = Stream::create(&args.output, &case, &planned)?;
    backend.show(&case, &settings, &mut told, &mut stream)?;
    stream.finish()?;
    say_notes(case.config.notes(case.dialect).into_iter().chain(case.weights.notes()));
    let left_out = match &case.inputs.left_out[..] {
        [] => String::new(),
        names => format!(" (not fed: {})", list(names, 8)),
    };
    let said = format!("{}: {} stages{left_out}", Place(&args.output), planned.len());
    Ok(Done { output: Text::lines(&said), conforms: true })
}
