//! What can be asked for.

mod chat;
mod check;
mod check_text;
mod feed;
mod generate;
mod kv_cache;
mod mutants;
mod operator;
mod plan;
mod progress;
mod stdout;
mod talk;
mod trace;
mod verify;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use dsv2::backend::{OnDevice, Precision, Reference, Streaming};
use dsv2::case::Layers;
use dsv2::golden::GoldenCases;
use dsv2::materialize::{Feed, materialize};
use dsv2::memory::{Need, Size, given_back};
use dsv2::{Error, Result, golden};
use dsv2_foreign::{Foreign, Place, Text};
use dsv2_reference::Dialect;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;

pub use stdout::{has_left, say_last};

/// What came of a command line.
pub struct Ended {
    /// For stdout; or, for stderr, the line that says why the request was refused.
    pub output: Result<Text, Text>,
    /// 0 all right; 1 what was examined does not conform; 2 refused.
    pub status: u8,
}

/// Does what a command line asks for, the first word of which is the program's name.
pub fn run<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> Ended {
    let refused = |message: &str| Ended { output: Err(Text::message(message)), status: 2 };
    match parsed(args) {
        Ok(cli) => match cli.run() {
            Ok(Done { output, conforms }) => Ended { output: Ok(output), status: u8::from(!conforms) },
            Err(error) => refused(&error.to_string()),
        },
        Err(asked) if !asked.use_stderr() || asked.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Ended { output: Ok(Text::lines(&asked.to_string())), status: 0 }
        }
        Err(error) => {
            // clap explains at length, after a blank line
            let text = error.to_string();
            refused(text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: "))
        }
    }
}

/// What a command line says.
fn parsed<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> Result<Cli, clap::Error> {
    let matches = numbers_may_be_negative(Cli::command()).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

/// So that `--seed -1` is refused for its value, and not for an option `-1` that nobody meant.
fn numbers_may_be_negative(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg })
        .mut_subcommands(numbers_may_be_negative)
}

/// Is this implementation DeepSeek-V2, and if not, which stage is wrong and by how much?
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the golden cases and compare every stage with what Transformers computed (the default command)
    Verify(verify::VerifyArgs),
    /// Run a checkpoint and write every stage to a safetensors file
    Trace(trace::TraceArgs),
    /// Compare a dump of stages with the model
    Check(check::CheckArgs),
    /// Compare what an engine answered, or what a server answers now, with the model
    CheckText(check_text::CheckTextArgs),
    /// Inputs for a kernel of one operator, and what it returned, judged
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    /// Go on with a text, or with many
    Generate(generate::GenerateArgs),
    /// Talk with a model
    Chat(chat::ChatArgs),
    /// Plant known bugs in the reference; count how many the judge finds, and which correct variants it flags
    Mutants(mutants::MutantsArgs),
    /// Write a golden case as a Hugging Face folder, and its inputs and expected stages beside it
    Materialize(MaterializeArgs),
    /// What a token costs in the cache, and how far a memory goes: MHA, GQA, MQA and MLA, in bf16, fp8 and 6 bits
    KvCache(kv_cache::KvCacheArgs),
    /// What of a model lies on each of several devices, and how long and how many sequences then fit
    Plan(plan::PlanArgs),
    /// Moved: `cargo run --release -p dsv2-bench-report -- report FILE...`
    #[command(hide = true, disable_help_flag = true)]
    BenchReport(MovedArgs),
    /// Moved: `cargo run --release -p dsv2-bench-report -- compare OLD NEW`
    #[command(hide = true, disable_help_flag = true)]
    BenchCompare(MovedArgs),
}

#[derive(Args)]
struct MaterializeArgs {
    /// The name of the case
    case: String,
    /// The folder to write: DIR/model and DIR/case; it must not exist, or be empty
    dir: PathBuf,
    /// Token ids alone, for engines that take nothing else: no masks, positions or labels
    #[arg(long)]
    ids_only: bool,
    #[command(flatten)]
    golden: GoldenArgs,
}

/// What was said to a command that is another program's now.
#[derive(Args)]
struct MovedArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

#[derive(Args, Default)]
struct GoldenArgs {
    /// Take the cases of this folder, not those in the program
    #[arg(long, value_name = "DIR")]
    golden: Option<PathBuf>,
}

impl GoldenArgs {
    fn all(&self) -> Result<GoldenCases> {
        self.golden.as_ref().map_or_else(|| Ok(GoldenCases::embedded()), |dir| GoldenCases::at(dir))
    }

