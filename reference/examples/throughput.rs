//! Speed and memory of the reference on a checkpoint: prefill in chunks (expanded), decoding with the latent cache (absorbed).
//!
//! ```text
//! cargo run --release -p dsv2-reference --example throughput -- DIR [--threads N] [--json] [SESSION]...
//! ```
//! A session starts with an empty cache. `1:512+32,4096+8` takes 1 sequence to 512 tokens (prefill), then feeds it single
//! tokens and times 32 of them (decode), goes on to 4096 tokens, and times 8 more. `8:512+16` does so with 8 sequences.
//! With --json it is one of the programs that peers/measure.py times; peers/README.md says what the lines mean.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::weights::generator::splitmix64;
use dsv2_reference::{
    AttentionForm, CausalLmInput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, LatentCache, LogitsToKeep,
    ModelInput, NoTap, Run,
};
use ndarray::{Array2, ArrayView1, Axis};
use serde_json::{Value, json};

/// The longest chunk of a prompt: the scores of a chunk are \[B,H,CHUNK,T\], and stay small.
const CHUNK: usize = 512;

/// Tokens of the prompt that is fed before anything is timed: enough to touch every page of the mapped weights.
const WARM_UP: usize = 256;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Box<dyn Error>> {
    let options = Options::read(std::env::args().skip(1))?;
    rayon::ThreadPoolBuilder::new().num_threads(options.threads).build_global()?;
    let report = Report { json: options.json };
    report.fact("version", env!("CARGO_PKG_VERSION").into());
    report.fact("settings", "f32 on the checkpoint's bf16 weights as stored; prompts in chunks of 512".into());

    let start = Instant::now();
    let mut model = Model::load(&options.dir)?;
    report.fact("load_seconds", start.elapsed().as_secs_f64().into());
    report.fact("cache_bytes_per_token", model.cache_bytes_per_token().into());

    model.begin(1);
    model.feed(0, WARM_UP)?;
    model.feed(WARM_UP, WARM_UP + 1)?;
    for session in &options.sessions {
        session.run(&mut model, &report)?;
    }
    if let Some(kib) = peak_memory_kib() {
        report.fact("peak_bytes", (kib * 1024).into());
    }
    Ok(())
}

/// The command line.
struct Options {
    dir: PathBuf,
    threads: usize,
    json: bool,
    sessions: Vec<Session>,
}

impl Options {
    fn read(arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut plain, mut threads, mut json) = (Vec::new(), 0, false);
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--json" => json = true,
                "--threads" => {
                    threads = arguments.next().ok_or("--threads: expected a number, found nothing")?.parse()?
                }
                _ => plain.push(argument),
            }
        }
        let mut plain = plain.into_iter();
        let dir = plain.next().ok_or("usage: throughput DIR [--threads N] [--json] [BATCH:CONTEXT+STEPS,...]...")?;
        let mut sessions: Vec<Session> = plain.map(|session| session.parse()).collect::<Result<_, _>>()?;
        if sessions.is_empty() {
            sessions.push("1:512+32".parse()?);
        }
        Ok(Options { dir: dir.into(), threads, json, sessions })
    }
}

/// Sequences that grow from nothing, and where to stop and time single tokens.
struct Session {
    batch: usize,
    stops: Vec<Stop>,
}

/// At `context` tokens, `steps` single tokens are timed.
struct Stop {
    context: usize,
    steps: usize,
}

impl FromStr for Session {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (batch, stops) = text.split_once(':')?;
            let stops = stops.split(',').map(|stop| {
                let (context, steps) = stop.split_once('+')?;
                Some(Stop { context: context.parse().ok()?, steps: steps.parse().ok()? })
            });
            let session = Session { batch: batch.parse().ok()?, stops: stops.collect::<Option<_>>()? };
            let rises = session.stops.windows(2).all(|pair| pair[0].context + pair[0].steps + 1 < pair[1].context);
            (session.batch > 0 && session.stops[0].context > 0 && rises).then_some(session)
        };
        read().ok_or_else(|| format!("session: expected BATCH:CONTEXT+STEPS,... with rising contexts, found {text:?}"))
    }
}

