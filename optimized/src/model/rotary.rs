//! Rotary frequencies and the softmax scale: what the kernels get as numbers (paper 2.1.3 and 3.1.4).
//!
//! The frequencies are fp32, and each step towards them is rounded to fp32, as PyTorch does it: at position 131,072 one
//! unit in the last place of a frequency moves a key by 3.6e-3.

use dsv2_reference::config::{RopeParameters, RopeType};
use dsv2_reference::{DeepseekV2Config, Dialect};

use crate::Result;

/// `ms(s, m) = 0.1 m ln s + 1`, or 1 where the context is not extended.
fn length_factor(extension: f64, m: f64) -> f64 {
    1.0 + 0.1 * m * extension.max(1.0).ln()
}

/// What the scores are multiplied with: `1/sqrt(n + r)`, times `ms(s, mscale_all_dim)²` where the context is extended.
///
/// # Errors
/// If the config's rotary parameters are impossible.
pub fn softmax_scale(config: &DeepseekV2Config, dialect: Dialect) -> Result<f32> {
    let rope = config.rope()?;
    let plain = 1.0 / ((config.qk_nope_head_dim + config.qk_rope_head_dim) as f64).sqrt();
    let extended = rope.rope_type != RopeType::Default && dialect.folds_mscale_into_softmax_scale();
    let folded = match (rope.factor, rope.mscale_all_dim) {
        (Some(factor), Some(m)) if extended && m != 0.0 => length_factor(factor, m).powi(2),
        _ => 1.0,
    };
    Ok((plain * folded) as f32)
}

/// The angle of position `p` is `p * inv_freq[i]` for the pair i; cosine and sine are multiplied by `attention_factor`.
#[derive(Clone, Debug)]
pub struct Frequencies {
    rope: RopeParameters,
    /// r
    width: usize,
    /// M: the context length of the rope type `dynamic`.
    context: i64,
    /// The factor on cosine and sine.
    pub attention_factor: f32,
}

impl Frequencies {
    /// Those of a model.
    ///
    /// # Errors
    /// If the config's rotary parameters are impossible.
    pub fn new(config: &DeepseekV2Config, dialect: Dialect) -> Result<Self> {
        let mut rope = config.rope()?;
        rope.original_max_position_embeddings.get_or_insert(config.max_position_embeddings);
        let attention_factor = attention_factor(&rope, dialect) as f32;
        let context = config.max_position_embeddings as i64;
        Ok(Frequencies { rope, width: config.qk_rope_head_dim, context, attention_factor })
    }

    /// Whether they are the same in every call.
    pub fn is_fixed(&self) -> bool {
        !matches!(self.rope.rope_type, RopeType::Dynamic | RopeType::LongRope)
    }

    /// The r/2 frequencies of a call whose longest position is `longest - 1`.
    ///
    /// The rope type `longrope` asks this call alone. `reached` is the longest context of the sequence so far, which the rope
    /// type `dynamic` remembers: the base grows
    /// with it, sticks, and falls back when a call ends below the context length. A new sequence begins with 0.
    pub fn of_call(&self, longest: i64, reached: &mut i64) -> Vec<f32> {
        let (base, factor) = (self.rope.rope_theta, self.rope.factor.unwrap_or(1.0));
        match self.rope.rope_type {
            RopeType::Default => self.plain(base),
            RopeType::Linear => self.plain(base).into_iter().map(|frequency| frequency / factor as f32).collect(),
            RopeType::Dynamic => {
                let had_grown = *reached > self.context;
                *reached = if had_grown && longest < self.context { self.context } else { longest.max(*reached) };
                if *reached <= self.context { self.plain(base) } else { self.plain(self.grown(base, factor, *reached)) }
            }
            RopeType::Yarn => self.yarn(base, factor),
            RopeType::Llama3 => self.llama3(base, factor),
            RopeType::LongRope => {
                let long = longest > self.rope.original_max_position_embeddings.unwrap_or_default() as i64;
                let divisors = if long { &self.rope.long_factor } else { &self.rope.short_factor };
                self.powers(base).iter().zip(divisors).map(|(power, by)| (*by as f32 * power).recip()).collect()
            }
            RopeType::Proportional => {
                let turning = (self.rope.partial_rotary_factor * self.width as f64 / 2.0) as usize;
                let mut frequencies = self.plain(base);
                frequencies[turning..].fill(0.0);
                frequencies.into_iter().map(|frequency| frequency / factor as f32).collect()
            }
        }
    }

    /// `θ^(2i/r)` in fp32.
    fn powers(&self, base: f64) -> Vec<f32> {
        let exponent = |pair: usize| f64::from((2 * pair) as f32 / self.width as f32);
        (0..self.width / 2).map(|pair| base.powf(exponent(pair)) as f32).collect()
    }

    fn plain(&self, base: f64) -> Vec<f32> {
        self.powers(base).into_iter().map(f32::recip).collect()
    }

    /// `θ (s L / M - (s - 1))^(r/(r-2))`, in fp32: there the length is a tensor.
    fn grown(&self, base: f64, factor: f64, reached: i64) -> f64 {
        let stretch = (factor * reached as f64) as f32 / self.context as f32 - (factor - 1.0) as f32;
        let exponent = self.width as f64 / (self.width - 2) as f64;
        f64::from(base as f32 * f64::from(stretch).powf(exponent) as f32)
    }