    /// All golden cases, and the names of those that `--case` asks for; all, if it was not given.
    fn cases(&self, glob: Option<&str>) -> Result<(GoldenCases, Vec<String>)> {
        let golden = self.all()?;
        let pattern = golden::pattern("--case", glob.unwrap_or("*"))?;
        let cases: Vec<String> = golden.names().iter().filter(|name| pattern.matches(name)).cloned().collect();
        if cases.is_empty() {
            return Err(Error::request("--case", "a pattern that matches a golden case", format!("\"{pattern}\"")));
        }
        Ok((golden, cases))
    }
}

/// Says on stderr what deserves a word though it is no fault: how a checkpoint was taken, keys without effect.
fn say_notes(notes: impl IntoIterator<Item = String>) {
    for note in notes {
        // Who does not listen misses no result.
        let _ = writeln!(std::io::stderr(), "{}", Text::message(&format!("note: {note}")).as_str());
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    /// The model written to be read, on the CPU
    Reference,
    /// The CUDA kernels, run by the emulator
    Emulated,
    /// The CUDA kernels, on an NVIDIA GPU
    Cuda,
}

impl BackendName {
    /// Those that can run on this machine.
    fn present() -> impl Iterator<Item = Self> {
        let gpu = OnDevice::gpu().is_ok().then_some(BackendName::Cuda);
        [BackendName::Reference, BackendName::Emulated].into_iter().chain(gpu)
    }

    fn backend(self) -> &'static dyn Streaming {
        match self {
            BackendName::Reference => &Reference,
            BackendName::Emulated => &OnDevice::Emulator { races: false },
            BackendName::Cuda => &OnDevice::Cuda,
        }
    }
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Attention {
    /// Keys and values of every head
    #[default]
    Expanded,
    /// On the latents
    Absorbed,
}

impl From<Attention> for AttentionForm {
    fn from(attention: Attention) -> Self {
        match attention {
            Attention::Expanded => AttentionForm::Expanded,
            Attention::Absorbed => AttentionForm::Absorbed,
        }
    }
}

/// What a command leaves to say.
struct Done {
    /// For stdout.
    pub output: Text,
    /// Whether what was examined is as it should be.
    pub conforms: bool,
}

impl Cli {
    fn run(self) -> Result<Done> {
        match self.command.unwrap_or_else(|| Command::Verify(verify::VerifyArgs::default())) {
            Command::Verify(args) => verify::run(&args),
            Command::Trace(args) => trace::run(&args),
            Command::Check(args) => check::run(&args),
            Command::CheckText(args) => check_text::run(&args),
            Command::Operator(command) => operator::run(&command),
            Command::Generate(args) => generate::run(&args),
            Command::Chat(args) => chat::run(&args),
            Command::Mutants(args) => mutants::run(&args),
            Command::Materialize(args) => {
                let golden = args.golden.all()?.load(&args.case)?;
                let feed = if args.ids_only { Feed::IdsOnly } else { Feed::Whole };
                materialize(&golden, &args.dir, feed)?;
                let said = format!("{}: {}", Place(&args.dir), Foreign(&golden.file.description));
                Ok(Done { output: Text::lines(&said), conforms: true })
            }
            Command::KvCache(args) => kv_cache::run(&args),
            Command::Plan(args) => plan::run(&args),
            Command::BenchReport(_) => Err(Error::Moved {
                command: "bench-report",
                now: "cargo run --release -p dsv2-bench-report -- report FILE...",
            }),
            Command::BenchCompare(_) => Err(Error::Moved {
                command: "bench-compare",
                now: "cargo run --release -p dsv2-bench-report -- compare OLD NEW",
            }),
        }
    }
}

fn dialect(text: &str) -> Result<Dialect> {
    golden::dialect(text)
}

fn cache_format(text: &str) -> Result<CacheFormat> {
    Ok(text.parse()?)
}

/// Makes sure that there is the memory for what comes, and says on stderr how much it is if it is much.
fn plan(need: Need, limit: Option<Size>) -> Result<()> {
    if limit.is_some() {
        given_back::at_once();
    }
    if let Some(says) = need.checked(limit)? {
        let _ = writeln!(std::io::stderr(), "{says}");
    }
    Ok(())
}

/// `10`, `10..12` or `10..=11`
fn layers(text: &str) -> Result<Layers> {
    text.parse()
}

fn precision(text: &str) -> Result<Precision> {
    text.parse()
}

/// Whether stdout is a terminal that wants colour.
fn styled() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// What is said to a person.
fn for_people(text: &str) -> Text {
    if styled() { Text::coloured(text) } else { Text::lines(text) }
}

/// `7,1,1`
fn chunks(text: &str) -> Result<Vec<usize>> {
    let chunk = |part: &str| part.trim().parse().ok().filter(|&length| length > 0);
    let chunks: Option<Vec<usize>> = text.split(',').map(chunk).collect();
    chunks.ok_or_else(|| Error::request("chunks", "lengths from 1 up, such as 7,1,1", format!("{text:?}")))
}
