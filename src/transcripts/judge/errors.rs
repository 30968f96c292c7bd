//! How far off logprobs are, in budgets.

use dsv2_metrics::{FACTORS, for_so_many};

use crate::budget::part;

/// The errors of logprobs, and those of plain implementations.
#[derive(Default)]
pub struct Errors {
    squares: f64,
    largest: f64,
    noise_squares: f64,
    noise_largest: f64,
    noise_count: usize,
    /// How many numbers there are.
    pub count: usize,
}

impl Errors {
    /// One more number; how far off it is.
    pub fn add(&mut self, expected: f64, found: f64, noise: impl Iterator<Item = f64>, rounding: f64) -> f64 {
        /// What servers write for a token that cannot come, since JSON has no infinity, is below this.
        const IMPOSSIBLE: f64 = -1e3;
        let error = match (expected.is_finite(), found.is_finite() && found > IMPOSSIBLE) {
            (false, false) => return 0.0,
            (true, true) => (found - expected).abs(),
            _ => f64::INFINITY,
        };
        self.count += 1;
        self.squares += error * error;
        self.largest = self.largest.max(error);
        for noise in noise.map(f64::abs).filter(|noise| noise.is_finite()) {
            // No plain implementation is so lucky as to have no rounding at all.
            let noise = noise.max(rounding);
            self.noise_squares += noise * noise;
            self.noise_largest = self.noise_largest.max(noise);
            self.noise_count += 1;
        }
        error
    }

    /// In budgets: of the whole, or of the worst.
    pub fn ratio(&self) -> f64 {
        let factors = for_so_many(FACTORS, self.count as f64);
        let mean = |squares: f64, count: usize| (squares / count.max(1) as f64).sqrt();
        let whole = part(mean(self.squares, self.count), factors.l2 * mean(self.noise_squares, self.noise_count));
        whole.max(part(self.largest, factors.max * self.noise_largest))
    }
}
