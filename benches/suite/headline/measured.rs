//! A layer and the head of each model, timed.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use criterion::Throughput;
use dsv2_reference::model::linear::Linear;

use super::layer::{CACHE, Layer, Sweep, WEIGHT, random_tokens, random_weights, seconds_of};
use super::shapes::{Precision, SCALE, Shape};
use crate::bench::{Bench, Profile, Seconds};

/// The memory of eight GPUs of 80 GB.
pub const NODE_MEMORY: f64 = 640e9;

/// What was measured in.
pub fn precision() -> Precision {
    Precision { weight: WEIGHT.size() as f64, cache: CACHE.size() as f64 }
}

/// Contexts of the runs under a memory budget.
pub fn contexts(profile: Profile) -> &'static [usize] {
    match profile {
        Profile::Full => &[1024, 4096, 16384, 32768],
        Profile::Quick => &[4096],
    }
}

/// Next to none, so that a step is its weights.
pub const NO_CONTEXT: usize = 1;
/// One where the cache counts.
pub const SOME_CONTEXT: usize = 4096;

/// Batches and contexts by which the two terms of a step are told apart.
fn grid(profile: Profile) -> Vec<(usize, usize)> {
    let at = |context, batches: &[usize]| batches.iter().map(|&batch| (context, batch)).collect::<Vec<_>>();
    match profile {
        Profile::Full => [at(NO_CONTEXT, &[1, 8, 32, 128]), at(SOME_CONTEXT, &[1, 8, 32, 128])].concat(),
        Profile::Quick => at(NO_CONTEXT, &[1, 32]),
    }
}

/// How many sequences of `context` tokens fit into our share of the memory: 1/s^2, as our share of the weights.
pub fn batch(shape: &Shape, context: usize) -> usize {
    let memory = NODE_MEMORY / (SCALE * SCALE) as f64;
    (shape.room(memory, precision(), context as f64) as usize).max(1)
}

/// What was measured of one model.
pub struct Timed {
    /// The model that the layer is of.
    pub shape: Shape,
    /// Seconds of a layer's step, by context and batch.
    pub layer: BTreeMap<(usize, usize), Seconds>,
    /// Seconds of the head, by batch.
    pub head: BTreeMap<usize, Seconds>,
    /// How many experts a step used, by batch.
    pub experts: BTreeMap<usize, usize>,
}

impl Timed {
    /// Times a layer of `shape` and its head: on the grid, and at the batches that the memory budget allows.
    pub fn measure<L: Layer>(
        bench: &mut Bench,
        shape: Shape,
        sweep: &LazyCell<Sweep>,
        new: impl FnOnce(&Shape) -> L,
    ) -> Self {
        let profile = bench.profile();
        let group = format!("headline/{}-width-1-{SCALE}", shape.name);
        let mut timed = Timed { shape, layer: BTreeMap::new(), head: BTreeMap::new(), experts: BTreeMap::new() };
        let budget = contexts(profile).iter().map(|&context| (context, batch(&shape, context)));
        let points = grid(profile).into_iter().chain(budget.clone());

        let layer = LazyCell::new(|| new(&shape));
        for (context, batch) in points.collect::<BTreeSet<_>>() {
            let (mut cache, mut seeds) = (None, 0..);
            let mut step = || {
                let cache = cache.get_or_insert_with(|| layer.cache(batch, context));
                let tokens = random_tokens(seeds.next().expect("no end"), batch, shape.hidden);
                let seconds = seconds_of(|| layer.step(tokens, cache));
                layer.forget(cache);
                seconds
            };
            let (group, name) = (format!("{group}/context={context}"), format!("batch={batch}"));
            let work = Some(Throughput::Elements(batch as u64));
            let seconds = bench.time(&group, &name, work, |iterations| sweep.time(iterations, &mut step));
            let Some(seconds) = seconds else { continue };
            timed.layer.insert((context, batch), seconds);
            if context == NO_CONTEXT {
                timed.experts.extend(layer.distinct_experts(batch).map(|experts| (batch, experts)));
            }
        }
        let head = LazyCell::new(|| {
            Linear::load(&random_weights(), "lm_head", shape.vocabulary, shape.hidden, false).expect("random weights")
        });
        for batch in budget.map(|(_, batch)| batch).collect::<BTreeSet<_>>() {
            let mut seeds = 0..;
            let mut step = || {
                let tokens = random_tokens(seeds.next().expect("no end"), batch, shape.hidden);
                seconds_of(|| head.forward(tokens.view()))
            };
            let (group, name) = (format!("{group}/head"), format!("batch={batch}"));
            let work = Some(Throughput::Elements(batch as u64));
            let seconds = bench.time(&group, &name, work, |iterations| sweep.time(iterations, &mut step));
            timed.head.extend(seconds.map(|seconds| (batch, seconds)));
        }
        timed
    }

    /// A step of the whole model at the batch that fits, if it was measured.
    pub fn step(&self, context: usize) -> Option<Seconds> {
        let batch = batch(&self.shape, context);
        let (layer, head) = (self.layer.get(&(context, batch))?, self.head.get(&batch)?);
        let whole = |layer: f64, head: f64| self.shape.layers as f64 * layer + head;
        Some(Seconds {
            median: whole(layer.median, head.median),
            low: whole(layer.low, head.low),
            high: whole(layer.high, head.high),
        })
    }
}
