//! The rope type `llama3` (Llama 3.1): a longer context by slower rotation, as YaRN, with a ramp over the number of turns.
//! No published DeepSeek-V2 has it.
//!
//! ```text
//! turns(i) = L0 theta_i / (2 pi)          within the original context of L0 tokens
//! turns >= high_freq_factor               theta_i
//! turns <= low_freq_factor                theta_i / s
//! between                                 ((1 - m) / s + m) theta_i      m = (turns - low) / (high - low)
//! ```

use super::frequencies::inverse_frequencies;
use crate::config::RopeParameters;

/// The frequencies above, rounded to fp32 after each operation as in Transformers; `dim` = r, `original` = L0.
pub(super) fn frequencies(rope: &RopeParameters, factor: f64, dim: usize, original: usize) -> Vec<f32> {
    let (low, high) = (rope.low_freq_factor, rope.high_freq_factor);
    let (longest, shortest) = ((original as f64 / low) as f32, (original as f64 / high) as f32);
    let of_pair = |theta: f32| {
        // PyTorch divides a number by a tensor as the tensor's reciprocal times the number.
        let wavelength = theta.recip() * std::f32::consts::TAU;
        let scaled = if wavelength > longest { theta / factor as f32 } else { theta };
        if wavelength < shortest || wavelength > longest {
            return scaled;
        }
        let smooth = (wavelength.recip() * original as f32 - low as f32) / (high - low) as f32;
        (1.0 - smooth) * scaled / factor as f32 + smooth * scaled
    };
    inverse_frequencies(rope.rope_theta, dim).into_iter().map(of_pair).collect()
}
