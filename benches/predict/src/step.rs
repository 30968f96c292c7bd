//! A decode step of a whole model.
//!
//! Which launches a step has, and in which grids, the model itself says: its step is captured in its full size on a device that
//! only writes down. What a launch does is counted on the emulator, once for each kernel, grid and sizes, in models of one layer of
//! each kind in full width: so a launch that the model gets, loses or changes is in the prediction at once.
//!
//! The prompt is one token, and the steps up to the context that is wanted do nothing but count the tokens: what the cache
//! holds there has no influence on how much there is to do.

use std::sync::Arc;

use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::{GenerateOptions, Generation};
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::{Device, Element, Error, Result, Variant};
use dsv2_reference::weights::generator::{GeneratedWeights, Rule};
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::Array2;

use crate::key::{Key, Launch};
use crate::sketch::{Part, Sketch};
use crate::{Card, Terms, Work};

/// A decode step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Each kernel with each grid and sizes, in the order in which the step meets them first.
    pub lines: Vec<Line>,
}

/// Launches of a step that do the same.
#[derive(Clone, Debug)]
pub struct Line {
    /// What each of them does.
    pub work: Work,
    /// How many the step has.
    pub times: usize,
    /// How many of them are in the last layer.
    pub in_layer: usize,
}

/// Sequences, and how many tokens each has, the new one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// B.
    pub batch: usize,
    /// T.
    pub context: usize,
}

impl Step {
    /// Of a model in bf16 with random weights: an even distribution over experts.
    ///
    /// # Errors
    /// If the config is impossible, its steps are not captured, or the emulator finds a fault.
    pub fn new(config: &DeepseekV2Config, size: Size) -> Result<Self> {
        let all = graph(config, size)?;
        let mut known: Vec<Launch> = vec![];
        for experts in [true, false] {
            let is_of = |layer: &usize| config.is_moe_layer(*layer, Dialect::Hf) == experts;
            if (0..config.num_hidden_layers).any(|layer| is_of(&layer)) {
                let mut of_one = config.clone();
                of_one.num_hidden_layers = 1;
                of_one.first_k_dense_replace = i64::from(!experts);
                known = count(&of_one, size, known)?;
            }
        }
        let before = match config.num_hidden_layers {
            1 => vec![],
            layers => graph(&DeepseekV2Config { num_hidden_layers: layers - 1, ..config.clone() }, size)?,
        };
        let times = |launches: &[Key], key: &Key| launches.iter().filter(|other| *other == key).count();
        let mut lines = vec![];
        for (at, key) in all.iter().enumerate() {
            if all[..at].contains(key) {
                continue;
            }
            let Some(found) = known.iter().find(|launch| launch.key == *key) else {
                let (expected, Key { kernel, grid, .. }) = ("a launch of a model of one layer", key);
                return Err(Error::operand("Step", "launch", expected, format!("{kernel} in {grid:?}")));
            };
            let (work, times, earlier) = (found.work.clone(), times(&all, key), times(&before, key));
            lines.push(Line { work, times, in_layer: times.saturating_sub(earlier) });
        }
        Ok(Step { lines })
    }

    /// The predicted time, in seconds.
    pub fn time(&self, card: &Card) -> f64 {
        self.sum(|line| line.times as f64 * Terms::new(&line.work, card).time())
    }

    /// The same of the last layer.
    pub fn layer_time(&self, card: &Card) -> f64 {
        self.sum(|line| line.in_layer as f64 * Terms::new(&line.work, card).time())
    }

    /// The least time, in seconds: that of the bytes that no launch of the step has written.
    pub fn floor(&self, card: &Card) -> f64 {
        self.sum(|line| line.times as f64 * floor(&line.work, card))
    }

    /// The same of the last layer.
    pub fn layer_floor(&self, card: &Card) -> f64 {
        self.sum(|line| line.in_layer as f64 * floor(&line.work, card))
    }

    /// How many launches.
    pub fn launches(&self) -> usize {
        self.lines.iter().map(|line| line.times).sum()
    }

    fn sum(&self, of: impl Fn(&Line) -> f64) -> f64 {
        self.lines.iter().map(of).sum()
    }
}

/// The least time of a launch in a step, in seconds.
pub fn floor(work: &Work, card: &Card) -> f64 {
    work.cold as f64 / card.memory
}

/// What a step launches, in order.
///
/// # Errors
/// As [`Step::new`].
pub fn graph(config: &DeepseekV2Config, size: Size) -> Result<Vec<Key>> {
    let sketch = Sketch::on_paper();
    let lm = load(config, sketch.clone())?;
    let mut generation = start(&lm, size)?;
    generation.step(None)?;
    generation.step(None)?;
    let graph = sketch.graph();
    if graph.is_empty() {
        return Err(Error::operand("Step", "config", "a model whose steps are captured", "one whose steps are not"));
    }
    Ok(graph)
}

/// What the launches of a step do, each of them; those that are known already come first.
///
/// # Errors
/// As [`Step::new`].
pub fn count(config: &DeepseekV2Config, size: Size, known: Vec<Launch>) -> Result<Vec<Launch>> {
    let sketch = Sketch::of_graphs();
    let lm = load(config, sketch.clone())?;
    let mut generation = start(&lm, size)?;
    sketch.runs(Part::Advance);
    for _ in 1..size.context {
        generation.step(None)?;
    }
    sketch.runs(Part::New);
    sketch.knows(known);
    generation.step(None)?;
    Ok(sketch.launches())
}

fn load(config: &DeepseekV2Config, sketch: Arc<Sketch>) -> Result<CausalLm> {
    let mut config = config.clone();
    // A text of random weights has no end.
    config.eos_token_id = None;
    let device: Arc<dyn Device> = sketch;
    let settings = Settings::new(Element::Bf16, Variant::Tuned);
    let rules = vec![Rule { suffix: "weight".into(), mean: 0.0, std: None, gain: Some(1.0) }];
    CausalLm::load_generated(&config, Dialect::Hf, &GeneratedWeights { seed: 1, rules }, &device, settings, &mut |_| ())
}

/// A token of each sequence, and steps up to the context: the last one attends to all of it.
fn start(lm: &CausalLm, size: Size) -> Result<Generation<'_>> {
    lm.start(&Array2::zeros((size.batch, 1)), None, &GenerateOptions::new(size.context))
}
