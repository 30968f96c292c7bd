//! `dsv2 generate`.

use std::path::PathBuf;

use clap::Args;
use dsv2::Result;
use dsv2::generate::decoder::Decoder;
use dsv2::generate::need::Sequences;
use dsv2::generate::{Completion, Fed, ModelFolder, Prompt, Rules, generate};
use dsv2_foreign::Text;
use dsv2_text::Lengths;
use serde_json::{Value, json};

use super::Done;
use super::progress::{Progress, during};
use super::stdout::{has_left, is_read_live, say};
use super::talk::{ModelArgs, RuleArgs, Watch, spoken};

/// The arguments of `dsv2 generate`.
#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A text that the model goes on with
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// A file of prompts, one in each line; in a file named .jsonl a string, {"prompt": TEXT} or {"messages": [..]}, with
    /// an "id" if you like, a text or a whole number, which is said again
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    rules: RuleArgs,
    /// How many prompts are computed at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Print a JSON object for each prompt, also on a terminal
    #[arg(long)]
    json: bool,
}

pub fn run(args: &GenerateArgs) -> Result<Done> {
    let folder = args.model.open()?;
    let fed = match (&args.prompts, &args.prompt) {
        (Some(file), _) => during("prompts are made into tokens", || Prompt::fed_file(file, &folder))?,
        (None, text) => vec![Prompt::Text(text.clone().unwrap_or_default()).fed(&folder)?],
    };
    let live = is_read_live() && !args.json;
    let rules = Rules { logprobs: !live, ..args.rules.rules(&folder)? };
    // whoever reads along reads one text at a time
    let batch = if live { 1 } else { usize::from(args.batch) };
    let most = largest(&fed, batch, &rules, &folder)?;
    let mut decoder = args.model.decoder(&folder, most)?;
    let spoken = speak(&folder, &mut *decoder, &fed, &rules, most, live);
    match spoken {
        Err(error) if !has_left(&error) => Err(error),
        _ => Ok(Done { output: Text::lines(""), conforms: true }),
    }
}

/// The batch that takes the most memory.
fn largest(fed: &[Fed], batch: usize, rules: &Rules, folder: &ModelFolder) -> Result<Sequences> {
    let lengths = || fed.iter().map(|fed| fed.tokens.len());
    let prompt = lengths().max().unwrap_or(0);
    let context = folder.config.max_position_embeddings;
    let new = Lengths::new(&rules.config, prompt, Some(context))?.most.min(context).saturating_sub(prompt);
    let padded = lengths().any(|length| length < prompt);
    Ok(Sequences { batch: batch.min(fed.len()), cached: 0, prompt, new, padded })
}

fn speak(
    folder: &ModelFolder,
    decoder: &mut dyn Decoder,
    fed: &[Fed],
    rules: &Rules,
    most: Sequences,
    live: bool,
) -> Result<()> {
    let prompts = fed.len();
    let mut progress = Progress::of_something_slow();
    for (at, fed) in fed.chunks(most.batch).enumerate() {
        let rules = Rules { first_sequence: at * most.batch, ..rules.clone() };
        let which = which(rules.first_sequence, fed.len(), prompts);
        let mut watch = Watch::new(folder, fed.len(), most.new, live, (which, &mut progress));
        if live {
            say(&spoken(&fed[0].text))?;
        }
        let tokens: Vec<Vec<i64>> = fed.iter().map(|fed| fed.tokens.clone()).collect();
        let completions = generate(folder, decoder, &tokens, &rules, &mut watch)?;
        if live {
            say(&Text::lines("\n"))?;
            continue;
        }
        watch.quiet();
        for (row, (fed, completion)) in fed.iter().zip(&completions).enumerate() {
            let record = record(fed, completion, &watch, row);
            say(&Text::json(&format!("{record}\n")))?;
        }
    }
    Ok(())
}

/// Which prompts a batch has; nothing, if there are no others.
fn which(before: usize, batch: usize, prompts: usize) -> String {
    match batch {
        _ if batch == prompts => String::new(),
        1 => format!("prompt {} of {prompts}", before + 1),
        _ => format!("prompts {} to {} of {prompts}", before + 1, before + batch),
    }
}

/// What is said of a prompt in one line. Times are in seconds: until the prompts of the batch were read, and until this text was
/// complete; the rate is that of the tokens after the first.
fn record(fed: &Fed, completion: &Completion, watch: &Watch, row: usize) -> Value {
    let tokens = &completion.tokens;
    let (read, whole) = (watch.prompt_time().as_secs_f64(), watch.time(row).as_secs_f64());
    let rate = (tokens.len() > 1).then(|| (tokens.len() - 1) as f64 / (whole - read));
    let id = fed.id.iter().map(|id| ("id".to_owned(), id.clone()));
    let said = json!({
        "prompt": fed.text,
        "text": completion.text,
        "finish_reason": completion.finish.name(),
        "stopped_by": completion.finish.stopped_by(),
        "prompt_tokens": fed.tokens.len(),
        "tokens": tokens.iter().map(|chosen| chosen.id).collect::<Vec<_>>(),
        "logprobs": tokens.iter().map(|chosen| chosen.logprob).collect::<Vec<_>>(),
        "prompt_seconds": rounded(read, 1e6),
        "seconds": rounded(whole, 1e6),
        "tokens_per_second": rate.map(|rate| rounded(rate, 10.0)),
    });
    id.chain(said.as_object().cloned().unwrap_or_default()).collect()
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
