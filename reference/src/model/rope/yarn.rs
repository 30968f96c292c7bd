//! YaRN (arXiv 2309.00071; paper 3.1.4): a longer context by slower rotation, and its two scales.
//!
//! A pair that turns often within the original context of `L0` tokens tells neighbours apart and stays as it is; one that
//! turns less than once tells far positions apart and is slowed down by the factor `s`; between the two a ramp mixes:
//!
//! ```text
//! corr(turns) = r ln(L0 / (2 pi turns)) / (2 ln theta)        the index i with theta_i L0 = 2 pi turns
//! low, high   = floor(corr(beta_fast)), ceil(corr(beta_slow))      clipped to 0 .. r-1
//! ramp(i)     = (i - low) / (high - low)                      clipped to 0 .. 1
//! theta'_i    = (1 - ramp(i)) theta_i + ramp(i) theta_i / s
//! ```
//!
//! | config.json | paper 3.1.4 | published models |
//! |---|---|---|
//! | `factor` | s | 40 |
//! | `beta_fast` | beta | 32 turns |
//! | `beta_slow` | alpha | 1 turn |
//! | `original_max_position_embeddings` | | L0 = 4096 |
//!
//! So corr(32) = 10.47 and corr(1) = 22.51: unchanged up to i = 10, 1/40 from i = 23 on.
//!
//! **Two scales.** With more keys to choose from, attention is to be sharpened: YaRN makes each query and each key longer
//! by `ms(s) = 0.1 ln s + 1`, and the score, their product, grows by `ms^2`. It does so for free by a factor on cosine
//! and sine. In MLA that would reach the rotated r of n + r numbers only; so the factor on cosine and sine
//! (`attention_factor`) is a quotient that is 1 in the published models, and the whole score is multiplied by
//! `ms(s, mscale_all_dim)^2` instead ([`super::softmax_scale`]): 1.2608^2 = 1.5896 for V2, 1.3689^2 = 1.8739 for V2.5.
//! The paper's sqrt(t) = 0.0707 ln s + 1 is `ms(s, 0.707)`.
//!
//! **Trap.** The YaRN paper's ramp is linear in the number of turns; DeepSeek's code and Transformers' are linear in
//! the *index* `i`. They differ by up to 4.28 times (index 20 of V2).

use super::frequencies::powers;
use crate::Dialect;
use crate::config::RopeParameters;

/// `ms(f, m) = 0.1 m ln f + 1`, and 1 for f <= 1: by how much a query, or a key, gets longer.
pub fn yarn_get_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// YaRN's factor on cosine and sine, `af` above; 1 for the published checkpoints.
///
/// Given as `attention_factor`, or `ms(f, mscale) / ms(f, mscale_all_dim)`.
///
/// **Trap: when one of the keys is missing** (or 0), Transformers falls back to `ms(f, 1)`, while DeepSeek's own code
/// keeps the quotient with its defaults 1 and 0 (and knows no `attention_factor`). At factor 40 and only `mscale` =
/// 0.707: 1.3689 against 1.2608.
pub(super) fn attention_factor(rope: &RopeParameters, factor: f64, dialect: Dialect) -> f64 {
    let quotient = |mscale, all_dim| yarn_get_mscale(factor, mscale) / yarn_get_mscale(factor, all_dim);
    match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
        (_, mscale, all_dim) if dialect.attention_factor_honours_lone_mscale() => {
            quotient(mscale.unwrap_or(1.0), all_dim.unwrap_or(0.0))
        }
        (Some(attention_factor), _, _) => attention_factor,
        (None, Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => quotient(mscale, all_dim),
        _ => yarn_get_mscale(factor, 1.0),
    }
}

/// The frequencies `theta'_i` above; `dim` = r, `original` = L0.
pub(super) fn frequencies(rope: &RopeParameters, factor: f64, dim: usize, original: usize) -> Vec<f32> {
    let corr = |turns: f64| {
        dim as f64 * (original as f64 / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * rope.rope_theta.ln())
    };
    let (mut low, mut high) = (corr(rope.beta_fast), corr(rope.beta_slow));
    if rope.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
    powers(rope.rope_theta, dim)
        .enumerate()
        .map(|(i, power)| {
            let (extrapolation, interpolation) = (1.0 / power, 1.0 / (factor as f32 * power));
            let kept = 1.0 - ramp(i);
            interpolation * (1.0 - kept) + extrapolation * kept
        })
        .collect()
}
