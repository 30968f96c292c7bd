//! `speed MODEL --dtype f32|bf16 --threads N SESSION...`: the time of prompts and of single tokens.
//!
//! candle takes the number of its threads from RAYON_NUM_THREADS only, so that has to say the same as `--threads`. Build it
//! with RUSTFLAGS="-C target-cpu=native": candle chooses its instructions when it is compiled.

use std::path::Path;
use std::time::Instant;
use std::{env, fs};

use candle_core::{D, Device, Error, Result, Tensor};
use candle_transformers::models::deepseek2::DeepSeekV2;
use serde_json::{Value, json};

use crate::{USAGE, load};

/// The longest piece of a prompt: candle writes out the scores of a piece, \[B,H,PIECE,T\].
const PIECE: usize = 512;

/// Tokens of the prompt that is fed before anything is timed.
const WARM_UP: usize = 256;

/// Prints a line of JSON for everything that it measures.
pub fn speed(arguments: &[String]) -> Result<()> {
    let (mut plain, mut dtype, mut threads) = (Vec::new(), "f32", "2");
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        match argument {
            "--dtype" => dtype = arguments.next().unwrap_or_default(),
            "--threads" => threads = arguments.next().unwrap_or_default(),
            _ => plain.push(argument),
        }
    }
    let [folder, sessions @ ..] = plain.as_slice() else { return Err(Error::Msg(USAGE.into())) };
    let set = env::var("RAYON_NUM_THREADS").unwrap_or_default();
    if set != threads {
        return Err(Error::Msg(format!("RAYON_NUM_THREADS: expected {threads}, as --threads, found {set:?}")));
    }
    let sessions: Vec<Session> = sessions.iter().map(|text| Session::parse(text)).collect::<Result<_>>()?;

    fact("version", "candle-transformers 0.11.1".into());
    fact("settings", "no MKL, prompts in pieces of 512".into());
    let start = Instant::now();
    let mut peer = Candle::load(Path::new(folder), dtype)?;
    fact("load_seconds", start.elapsed().as_secs_f64().into());
    let source = "its source: keys and values of every head";
    println!("{}", json!({"fact": "cache_bytes_per_token", "value": peer.cache_bytes_per_token, "source": source}));

    peer.begin(1);
    peer.feed(0, WARM_UP)?;
    peer.feed(WARM_UP, WARM_UP + 1)?;
    sessions.iter().try_for_each(|session| session.run(&mut peer))?;
    if let Some(kib) = peak_memory_kib() {
        fact("peak_bytes", (kib * 1024).into());
    }
    Ok(())
}

/// Sequences that grow from nothing; at each (context, steps), `steps` single tokens are timed.
struct Session {
    batch: usize,
    stops: Vec<(usize, usize)>,
}

impl Session {
    fn parse(text: &str) -> Result<Self> {
        let read = || {
            let (batch, stops) = text.split_once(':')?;
            let stop = |stop: &str| {
                let (context, steps) = stop.split_once('+')?;
                Some((context.parse().ok()?, steps.parse().ok()?))
            };
            Some(Session { batch: batch.parse().ok()?, stops: stops.split(',').map(stop).collect::<Option<_>>()? })
        };
        read().ok_or_else(|| Error::Msg(format!("session: expected BATCH:CONTEXT+STEPS,..., found {text:?}")))
    }

    fn run(&self, peer: &mut Candle) -> Result<()> {
        peer.begin(self.batch);
        let (mut fed, mut seconds, mut tokens) = (0, 0.0, 0);
        for &(context, steps) in &self.stops {
            let job = format!("context={context}/batch={}", self.batch);
            seconds += peer.feed(fed, context)?;
            tokens += self.batch * (context - fed);
            println!("{}", json!({"job": format!("prefill/{job}"), "seconds": seconds, "tokens": tokens}));
            fact(&format!("next/{job}"), peer.next_tokens()?.into());
            peer.feed(context, context + 1)?; // not timed: the first single token may set something up
            fed = context + 1 + steps;
            for place in context + 1..fed {
                let seconds = peer.feed(place, place + 1)?;
                println!("{}", json!({"job": format!("decode/{job}"), "seconds": seconds, "tokens": self.batch}));
            }
        }
        Ok(())
    }
}

/// The model with its cache inside.
struct Candle {
    model: DeepSeekV2,
    vocab_size: u64,
    cache_bytes_per_token: u64,
    batch: usize,
    logits: Option<Tensor>,
}

impl Candle {
    fn load(folder: &Path, dtype: &str) -> Result<Self> {
        let model = load(folder, dtype)?;
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?).map_err(Error::wrap)?;
        let number = |key: &str| {
            config[key].as_u64().ok_or_else(|| Error::Msg(format!("config.json: {key}: expected a number")))
        };
        let head = number("qk_nope_head_dim")? + number("qk_rope_head_dim")? + number("v_head_dim")?;
        let elements = number("num_hidden_layers")? * number("num_attention_heads")? * head;
        let width = if dtype == "f32" { 4 } else { 2 };
        let (vocab_size, cache_bytes_per_token) = (number("vocab_size")?, elements * width);
        Ok(Candle { model, vocab_size, cache_bytes_per_token, batch: 1, logits: None })
    }

    fn begin(&mut self, batch: usize) {
        self.model.clear_kv_cache();
        self.batch = batch;
    }

    /// Feeds the tokens of places `from..to` of every sequence, and returns the seconds that it took.
    fn feed(&mut self, from: usize, to: usize) -> Result<f64> {
        let start = Instant::now();
        for piece in (from..to).step_by(PIECE) {
            let width = PIECE.min(to - piece);
            let places = (0..self.batch as u64).flat_map(|b| (0..width).map(move |s| b << 32 | (piece + s) as u64));
            let ids: Vec<u32> = places.map(|place| (splitmix64(place) % self.vocab_size) as u32).collect();
            let ids = Tensor::from_vec(ids, (self.batch, width), &Device::Cpu)?;
            self.logits = Some(self.model.forward(&ids, piece)?);
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn next_tokens(&self) -> Result<Vec<u32>> {
        self.logits.as_ref().map_or(Ok(Vec::new()), |logits| logits.argmax(D::Minus1)?.to_vec1())
    }
}

/// The tokens that every peer is fed: SplitMix64 of sequence · 2^32 + place, modulo the vocabulary.
fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fact(name: &str, value: Value) {
    println!("{}", json!({"fact": name, "value": value}));
}

/// The most memory that this process has held (Linux only).
fn peak_memory_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
}
