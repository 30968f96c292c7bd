//! `dsv2 check`.

use std::path::{Path, PathBuf};

use clap::Args;
use dsv2::backend::Precision;
use dsv2::case::{Case, Feed, Layers};
use dsv2::check::shards::{self, plans::Rule};
use dsv2::check::{self, Candidates, Checked, Conclusion, Request};
use dsv2::memory::Size;
use dsv2::mutants::explain::{Question, explain};
use dsv2::report::model::{CheckReport, Files, Report};
use dsv2::trace::Trace;
use dsv2::{Result, report};
use dsv2_foreign::Text;
use dsv2_reference::file::set;
use dsv2_reference::model::cache::CacheFormat;

use super::feed::FeedArgs;
use super::progress::{Progress, during};
use super::{Done, cache_format, for_people, layers, plan, precision, styled};

/// The arguments of `dsv2 check`.
#[derive(Args)]
pub struct CheckArgs {
    /// A Hugging Face checkpoint folder: config.json and model.safetensors, or its shards and their index
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A file (safetensors, .npz or .pt): input_ids or inputs_embeds, and optionally attention_mask, position_ids, labels, ...
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// The stages to check: a file with any of them, named as Hugging Face's modules (safetensors, .npz, .npy or .pt); again
    /// for each further file, in the order of the ranks
    #[arg(long, value_name = "FILE", required = true)]
    candidate: Vec<PathBuf>,
    /// How the files of a parallel run make one dump: transformers, vllm, megatron, megatron-sequence, or PATTERN=HOW with how
    /// one of replicated, columns, heads, sum, sequence; several with commas between them
    #[arg(long, value_name = "RULE")]
    shards: Option<Rule>,
    /// What they should be [default: what the f64 reference computes]
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,
    /// What the candidate computed in: f64, f32, tf32, f16, bf16 or fp8 (matrix products of fp8 numbers, all else bf16) [default: as its tensors are stored]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// How its cache keeps latents and keys: plain, bf16, fp8, int8 or six-bit
    #[arg(long, default_value = "plain", value_parser = cache_format)]
    cache: CacheFormat,
    #[command(flatten)]
    feed: FeedArgs,
    /// Only these layers, such as 10, 10..12 (10 and 11) or 10..=12, from the residual stream that the dump holds before them;
    /// no other weights are needed or read
    #[arg(long, value_name = "LAYERS", value_parser = layers)]
    layers: Option<Layers>,
    /// Write report.json (every number), junit.xml (for continuous integration) and report.html (to be read) to this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// If it does not conform: which known bugs compute what the dump holds, or which two of them (one run of the model for
    /// each, and 300 for pairs)
    #[arg(long)]
    explain: bool,
    /// Refuse if more memory than this is needed, such as 8GB or 512MiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Size>,
    /// Print one JSON object in place of a table
    #[arg(long)]
    json: bool,
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

pub fn run(args: &CheckArgs) -> Result<Done> {
    let mut request = Request {
        candidate: Trace::default(),
        expected: None,
        case: {
            let feed = Feed { layers: args.layers.clone(), ..args.feed.feed() };
            Case::open_as(&args.model, &args.inputs, feed)?
        },
        precision: args.dtype,
        cache: args.cache,
    };
    args.report.as_deref().map(set::check).transpose()?;
    let files = Files {
        model: shown(&args.model),
        inputs: shown(&args.inputs),
        candidate: args.candidate.iter().map(|file| shown(file)).collect::<Vec<_>>().join(", "),
        expected: args.expected.as_deref().map(shown),
    };
    let read_whole;
    let need_whole = |case: &Case| check::need_whole(case, args.candidate.iter().map(PathBuf::as_path), args.explain);
    let checked = {
        let candidates = Candidates::open(&args.candidate, args.shards.as_ref(), &request.case)?;
        let candidates = match &args.expected {
            Some(expected) => candidates.against(expected)?,
            None => candidates,
        };
        read_whole = candidates.are_read_whole(&request.case)?;
        let need = match read_whole {
            true => need_whole(&request.case)?,
            false => check::need_by_stage(&request.case, &candidates)?,
        };
        plan(need, args.memory_limit)?;
        let mut progress = Progress::of_something_slow();
        let mut reached = |done, of, what: &str| progress.reached(done, of, what);
        if read_whole { None } else { check::check_files(&request, &candidates, true, &mut reached)? }
    };
    // mutants are held against the dump, all of it
    let checked = checked.filter(|checked| !(args.explain && checked.conclusion() == Conclusion::Fail));
    let checked = match checked {
        Some(checked) => checked,
        None => {
            if !read_whole {
                plan(need_whole(&request.case)?, args.memory_limit)?;
            }
            during("the dump is judged whole", || judged_whole(args, &mut request))?
        }
    };
    let mut report = CheckReport::new(&request, &checked, files);
    let conforms = report.verdict == Conclusion::Pass;
    if args.explain && report.verdict == Conclusion::Fail {
        let cache = request.cache;
        let question = Question { cache, ..Question::new(&checked.case, &checked.candidate, checked.precision) };
        let mut progress = Progress::of_something_slow();
        report = report.explained(&explain(&question, |done, of, what| progress.reached(done, of, what))?);
    }
    let text = (!args.json).then(|| report::check_text(&report, styled()));
    let report = Report::Check(Box::new(report));
    if let Some(dir) = &args.report {
        report::write(dir, &report)?;
    }
    let output = text.map_or_else(|| Text::json(&report.json().to_string()), |text| for_people(&text));
    Ok(Done { output, conforms })
}

/// Reads all files of the dump, and judges what they hold together.
fn judged_whole(args: &CheckArgs, request: &mut Request) -> Result<Checked> {
    request.expected = args.expected.as_deref().map(Trace::read).transpose()?;
    let read = |file: &PathBuf| Ok((shown(file), check::read(&request.case, file)?));
    let files = args.candidate.iter().map(read).collect::<Result<Vec<_>>>()?;
    let joined = match &args.shards {
        Some(rule) => shards::join(&files, rule, &request.case)?,
        None => shards::together(files)?,
    };
    shards::check_ranks(request, joined)
}
