//! Speed and memory of the reference on a checkpoint: prefill in one piece (expanded), decoding with the latent cache (absorbed).
//!
//! ```text
//! cargo run --release -p dsv2-reference --example throughput -- DIR [CONTEXT] [STEPS]
//! ```
//! RAYON_NUM_THREADS sets the number of threads. benches/transformers_cpu.py measures Transformers on the same folder.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use dsv2_reference::checkpoint::Checkpoint;
use dsv2_reference::{
    AttentionForm, CausalLmInput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, LatentCache, LogitsToKeep,
    ModelInput, NoTap, Run,
};
use ndarray::Array2;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: throughput DIR [CONTEXT] [STEPS]")?);
    let context: usize = arguments.next().map_or(Ok(512), |n| n.parse())?;
    let steps: usize = arguments.next().map_or(Ok(32), |n| n.parse())?;

    let start = Instant::now();
    let config = DeepseekV2Config::from_file(&dir.join("config.json"))?;
    let model = DeepseekV2ForCausalLM::<f32>::load(&config, Dialect::Hf, &Checkpoint::open(&dir)?)?;
    println!("load     {:8.2} s", start.elapsed().as_secs_f64());

    let mut cache = LatentCache::new(&config, 1);
    let mut feed = |from: usize, to: usize, attention| -> Result<f64, Box<dyn Error>> {
        let ids = Array2::from_shape_fn((1, to - from), |(_, s)| ((from + s) * 7919 % config.vocab_size) as i64);
        let input = CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::Last(1), labels: None };
        let start = Instant::now();
        model.forward(&input, Some(&mut cache), &Run { attention, ..Run::default() }, &mut NoTap)?;
        Ok(start.elapsed().as_secs_f64())
    };
    // Long prompts go in pieces, so that the scores of a piece stay small.
    let mut seconds = 0.0;
    for from in (0..context).step_by(512) {
        seconds += feed(from, context.min(from + 512), AttentionForm::Expanded)?;
    }
    println!(
        "prefill  {:8.1} tokens/s  ({context} tokens, {} threads)",
        context as f64 / seconds,
        rayon::current_num_threads()
    );
    feed(context, context + 1, AttentionForm::Absorbed)?;
    let mut times: Vec<f64> = (1..=steps)
        .map(|step| feed(context + step, context + step + 1, AttentionForm::Absorbed))
        .collect::<Result<_, _>>()?;
    times.sort_by(f64::total_cmp);
    let mean = times.iter().sum::<f64>() / steps as f64;
    println!("decode   {:8.2} tokens/s  (best {:.2}, at context {context}, {steps} steps)", 1.0 / mean, 1.0 / times[0]);
    println!("cache    {:8} bytes/token", config.kv_cache_elements_per_token() * size_of::<f32>());
    if let Some(peak) = peak_memory_kib() {
        println!("peak     {:8.2} GB", peak as f64 * 1024.0 / 1e9);
    }
    Ok(())
}

/// The most memory that this process has held, mapped pages included (Linux only).
fn peak_memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
}