impl Session {
    fn run(&self, model: &mut Model, report: &Report) -> Result<(), Box<dyn Error>> {
        model.begin(self.batch);
        let (mut fed, mut seconds, mut tokens) = (0, 0.0, 0);
        for &Stop { context, steps } in &self.stops {
            let job = format!("context={context}/batch={}", self.batch);
            seconds += model.feed(fed, context)?;
            tokens += self.batch * (context - fed);
            report.samples(&format!("prefill/{job}"), &[seconds], tokens);
            report.fact(&format!("next/{job}"), model.next.clone().into());
            model.feed(context, context + 1)?; // the first one makes room in the cache
            fed = context + 1 + steps;
            let times: Vec<f64> =
                (context + 1..fed).map(|place| model.feed(place, place + 1)).collect::<Result<_, _>>()?;
            report.samples(&format!("decode/{job}"), &times, self.batch);
        }
        Ok(())
    }
}

/// The model, its cache, and what it would say next.
struct Model {
    config: DeepseekV2Config,
    model: DeepseekV2ForCausalLM<f32>,
    cache: LatentCache<f32>,
    next: Vec<usize>,
}

impl Model {
    fn load(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let config = DeepseekV2Config::from_file(&dir.join("config.json"))?;
        let model = DeepseekV2ForCausalLM::load(&config, Dialect::Hf, &Checkpoint::open(dir)?)?;
        Ok(Model { cache: LatentCache::new(&config, 1), config, model, next: Vec::new() })
    }

    fn begin(&mut self, batch: usize) {
        self.cache = LatentCache::new(&self.config, batch);
    }

    /// Feeds the tokens of places `from..to` of every sequence, and returns the seconds that it took.
    fn feed(&mut self, from: usize, to: usize) -> Result<f64, Box<dyn Error>> {
        let attention = if to - from == 1 { AttentionForm::Absorbed } else { AttentionForm::Expanded };
        let run = Run { attention, ..Run::default() };
        let start = Instant::now();
        for chunk in (from..to).step_by(CHUNK) {
            let width = CHUNK.min(to - chunk);
            let ids = Array2::from_shape_fn((self.cache.batch(), width), |(b, s)| self.token(b, chunk + s));
            let input =
                CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::Last(1), labels: None };
            let output = self.model.forward(&input, Some(&mut self.cache), &run, &mut NoTap)?;
            self.next = output.logits.index_axis(Axis(1), 0).rows().into_iter().map(largest).collect();
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Every sequence has tokens of its own: with equal ones, a batch would share its experts.
    fn token(&self, sequence: usize, place: usize) -> i64 {
        (splitmix64((sequence as u64) << 32 | place as u64) % self.config.vocab_size as u64) as i64
    }

    fn cache_bytes_per_token(&self) -> usize {
        self.config.kv_cache_elements_per_token() * size_of::<f32>()
    }
}

fn largest(logits: ArrayView1<f32>) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0)
}

/// Lines for people, or lines of JSON.
struct Report {
    json: bool,
}

impl Report {
    fn fact(&self, name: &str, value: Value) {
        if self.json {
            println!("{}", json!({"fact": name, "value": value}));
        } else {
            println!("{name:32} {value}");
        }
    }

    /// `times`: seconds for `tokens` tokens, each.
    fn samples(&self, job: &str, times: &[f64], tokens: usize) {
        if self.json {
            for seconds in times {
                println!("{}", json!({"job": job, "seconds": seconds, "tokens": tokens}));
            }
        } else if !times.is_empty() {
            let mut sorted = times.to_vec();
            sorted.sort_by(f64::total_cmp);
            let [median, best] = [sorted[sorted.len() / 2], sorted[0]].map(|seconds| tokens as f64 / seconds);
            println!("{job:32} {median:.2} tokens/s, best {best:.2}");
        }
    }
}

/// The most memory that this process has held, mapped pages included (Linux only).
fn peak_memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
}
