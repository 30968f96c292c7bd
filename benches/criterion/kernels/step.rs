//! A whole decode step on the emulator: how many launches it takes, and how much of what it moves is needed.

use std::sync::Arc;

use dsv2_bench_report::{Better, Measurement};
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Variant};
use dsv2_reference::weights::generator::{GeneratedWeights, Rule};
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::Array2;

use super::counts::Count;
use super::ratio;
use crate::bench::Bench;
use crate::work::Work;

const ID: &str = "kernels/step/v2-lite-narrow/bf16";
/// Widths of the residual stream and the feed-forward networks, and the vocabulary, are divided by so much.
const SHRINK: usize = 32;
const PROMPT: usize = 70;
/// The layers of V2-Lite.
const ALL_LAYERS: u64 = 27;

/// Counts a step of two layers, and of three: the difference is a layer with experts.
pub fn run(bench: &mut Bench) {
    if !bench.wants(ID) {
        return;
    }
    match (Step::of_layers(2), Step::of_layers(3)) {
        (Ok(two), Ok(three)) => report(bench, &two, &three),
        (Err(error), _) | (_, Err(error)) => bench.not_run(ID, error),
    }
}

/// What a step does, and the bytes of the weights that one token needs, and of its cache.
struct Step {
    count: Count,
    needed: f64,
}

impl Step {
    fn of_layers(layers: usize) -> Result<Self> {
        let mut config = DeepseekV2Config::preset("v2-lite")?;
        config.num_hidden_layers = layers;
        // A text of random weights has no end.
        config.eos_token_id = None;
        for size in [
            &mut config.vocab_size,
            &mut config.hidden_size,
            &mut config.intermediate_size,
            &mut config.moe_intermediate_size,
        ] {
            *size /= SHRINK;
        }
        let emulated = Emulated::profiling(Library::embedded());
        let device: Arc<dyn Device> = emulated.clone();
        let settings = Settings::new(Element::Bf16, Variant::Tuned);
        let lm = CausalLm::load(&config, Dialect::Hf, &weights(), &device, settings, &mut |_| ())?;
        let vocab = config.vocab_size;
        let prompt = Array2::from_shape_fn((1, PROMPT), |(_, at)| (at * 37 % vocab) as i64);
        let options = GenerateOptions::new(2);
        let mut generation = lm.start(&prompt, None, &options)?;
        generation.step(None)?;
        // The prompt is not what is counted.
        drop(emulated.profiles());
        generation.step(None)?;
        let work = Work::new(&config);
        let needed = work.step_bytes(work.visits(), (PROMPT + 1) as f64, 2.0);
        Ok(Step { count: Count::of(emulated.profiles().iter().map(|(_, profile)| profile)), needed })
    }
}

fn weights() -> GeneratedWeights {
    let rule = |suffix: &str, mean, std, gain| Rule { suffix: suffix.into(), mean, std, gain };
    let rules = vec![rule("norm.weight", 1.0, Some(0.3), None), rule("weight", 0.0, None, Some(1.0))];
    GeneratedWeights { seed: 20, rules }
}

fn report(bench: &mut Bench, two: &Step, three: &Step) {
    let Step { count, needed } = two;
    let of_layer = three.count.launches - count.launches;
    count.keep(bench, ID);
    bench.keep(Measurement::exact(format!("{ID}/launches-per-layer"), "", Better::Less, of_layer as f64));

    let Count { launches, instructions, read, written, .. } = *count;
    let mut row: Vec<String> =
        [launches, of_layer, instructions, read, written].map(|number| number.to_string()).into();
    row.push(ratio((read + written) as f64, *needed));
    let columns = "launches | of them a layer with experts | instructions | bytes read | bytes written | x needed";
    let model = format!(
        "V2-Lite in bf16 with one dense layer and one of experts, the residual stream, the feed-forward networks and the \
         vocabulary {SHRINK} times narrower, attention as it is; one sequence, {PROMPT} tokens before. Bytes as above."
    );
    let all_layers = format!(
        "A layer with experts takes {of_layer} launches, so that a step of V2-Lite's {ALL_LAYERS} layers takes {}. A GPU needs \
         some microseconds for each launch, and a good program 8 to 10 of them for a layer.",
        launches + (ALL_LAYERS - 2) * of_layer
    );
    let bytes = format!(
        "The token needs {needed} bytes: the weights that it meets and the cache. In a model this narrow, what passes between \
         kernels is a larger part of what is moved than in a real one."
    );
    let title = "One decode step of two narrow layers, counted by the emulator";
    bench.table(title, columns, vec![row], &[&model, &all_layers, &bytes]);
}
