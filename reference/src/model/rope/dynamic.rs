//! The rope type `dynamic`: "NTK-aware" scaling that grows with the sequence. No published model has it.

use super::frequencies::inverse_frequencies;

/// "Dynamic NTK": the base grows with the longest position seen, once that passes `max_position_embeddings` (M).
///
/// `theta' = theta (f L / M - (f - 1))^(r/(r-2))`, where L is the longest position so far plus one. The state grows and
/// sticks, and is reset when a call's own L falls below M (at L = M exactly it is not).
///
/// Transformers keeps this state in the *module*, so that a result depends on whatever ran before; here a sequence owns
/// it (its cache does), and a call without a cache starts afresh.
#[derive(Debug, Clone)]
pub struct DynamicNtk {
    theta: f64,
    factor: f64,
    max_position_embeddings: i64,
    dim: usize,
    longest: i64,
}

impl DynamicNtk {
    pub(super) fn new(theta: f64, factor: f64, max_position_embeddings: usize, dim: usize) -> Self {
        let max_position_embeddings = max_position_embeddings as i64;
        DynamicNtk { theta, factor, max_position_embeddings, dim, longest: max_position_embeddings }
    }

    /// The frequencies for a call whose longest position plus one is `length`.
    pub fn update(&mut self, length: i64) -> Vec<f32> {
        let grown = self.longest > self.max_position_embeddings;
        self.longest = self.longest.max(length);
        if grown && length < self.max_position_embeddings {
            self.longest = self.max_position_embeddings;
        }
        if self.longest == self.max_position_embeddings {
            return inverse_frequencies(self.theta, self.dim);
        }
        // In fp32, as there: the length is a tensor.
        let stretch = (self.factor * self.longest as f64) as f32 / self.max_position_embeddings as f32
            - (self.factor - 1.0) as f32;
        let exponent = self.dim as f64 / (self.dim as f64 - 2.0);
        let theta = self.theta as f32 * f64::from(stretch).powf(exponent) as f32;
        inverse_frequencies(f64::from(theta), self.dim)
    }
}
