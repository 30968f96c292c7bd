//! What an error is measured in: the noise of a plain implementation in the same type, with floors, times a factor.

use crate::{Metrics, Spread};

/// What the noise of a local error in fp32 (and f64, TF32) is multiplied with: 1.5 times the largest ratio that a correct
/// implementation was seen to have. Seen were 1.96, 2.90, 3.54 and 3.62: Transformers 5.23 on 61 golden cases (eager kernels;
/// `python peers/judge.py`). What differs there is the order of sums, of which a baseline is one draw.
pub const LOCAL_FACTORS: Metrics = Metrics { l2: 2.9, row: 4.4, max: 5.3, gain: 5.4 };

/// The same in bf16 and f16, where roundings differ that every implementation makes. Seen were 1.46, 2.43, 2.40 and 2.48.
pub const NARROW_LOCAL_FACTORS: Metrics = Metrics { l2: 2.2, row: 3.6, max: 3.6, gain: 3.7 };

/// What the noise of a propagated error is multiplied with: 1.5 times the largest ratio that a correct implementation was
/// seen to have. Seen were 1.78, 3.18, 3.80 and 2.27: the reference in f64, f32 and bf16, in both forms of attention, on all
/// golden cases.
pub const FACTORS: Metrics = Metrics { l2: 2.7, row: 4.8, max: 5.7, gain: 3.4 };

/// One rounding to fp32 on each side of the comparison: 2·2⁻²⁴.
pub const FP32_ROUNDINGS: f64 = f32::EPSILON as f64;

/// By how much the factors are above what was seen.
pub const MARGIN: f64 = 1.5;

/// A normal number is above it once in a million times: so seldom may luck fail a right stage.
const DEVIATIONS: f64 = 4.7534;

/// The factors for a tensor of so many independent numbers. Their margin is for luck, of which a tensor of few numbers has
/// more.
pub fn for_so_many(factors: Metrics, numbers: f64) -> Metrics {
    let wider = (luck(numbers) / MARGIN).max(1.0);
    Metrics::from_values(factors.values().map(|factor| factor * wider))
}

/// Whether so many numbers are so few that the margin of the factors is less than their luck: up to about 50.
pub fn are_few(numbers: f64) -> bool {
    luck(numbers) > MARGIN
}

/// The norm of so many errors, in units of its usual size, that is exceeded once in a million times: √(χ²/n), where the
/// chi-square distribution has as many degrees of freedom.
fn luck(numbers: f64) -> f64 {
    // Wilson and Hilferty: the cube root of χ²/n is nearly normal
    let variance = 2.0 / (9.0 * numbers.max(1.0));
    (1.0 - variance + DEVIATIONS * variance.sqrt()).powi(3).sqrt()
}

/// The noise of one draw, raised to its floors: for a tensor of such a spread, over so many tokens whose errors are
/// independent.
pub fn with_floors(noise: Metrics, spread: Spread, tokens: f64) -> Metrics {
    let l2 = noise.l2.max(FP32_ROUNDINGS);
    Metrics {
        l2,
        row: noise.row.max(l2 * spread.smallest_row),
        max: noise.max.max(l2 * spread.largest_element),
        gain: noise.gain.max(l2 / tokens.max(1.0).sqrt()),
    }
}
