//! Whether text costs time: tokens per second of the bare loop (the reference's own `generate`) and of `dsv2 generate`'s, which
//! brings the logits to processors, a sampler and stop rules. `cargo run --release --example decode_speed [DIR] [TOKENS]`

use std::path::Path;
use std::time::{Duration, Instant};

use dsv2::generate::decoder::OnHost;
use dsv2::generate::{ModelFolder, Rules, Silent, generate};
use dsv2::precision::Precision;
use dsv2_reference::{DeepseekV2ForCausalLM, Dialect};
use ndarray::Array2;

/// How often each loop runs, in turn.
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = match arguments.next() {
        Some(dir) => ModelFolder::open(Path::new(&dir), Dialect::Hf)?,
        None => ModelFolder::embedded(Dialect::Hf)?,
    };
    let tokens: usize = arguments.next().map_or(Ok(300), |tokens| tokens.parse())?;
    let prompt = folder.tokenizer.encode("DeepSeek-V2 is", true)?;
    // one that ends nothing, so that both loops make as many tokens
    let mut endless = folder.config.clone();
    endless.eos_token_id = None;
    let bare = DeepseekV2ForCausalLM::<f32>::load(&endless, Dialect::Hf, &*folder.weights)?;
    let ids = Array2::from_shape_vec((1, prompt.len()), prompt.clone())?;
    let mut decoder = OnHost::<f32>::load(&folder, Precision::F32)?;
    let rules = Rules::greedy(tokens);

    let (mut bare_times, mut text_times) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        bare_times.push(timed(|| Ok(bare.generate(&ids, None, tokens).map(|_| ())?))?);
        text_times.push(timed(|| {
            Ok(generate(&folder, &mut decoder, std::slice::from_ref(&prompt), &rules, &mut Silent).map(|_| ())?)
        })?);
    }
    // the best time is the one that other programs disturbed least
    let per_second = |times: Vec<Duration>| tokens as f64 / times.into_iter().min().unwrap_or_default().as_secs_f64();
    let (bare, text) = (per_second(bare_times), per_second(text_times));
    println!(
        "bare loop {bare:.1} tokens/s, dsv2 generate {text:.1} tokens/s, which is {:+.1} %",
        100.0 * (text / bare - 1.0)
    );
    Ok(())
}

fn timed(run: impl FnOnce() -> Result<(), Box<dyn std::error::Error>>) -> Result<Duration, Box<dyn std::error::Error>> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}
