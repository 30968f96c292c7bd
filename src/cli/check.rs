//! `dsv2 check`.

use std::path::PathBuf;

use clap::Args;
use dsv2::backend::Precision;
use dsv2::case::Case;
use dsv2::check::{Checked, Request, check};
use dsv2::trace::Trace;
use dsv2::{Result, output, report};
use dsv2_reference::Dialect;

use super::{Done, dialect, pieces, precision, styled};

/// The arguments of `dsv2 check`.
#[derive(Args)]
pub struct CheckArgs {
    /// A Hugging Face checkpoint folder: config.json and model.safetensors, or its shards and their index
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A safetensors file: input_ids or inputs_embeds, and optionally attention_mask, position_ids, labels, ...
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// The stages to check: a safetensors file with any of them, named as Hugging Face's modules
    #[arg(long, value_name = "FILE")]
    candidate: PathBuf,
    /// What they should be [default: what the f64 reference computes]
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,
    /// What the candidate computed in: f64, f32 or bf16 [default: as its tensors are stored]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// Whose DeepSeek-V2: hf, hf-pre-5.15 or deepseek
    #[arg(long, default_value = "hf", value_parser = dialect)]
    dialect: Dialect,
    /// The candidate was fed in pieces of these lengths (only rotary embeddings that grow with the sequence depend on it)
    #[arg(long, value_name = "LENGTHS", value_parser = pieces)]
    chunks: Option<std::vec::Vec<usize>>,
    /// Write report.json to this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print one JSON object in place of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &CheckArgs) -> Result<Done> {
    let request = Request {
        candidate: Trace::read(&args.candidate)?,
        expected: args.expected.as_deref().map(Trace::read).transpose()?,
        case: Case::open(&args.model, &args.inputs, args.dialect, args.chunks.clone())?,
        precision: args.dtype,
    };
    args.report.as_deref().map(output::make_report_folder).transpose()?;
    let Checked { verdict, precision, unknown, near_ties } = check(&request)?;
    let json = report::check_json(&verdict);
    if let Some(dir) = &args.report {
        output::write_report(dir, &json)?;
    }
    let conforms = verdict.passes();
    if args.json {
        return Ok(Done { output: json.to_string(), conforms });
    }
    let mut parts = vec![report::check_table(&verdict, styled())];
    if !unknown.is_empty() {
        parts.push(format!("not looked at (no stage of this model): {}", unknown.join(", ")));
    }
    if !near_ties.is_empty() {
        let of = near_ties.iter().map(|(stage, tokens)| format!("{stage} ({tokens})"));
        let of = of.collect::<Vec<_>>().join(", ");
        parts.push(format!("near ties that fell the other way (tokens; allowed, and followed): {of}"));
    }
    parts.push(match verdict.first_failure() {
        None => format!("pass: {} stages, as {precision} computes them", verdict.compared()),
        Some(stage) => format!("FAIL: first wrong stage {}", report::describe_failure(stage)),
    });
    Ok(Done { output: parts.join("\n\n"), conforms })
}