    /// As YaRN, with a ramp over the wave's length.
    fn llama3(&self, base: f64, factor: f64) -> Vec<f32> {
        let context = self.rope.original_max_position_embeddings.unwrap_or_default() as f64;
        let (low, high) = (self.rope.low_freq_factor, self.rope.high_freq_factor);
        let slowed = |frequency: f32| {
            let wave = frequency.recip() * std::f32::consts::TAU;
            if wave > (context / low) as f32 {
                return frequency / factor as f32;
            }
            if wave < (context / high) as f32 {
                return frequency;
            }
            let share = (wave.recip() * context as f32 - low as f32) / (high - low) as f32;
            (1.0 - share) * frequency / factor as f32 + share * frequency
        };
        self.plain(base).into_iter().map(slowed).collect()
    }

    /// High frequencies as they are, low ones divided by the factor, a ramp over the pair's index between them.
    fn yarn(&self, base: f64, factor: f64) -> Vec<f32> {
        let &RopeParameters { beta_fast, beta_slow, truncate, original_max_position_embeddings, .. } = &self.rope;
        let context = original_max_position_embeddings.unwrap_or_default() as f64;
        // The pair, a real number, that turns so often within the original context.
        let pair_of =
            |turns: f64| self.width as f64 * (context / (std::f64::consts::TAU * turns)).ln() / (2.0 * base.ln());
        let (fast, slow) = (pair_of(beta_fast), pair_of(beta_slow));
        let (first, last) = if truncate { (fast.floor(), slow.ceil()) } else { (fast, slow) };
        let (first, last) = (first.max(0.0), last.min((self.width - 1) as f64));
        let length = if first == last { 0.001 } else { last - first };
        let blend = |(pair, power): (usize, f32)| {
            let low = ((pair as f32 - first as f32) / length as f32).clamp(0.0, 1.0);
            let high = 1.0 - low;
            (factor as f32 * power).recip() * (1.0 - high) + power.recip() * high
        };
        self.powers(base).into_iter().enumerate().map(blend).collect()
    }
}

/// YaRN's and longrope's factor on cosine and sine; 1 in every published model.
fn attention_factor(rope: &RopeParameters, dialect: Dialect) -> f64 {
    if rope.rope_type == RopeType::LongRope {
        let context = rope.original_max_position_embeddings.unwrap_or_default() as f64;
        let stretch = rope.factor.filter(|factor| *factor > 1.0).map_or(0.0, |factor| factor.ln() / context.ln());
        return rope.attention_factor.unwrap_or_else(|| (1.0 + stretch).sqrt());
    }
    if rope.rope_type != RopeType::Yarn {
        return 1.0;
    }
    let ms = |m| length_factor(rope.factor.unwrap_or(1.0), m);
    if dialect.attention_factor_honours_lone_mscale() {
        return ms(rope.mscale.unwrap_or(1.0)) / ms(rope.mscale_all_dim.unwrap_or(0.0));
    }
    let given = |m: Option<f64>| m.filter(|m| *m != 0.0);
    match (rope.attention_factor, given(rope.mscale), given(rope.mscale_all_dim)) {
        (Some(factor), _, _) => factor,
        (None, Some(mscale), Some(all_dim)) => ms(mscale) / ms(all_dim),
        (None, _, _) => ms(1.0),
    }
}

#[cfg(test)]
mod tests {
    use dsv2_reference::model::rope::{RotaryEmbedding, softmax_scale as reference_scale};

    use super::*;

    #[test]
    fn every_preset_has_the_references_frequencies_to_the_bit() {
        for preset in dsv2_reference::config::PRESETS {
            let config = DeepseekV2Config::preset(preset).unwrap();
            for dialect in [Dialect::Hf, Dialect::HfPre515, Dialect::Deepseek] {
                let theirs = RotaryEmbedding::new(&config, dialect).unwrap();
                let ours = Frequencies::new(&config, dialect).unwrap();
                assert_eq!(ours.of_call(10, &mut 0), theirs.inv_freq(), "{preset}");
                assert_eq!(f64::from(ours.attention_factor), theirs.attention_factor(), "{preset}");
                let scale = reference_scale(&config, dialect).unwrap() as f32;
                assert_eq!(softmax_scale(&config, dialect).unwrap(), scale, "{preset}");
            }
        }
    }

    #[test]
    fn every_rope_type_of_a_golden_case_has_them_too() {
        let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/cases");
        for name in ["rope-linear", "rope-dynamic", "rope-llama3", "rope-longrope", "rope-proportional"] {
            let case = std::fs::read_to_string(cases.join(name).join("case.json")).unwrap();
            let case: serde_json::Value = serde_json::from_str(&case).unwrap();
            let config = DeepseekV2Config::from_value(case["config"].clone()).unwrap();
            let theirs = RotaryEmbedding::new(&config, Dialect::Hf).unwrap();
            let ours = Frequencies::new(&config, Dialect::Hf).unwrap();
            assert_eq!(ours.of_call(7, &mut 0), theirs.inv_freq(), "{name}");
            assert_eq!(ours.attention_factor, theirs.attention_factor() as f32, "{name}");
        }
    }
}
