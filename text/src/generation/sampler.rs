//! Which token is chosen.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// Chooses a token by its logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// The likeliest; of equally likely ones that with the lowest number, as `argmax` of PyTorch.
    Greedy,
    /// A drawn one. Which, depends on the seed, the sequence's number and the step alone: not on what else is in the batch, on
    /// threads, or on what was drawn before. See [`uniform`].
    Seeded(u64),
}

impl Sampler {
    /// The token for the `step`-th token of an answer, by the logits \[V\] after all processors. Tokens whose logit is −∞ are
    /// never chosen.
    ///
    /// # Errors
    /// If no token may be chosen, or a logit is no number that one can draw by.
    pub fn choose(self, logits: &[f32], sequence: u64, step: u64) -> Result<i64> {
        let best = best(logits)?;
        match self {
            Sampler::Greedy => Ok(best as i64),
            Sampler::Seeded(seed) => drawn(logits, logits[best], uniform(seed, sequence, step)),
        }
    }
}

/// A number in [0, 1) for a step of a sequence, a multiple of 2⁻⁵³: the first 8 bytes of a block of ChaCha20 (with 8 bytes of
/// counter and 8 of nonce), as a little-endian number, without its 11 lowest bits. The key is the seed (8 bytes, little-endian)
/// and 24 zeros, the nonce is the sequence's number, the counter the step.
pub fn uniform(seed: u64, sequence: u64, step: u64) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha20Rng::from_seed(key);
    generator.set_stream(sequence);
    generator.set_word_pos(u128::from(step) * 16);
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// The natural logarithm of a token's probability.
pub fn log_probability(logits: &[f32], token: usize) -> f64 {
    LogProbabilities::new(logits).of(token)
}

/// The natural logarithms of all tokens' probabilities.
#[derive(Clone, Copy, Debug)]
pub struct LogProbabilities<'a> {
    logits: &'a [f32],
    most: f64,
    all: f64,
}

impl<'a> LogProbabilities<'a> {
    /// By the logits \[V\].
    pub fn new(logits: &'a [f32]) -> Self {
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let all: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
        LogProbabilities { logits, most, all: all.ln() }
    }

    /// That of a token.
    pub fn of(&self, token: usize) -> f64 {
        self.logits.get(token).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit) - self.most - self.all)
    }

    /// Those of all tokens \[V\].
    pub fn all(&self) -> Vec<f64> {
        (0..self.logits.len()).map(|token| self.of(token)).collect()
    }

    /// The `n` likeliest tokens, the likeliest first; of equally likely ones that with the lowest number.
    pub fn likeliest(&self, n: usize) -> Vec<(usize, f64)> {
        let falling = |a: &usize, b: &usize| self.logits[*b].total_cmp(&self.logits[*a]).then(a.cmp(b));
        let mut tokens: Vec<usize> = (0..self.logits.len()).collect();
        if n < tokens.len() {
            tokens.select_nth_unstable_by(n, falling);
            tokens.truncate(n);
        }
        tokens.sort_unstable_by(falling);
        tokens.into_iter().map(|token| (token, self.of(token))).collect()
    }
}

fn best(logits: &[f32]) -> Result<usize> {
    let mut best = None;
    for (token, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(Error::input("logits", "numbers", format!("NaN for token {token}")));
        }
        if *logit > best.map_or(f32::NEG_INFINITY, |best: usize| logits[best]) {
            best = Some(token);
        }
    }
    best.ok_or_else(|| Error::input("logits", "a token that may come", "none"))
}

/// The first token at which the probabilities, added up in order, are above `at`.
fn drawn(logits: &[f32], most: f32, at: f64) -> Result<i64> {
    if most == f32::INFINITY {
        return Err(Error::input("logits", "finite ones to draw by", "∞"));
    }
    let weight = |logit: &f32| f64::from(*logit - most).exp();
    let goal = at * logits.iter().map(weight).sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (token, weight) in logits.iter().map(weight).enumerate().filter(|(_, weight)| *weight > 0.0) {
        sum += weight;
        last = token;
        if sum > goal {
            break;
        }
    }
    Ok(last as i64)
}

#[cfg(test)]
mod tests;
