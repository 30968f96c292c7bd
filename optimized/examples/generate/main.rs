//! Loads a model onto a GPU or the emulator, and generates from random prompts.
//!
//! ```text
//! generate --preset v2-lite --dtype bf16 --batch 4 --prompt-tokens 256 --new-tokens 64 --profile      on a GPU
//! generate --device emulated --preset v2-lite --layers 2 --shrink 32 --new-tokens 3 --profile
//! generate --model FOLDER                                                        a checkpoint
//! generate --products library                                                    plain products by cuBLASLt
//! ```
//!
//! Without a checkpoint the weights are generated: by a GPU itself, which makes all of them at once; for the emulator by the
//! host, which is quicker than emulating that, one after another. They are the same to the bit.
//!
//! Exit status 2: what was asked for cannot be done, which one line on stderr says; what no memory holds, before anything is made.

mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use dsv2_optimized::model::generate::{GenerateOptions, Sampling};
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::model::{Products, Settings};
use dsv2_optimized::{Cuda, Device, Element, Emulated, Error, Library, Result, Variant};
use dsv2_reference::config::Head;
use dsv2_reference::weights::check_complete;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::weights::generator::{GeneratedWeights, Rule, splitmix64};
use dsv2_reference::{DeepseekV2Config, Dialect};
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::Array2;
use report::{Experts, print_times, print_work};

/// Generates from random prompts, and says what it took.
#[derive(Parser)]
struct Arguments {
    /// A published model, with generated weights.
    #[arg(long, default_value = "v2-lite")]
    preset: String,
    /// A config.json, with generated weights.
    #[arg(long, conflicts_with = "preset")]
    config: Option<PathBuf>,
    /// A checkpoint folder.
    #[arg(long, conflicts_with_all = ["preset", "config", "shrink"])]
    model: Option<PathBuf>,
    /// Only so many of the first layers.
    #[arg(long)]
    layers: Option<usize>,
    /// Divides the vocabulary and the widths of the residual stream and the feed-forward networks.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    shrink: u16,
    #[arg(long, value_enum, default_value_t = On::Cuda)]
    device: On,
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Who makes plain matrix products; the library needs a GPU.
    #[arg(long, value_enum, default_value_t = By::Ours)]
    products: By,
    /// How many prompts.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// How long each is.
    #[arg(long, default_value_t = 16)]
    prompt_tokens: usize,
    /// How many tokens to add to each.
    #[arg(long, default_value_t = 8)]
    new_tokens: usize,
    /// Draws from the nucleus of this probability instead of taking the likeliest token.
    #[arg(long)]
    top_p: Option<f32>,
    /// Of weights, prompts and draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Counts the different experts that each step uses. The routing is copied to the host for it, which takes time.
    #[arg(long)]
    experts: bool,
    /// On a GPU the time of each kernel, on the emulator its work.
    #[arg(long)]
    profile: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum On {
    Cuda,
    Emulated,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// Our own kernel.
    Ours,
    /// cuBLASLt, as it is installed on this machine.
    Library,
}

/// Where the weights come from.
enum Weights {
    Checkpoint(Checkpoint),
    Generated(GeneratedWeights),
}

/// A device, and what else it can tell about itself.
enum Machine {
    Cuda(Arc<Cuda>),
    Emulated(Arc<Emulated>),
}

fn main() -> std::process::ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let (config, weights) = model(arguments)?;
    let machine = match (arguments.device, arguments.profile) {
        (On::Cuda, false) => Machine::Cuda(Cuda::new(Library::embedded())?),
        (On::Cuda, true) => Machine::Cuda(Cuda::timing(Library::embedded())?),
        (On::Emulated, false) => Machine::Emulated(Emulated::new(Library::embedded())),
        (On::Emulated, true) => Machine::Emulated(Emulated::profiling(Library::embedded())),
    };
    let device: Arc<dyn Device> = match &machine {
        Machine::Cuda(device) => device.clone(),
        Machine::Emulated(device) => device.clone(),
    };
    let element = match arguments.dtype {
        Dtype::Bf16 => Element::Bf16,
        Dtype::F32 => Element::F32,
    };
    let sampling = match arguments.top_p {
        None => Sampling::Greedy,
        Some(top_p) => Sampling::TopP { temperature: 1.0, top_p, seed: arguments.seed },
    };
    let options = GenerateOptions { sampling, ..GenerateOptions::new(arguments.new_tokens) };
    let products = match arguments.products {
        By::Ours => Products::Ours,
        By::Library => Products::Library,
    };
    let settings = Settings { products, ..Settings::new(element, Variant::Tuned) };

    let plan = options.plan(&config, Dialect::Hf, settings, arguments.batch, arguments.prompt_tokens, false)?;
    let (free, total) = device.memory()?;
    println!("{}: {} layers, {element}, {}", arguments.name(), config.num_hidden_layers, device.name());
    println!("{plan}\nfree      {free:>16} bytes of {total}");
    // The prompts on the host are always less.
    if plan.total() > free {
        let (expected, found) = (format!("{} bytes", plan.total()), format!("{free} free"));
        return Err(Error::operand("generate", "device memory", expected, found));
    }

