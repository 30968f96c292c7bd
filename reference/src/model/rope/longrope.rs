//! The rope type `longrope` (Phi-3): each pair has a divisor of its own, one in short calls and one in long ones. No
//! published DeepSeek-V2 has it.
//!
//! **Trap.** Which of the two is decided by each *call*, by its longest position: keys in the cache keep the rotation of
//! the call that made them. So a sequence that grows over the original context has one result in one call, and another
//! one in pieces (logits off by 8), in Transformers too.

use super::frequencies::powers;
use crate::config::RopeParameters;

/// The frequencies of calls that end beyond the original context.
#[derive(Debug, Clone)]
pub(super) struct LongCalls {
    /// L0: a call of more positions is long.
    original: i64,
    inv_freq: Vec<f32>,
}

impl LongCalls {
    pub(super) fn new(rope: &RopeParameters, dim: usize, original: usize) -> Self {
        LongCalls { original: original as i64, inv_freq: frequencies(rope, &rope.long_factor, dim) }
    }

    /// The frequencies, if a call whose longest position plus one is `length` is long.
    pub(super) fn of_call(&self, length: i64) -> Option<&[f32]> {
        (length > self.original).then_some(&self.inv_freq)
    }
}

/// `1 / (divisor_i theta^(2i/r))`, rounded to fp32 after each operation.
pub(super) fn frequencies(rope: &RopeParameters, divisors: &[f64], dim: usize) -> Vec<f32> {
    powers(rope.rope_theta, dim).zip(divisors).map(|(power, divisor)| 1.0 / (*divisor as f32 * power)).collect()
}

/// The factor on cosine and sine: `attention_factor`, or `sqrt(1 + ln s / ln L0)`, 1 for s <= 1.
pub(super) fn attention_factor(rope: &RopeParameters, factor: f64, original: usize) -> f64 {
    let stretch = || if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    rope.attention_factor.unwrap_or_else(stretch)
}
