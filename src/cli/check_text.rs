//! `dsv2 check-text`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dsv2::backend::Precision;
use dsv2::generate::ModelFolder;
use dsv2::memory::{Need, Size};
use dsv2::transcripts::LogprobsOf;
use dsv2::transcripts::endpoint::Endpoint;
use dsv2::transcripts::files::{self, How, Transcripts, requests};
use dsv2::transcripts::judge::Judge;
use dsv2::transcripts::report::{TranscriptsReport, Verdict};
use dsv2::{Error, Result, output};
use dsv2_foreign::Text;
use dsv2_reference::Dialect;

use super::progress::Progress;
use super::{Done, dialect, for_people, plan, precision, say_notes, styled};

/// The arguments of `dsv2 check-text`.
#[derive(Args)]
pub struct CheckTextArgs {
    /// What an engine answered: {"request": .., "response": ..} in each line, the bodies of OpenAI's API
    #[arg(value_name = "TRANSCRIPTS", required_unless_present = "endpoint", conflicts_with_all = ["endpoint", "requests", "served_model", "api_key_env", "timeout", "save"])]
    transcripts: Option<PathBuf>,
    /// A Hugging Face folder as it is downloaded: config.json, weights, tokenizer.json [default: a small model in the program]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A server to be asked, such as http://127.0.0.1:8000
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// What it is asked: the body of a request in each line [default: 16 that show known bugs]
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    requests: Option<PathBuf>,
    /// What it calls the model [default: the one that it has]
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    served_model: Option<String>,
    /// The environment variable that holds its key
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    api_key_env: Option<String>,
    /// How many seconds each answer may take, with all waiting for a server that is busy
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "endpoint", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Write what it answered to this file, to be judged again
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    save: Option<PathBuf>,
    /// What the engine computes in: f64, f32, tf32, f16, bf16 or fp8 [default: f32, or bf16 if something is off in f32 alone]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// Which logprobs it tells [default: whichever of these explains all]
    #[arg(long, value_enum)]
    logprobs: Option<Logprobs>,
    /// Whose DeepSeek-V2: hf, hf-pre-5.15 or deepseek
    #[arg(long, default_value = "hf", value_parser = dialect)]
    dialect: Dialect,
    /// Refuse if more memory than this is needed, such as 8GB or 512MiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Size>,
    /// Print one JSON object in place of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Logprobs {
    /// The model's own, before anything is done to them
    Model,
    /// After penalty and temperature, before the filters
    Scaled,
    /// After all processors
    Processed,
}

impl From<Logprobs> for LogprobsOf {
    fn from(logprobs: Logprobs) -> Self {
        match logprobs {
            Logprobs::Model => LogprobsOf::Model,
            Logprobs::Scaled => LogprobsOf::Scaled,
            Logprobs::Processed => LogprobsOf::Processed,
        }
    }
}

pub fn run(args: &CheckTextArgs) -> Result<Done> {
    args.save.as_deref().map(output::check_place).transpose()?;
    let folder = ModelFolder::open_or_embedded(args.model.as_deref(), args.dialect)?;
    let judge = Judge::new(&folder, args.dtype.unwrap_or(Precision::F32), args.logprobs.map(Into::into))?;
    let mut progress = Progress::of_something_slow();
    let vocabulary = folder.config.vocab_size;
    let taken = match (&args.transcripts, &args.endpoint) {
        (Some(file), _) => files::transcripts(file, vocabulary)?,
        (None, url) => ask(args, url.as_deref().unwrap_or_default(), &judge, vocabulary, &mut progress)?,
    };
    let (of, most) = possible(taken, &judge);
    most.map_or(Ok(()), |need| plan(need, args.memory_limit))?;
    say_notes(folder.notes.iter().cloned());
    let all = of.named.len();
    let judgement = judge.all(&of.named, args.dtype, |number| progress.reached(number, all, "transcripts judged"))?;
    drop(progress);
    let embedded = || "the small model in the program".to_owned();
    let model = args.model.as_ref().map_or_else(embedded, |folder| folder.display().to_string());
    let report = TranscriptsReport::new(&of, judgement, model);
    let output = match args.json {
        true => Text::json(&serde_json::to_string(&report).unwrap_or_default()),
        false => for_people(&report.text(styled())),
    };
    Ok(Done { output, conforms: report.verdict == Verdict::Pass })
}

/// What of this the model can be asked, and about how much memory judging it takes.
fn possible(taken: Transcripts, judge: &Judge<'_>) -> (Transcripts, Option<Need>) {
    let Transcripts { named, unjudged } = taken;
    let (mut of, mut most): (_, Option<Need>) = (Transcripts { named: Vec::new(), unjudged }, None);
    for named in named {
        match judge.need(&named.transcript) {
            Ok(need) => {
                most = most.into_iter().chain([need]).max_by_key(|need| need.size);
                of.named.push(named);
            }
            Err(error) => of.add_unjudged(&named.name, How::NotJudged, error),
        }
    }
    (of, most)
}

/// What the server says, and what it does not answer.
fn ask(
    args: &CheckTextArgs,
    url: &str,
    judge: &Judge<'_>,
    vocabulary: usize,
    progress: &mut Progress,
) -> Result<Transcripts> {
    let key = args.api_key_env.as_ref().map(|name| {
        std::env::var(name).map_err(|error| {
            Error::request("--api-key-env", "a variable of the environment", format!("{name}: {error}"))
        })
    });
    let requests = requests(args.requests.as_deref())?;
    let patience = Duration::from_secs(args.timeout);
    let endpoint = Endpoint::new(url, args.served_model.clone(), key.transpose()?, patience)?;
    let (mut all, mut lines) = (Transcripts::default(), String::new());
    for (number, request) in requests.iter().enumerate() {
        progress.reached(number, requests.len(), "requests answered");
        let name = format!("request {}", number + 1);
        if let Err(error) = judge.can_judge(request) {
            all.add_unjudged(&name, How::NotAsked, error);
            continue;
        }
        let (taken, line) = endpoint.ask(request, vocabulary)?;
        lines += &format!("{line}\n");
        all.add(&name, taken);
    }
    args.save.as_deref().map_or(Ok(()), |path| output::write_file(path, Text::json(&lines).as_str().as_bytes()))?;
    Ok(all)
}