    let style = ProgressStyle::with_template("loading {bar:40} {binary_bytes} of {binary_total_bytes}, {eta} left");
    let bar = ProgressBar::new(plan.weights as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut progress = |bytes: usize| bar.inc(bytes as u64);
    let (dialect, progress) = (Dialect::Hf, &mut progress);
    let lm = match (&weights, arguments.device) {
        (Weights::Checkpoint(files), _) => CausalLm::load(&config, dialect, files, &device, settings, progress)?,
        (Weights::Generated(rules), On::Cuda) => {
            CausalLm::load_generated(&config, dialect, rules, &device, settings, progress)?
        }
        (Weights::Generated(rules), On::Emulated) => {
            CausalLm::load(&config, dialect, rules, &device, settings, progress)?
        }
    };
    bar.finish_and_clear();

    let prompt = prompt(arguments, &config);
    if let Machine::Cuda(device) = &machine {
        // The driver compiles a kernel when it is first launched: not what is to be measured.
        lm.generate(&prompt, None, &GenerateOptions { max_new_tokens: 2, ..options })?;
        device.timings()?;
    }
    generate(arguments, &lm, &prompt, &options)?;
    if arguments.profile {
        match &machine {
            Machine::Cuda(device) => print_times(device)?,
            Machine::Emulated(device) => print_work(device),
        }
    }
    Ok(())
}

impl Arguments {
    fn name(&self) -> String {
        let folder = self.model.as_ref().or(self.config.as_ref());
        folder.map_or_else(|| self.preset.clone(), |path| path.display().to_string())
    }

    /// Refuses numbers that mean nothing, before weights are made.
    fn check(&self, layers: usize) -> Result<()> {
        let wrong = |name, expected: &str, found: String| Err(Error::operand("generate", name, expected, found));
        for (name, number) in [("--batch", self.batch), ("--prompt-tokens", self.prompt_tokens)] {
            if number == 0 {
                return wrong(name, "at least 1", number.to_string());
            }
        }
        if let Some(found) = self.layers.filter(|found| !(1..=layers).contains(found)) {
            return wrong("--layers", &format!("1 to {layers}"), found.to_string());
        }
        match self.top_p {
            Some(top_p) if !(0.0..=1.0).contains(&top_p) => {
                wrong("--top-p", "a number within 0 and 1", top_p.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// The config, cut to what was asked for, and where the weights come from.
fn model(arguments: &Arguments) -> Result<(DeepseekV2Config, Weights)> {
    let mut config = match (&arguments.model, &arguments.config) {
        (Some(folder), _) => DeepseekV2Config::from_file(&folder.join("config.json"))?,
        (None, Some(file)) => DeepseekV2Config::from_file(file)?,
        (None, None) => DeepseekV2Config::preset(&arguments.preset)?,
    };
    arguments.check(config.num_hidden_layers)?;
    let weights = match &arguments.model {
        Some(folder) => {
            let checkpoint = Checkpoint::open(folder)?;
            check_complete(&checkpoint, &config.weight_shapes(Head::CausalLm, Dialect::Hf), &["lm_head.weight"])?;
            Weights::Checkpoint(checkpoint)
        }
        None => {
            let rule = |suffix: &str, mean, std, gain| Rule { suffix: suffix.into(), mean, std, gain };
            let rules = vec![
                rule("norm.weight", 1.0, Some(0.3), None),
                rule("embed_tokens.weight", 0.0, Some(1.0), None),
                rule("bias", 0.0, Some(0.1), None),
                rule("weight", 0.0, None, Some(1.0)),
            ];
            // A text of random weights has no end.
            config.eos_token_id = None;
            Weights::Generated(GeneratedWeights { seed: arguments.seed, rules })
        }
    };
    config.num_hidden_layers = arguments.layers.unwrap_or(config.num_hidden_layers);
    let shrink = usize::from(arguments.shrink);
    for size in [
        &mut config.vocab_size,
        &mut config.hidden_size,
        &mut config.intermediate_size,
        &mut config.moe_intermediate_size,
    ] {
        *size = (*size / shrink).max(1);
    }
    Ok((config, weights))
}

/// Distinct random prompts.
fn prompt(arguments: &Arguments, config: &DeepseekV2Config) -> Array2<i64> {
    let (length, vocab) = (arguments.prompt_tokens, config.vocab_size as u64);
    let token = |at: usize| (splitmix64(arguments.seed.wrapping_add(at as u64)) % vocab) as i64;
    Array2::from_shape_fn((arguments.batch, length), |(b, s)| token(b * length + s))
}

/// Prints the texts, and what each step did.
fn generate(arguments: &Arguments, lm: &CausalLm, prompt: &Array2<i64>, options: &GenerateOptions) -> Result<()> {
    let mut generation = lm.start(prompt, None, options)?;
    let mut texts = vec![vec![]; arguments.batch];
    let mut seconds = vec![];
    loop {
        let mut experts = Experts::default();
        let start = Instant::now();
        let Some(tokens) = generation.step(arguments.experts.then_some(&mut experts))? else { break };
        // The tokens are on the host: the device is done.
        seconds.push(start.elapsed().as_secs_f64());
        texts.iter_mut().zip(&tokens).for_each(|(text, token)| text.push(*token));
        if arguments.experts {
            println!("step {:>4}: {}", seconds.len(), experts);
        }
    }
    for (b, text) in texts.iter().enumerate() {
        println!("text {b:>4}: {}", text.iter().map(i64::to_string).collect::<Vec<_>>().join(" "));
    }
    // The emulator's time says nothing about a GPU's.
    if let (On::Cuda, [prefill, steps @ ..]) = (arguments.device, &seconds[..]) {
        let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds;
        let prompts = arguments.batch * arguments.prompt_tokens;
        println!("prompt: {prompts} tokens, {:.1} tokens/s", rate(prompts, *prefill));
        if let [_, ..] = steps {
            let (tokens, total) = (arguments.batch * steps.len(), steps.iter().sum::<f64>());
            println!("after it: {tokens} tokens, {:.1} tokens/s", rate(tokens, total));
        }
    }
    Ok(())
}
