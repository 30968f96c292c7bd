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
const ROUNDS: usize = 41;

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

    let mut pairs: Vec<(Duration, Duration)> = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let bare = timed(|| Ok(bare.generate(&ids, None, tokens).map(|_| ())?))?;
        let text = timed(|| {
            Ok(generate(&folder, &mut decoder, std::slice::from_ref(&prompt), &rules, &mut Silent).map(|_| ())?)
        })?;
        pairs.push((bare, text));
    }
    let per_second = |times: Vec<f64>| tokens as f64 / quartiles(times)[1];
    let bare = per_second(pairs.iter().map(|(bare, _)| bare.as_secs_f64()).collect());
    let text = per_second(pairs.iter().map(|(_, text)| text.as_secs_f64()).collect());
    // The two of a round ran one after the other, so what slows the machine down for longer slows both.
    let slower = quartiles(pairs.iter().map(|(bare, text)| text.as_secs_f64() / bare.as_secs_f64()).collect());
    let [low, middle, high] = slower.map(|ratio| 100.0 * (ratio - 1.0));
    println!(
        "bare loop {bare:.1} tokens/s, dsv2 generate {text:.1} tokens/s: a round takes {middle:+.1} % longer ({low:+.1} to {high:+.1})"
    );
    Ok(())
}

/// Of `values`, the lower quartile, the median and the upper one.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn timed(run: impl FnOnce() -> Result<(), Box<dyn std::error::Error>>) -> Result<Duration, Box<dyn std::error::Error>> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}
