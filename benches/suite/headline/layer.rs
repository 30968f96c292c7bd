//! What the two layers that are measured have in common.

use std::time::{Duration, Instant};

use dsv2_reference::Dtype;
use dsv2_reference::weights::generator::{GeneratedWeights, Rule, splitmix64};
use ndarray::Array2;
use rayon::prelude::*;

/// What the layers' own weights and caches are kept in: weights in bf16, cached numbers in the computation's fp32.
pub const WEIGHT: Dtype = Dtype::Bf16;
/// See [`WEIGHT`].
pub const CACHE: Dtype = Dtype::F32;

/// A decoder layer that adds a token to each sequence of a batch.
pub trait Layer {
    /// What it keeps of the tokens before.
    type Cache;

    /// Of `batch` sequences of `context` tokens: random numbers.
    fn cache(&self, batch: usize, context: usize) -> Self::Cache;

    /// The new tokens `[B,D]` through the layer; they are appended to the cache.
    fn step(&self, tokens: Array2<f32>, cache: &mut Self::Cache) -> Array2<f32>;

    /// Takes the last step's tokens out of the cache.
    fn forget(&self, cache: &mut Self::Cache);

    /// How many experts a step of random tokens uses, if there are experts.
    fn distinct_experts(&self, _batch: usize) -> Option<usize> {
        None
    }
}

/// Random weights, such that what passes through neither shrinks nor grows.
pub fn random_weights() -> GeneratedWeights {
    let rule = |suffix: &str, mean, std, gain| Rule { suffix: suffix.into(), mean, std, gain };
    let rules = vec![rule("norm.weight", 1.0, Some(0.1), None), rule("weight", 0.0, None, Some(1.0))];
    GeneratedWeights { seed: 1, rules }
}

/// Random numbers between -1 and 1, others for another seed.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let base = splitmix64(seed);
    let number = |i: usize| (splitmix64(base.wrapping_add(i as u64)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..count).into_par_iter().map(number).collect()
}

/// Tokens as the layer below might give them, `[B,D]`; those of each step and sequence differ.
pub fn random_tokens(seed: u64, batch: usize, hidden: usize) -> Array2<f32> {
    Array2::from_shape_vec((batch, hidden), random(seed, batch * hidden)).expect("B D numbers")
}

/// Memory that is read before each step, so that a lone layer's weights and cache come from memory, as they do in a
/// model of many layers.
pub struct Sweep(Vec<u64>);

impl Sweep {
    /// More than the caches hold.
    pub fn new() -> Self {
        Sweep(vec![1; (512 << 20) / 8])
    }

    /// How long all iterations of `routine` took, the sweeps before them not counted.
    pub fn time(&self, iterations: u64, mut routine: impl FnMut() -> Duration) -> Duration {
        (0..iterations)
            .map(|_| {
                let sum = |part: &[u64]| part.iter().fold(0u64, |sum, &word| sum.wrapping_add(word));
                std::hint::black_box(self.0.par_chunks(1 << 17).map(sum).reduce(|| 0, u64::wrapping_add));
                routine()
            })
            .sum()
    }
}

/// How long it took.
pub fn seconds_of<T>(routine: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    std::hint::black_box(routine());
    start.elapsed()
}
