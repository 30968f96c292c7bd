//! A whole decode step on the emulator: how many launches it takes, and how much of what it moves is needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsv2_bench_report::{Better, Measurement};
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Variant};
use dsv2_reference::weights::generator::{GeneratedWeights, Rule};
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::Array2;
use ptx_emulator::profile::Profile;

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

struct Step {
    launches: Vec<(String, Profile)>,
    /// Bytes of the weights that one token needs, and of its cache.
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
        Ok(Step { launches: emulated.profiles(), needed })
    }

    fn count(&self) -> Count {
        Count::of(self.launches.iter().map(|(_, profile)| profile))
    }
}

fn weights() -> GeneratedWeights {
    let rule = |suffix: &str, mean, std, gain| Rule { suffix: suffix.into(), mean, std, gain };
    let rules = vec![rule("norm.weight", 1.0, Some(0.3), None), rule("weight", 0.0, None, Some(1.0))];
    GeneratedWeights { seed: 20, rules }
}

fn report(bench: &mut Bench, two: &Step, three: &Step) {
    let (count, needed) = (two.count(), two.needed);
    let of_layer = three.count().launches - count.launches;
    count.keep(bench, ID);
    bench.keep(Measurement::exact(format!("{ID}/launches-per-layer"), "", Better::Less, of_layer as f64));

    let mut kernels: BTreeMap<&str, Vec<&Profile>> = BTreeMap::new();
    two.launches.iter().for_each(|(kernel, profile)| kernels.entry(kernel).or_default().push(profile));
    let row = |name: &str, count: &Count| {
        let bytes = (count.read + count.written) as f64;
        let share = format!("{:.1} %", 100.0 * bytes / (two.count().read + two.count().written) as f64);
        let [launches, instructions, read, written] =
            [count.launches, count.instructions, count.read, count.written].map(|number| number.to_string());
        vec![name.to_owned(), launches, instructions, read, written, share]
    };
    let mut rows: Vec<Vec<String>> =
        kernels.into_iter().map(|(kernel, profiles)| row(kernel, &Count::of(profiles))).collect();
    rows.push(row("together", &count));
    let columns = "kernel | launches | instructions | bytes read | bytes written | share of bytes";
    let model = format!(
        "V2-Lite in bf16 with one dense layer and one of experts, the residual stream, the feed-forward networks and the \
         vocabulary {SHRINK} times narrower, attention as it is; one sequence, {PROMPT} tokens before. Bytes as above."
    );
    let launches = format!(
        "A layer with experts takes {of_layer} launches, so that a step of V2-Lite's {ALL_LAYERS} layers takes {}. A GPU needs \
         some microseconds for each launch, and a good program 8 to 10 of them for a layer.",
        count.launches + (ALL_LAYERS - 2) * of_layer
    );
    let bytes = format!(
        "The token needs {needed} bytes: the weights that it meets and the cache. The step asks for {} times as much; in a \
         model this narrow, what passes between kernels is a larger part of it than in a real one.",
        ratio((count.read + count.written) as f64, needed)
    );
    let title = "One decode step of two narrow layers, counted by the emulator";
    bench.table(title, columns, rows, &[&model, &launches, &bytes]);
}
