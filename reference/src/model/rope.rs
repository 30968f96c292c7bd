//! Rotary position embedding on the decoupled part of queries and keys (paper 2.1.3, eq. 14 and 15), and the softmax
//! scale, which YaRN changes too ([`yarn`]; paper 3.1.4).
//!
//! A vector of `r` = `qk_rope_head_dim` numbers is `r/2` complex numbers; position `p` turns number `i` by the angle
//! `p * theta_i`:
//!
//! ```text
//! out[2i]   = af (x[2i] cos(p theta_i) - x[2i+1] sin(p theta_i))
//! out[2i+1] = af (x[2i] sin(p theta_i) + x[2i+1] cos(p theta_i))
//! ```
//!
//! **Trap: the pairs are neighbours** (2i, 2i+1). DeepSeek's own code first moves even elements to the front half, odd
//! ones to the back, and rotates halves: the same dot products, but its cached `k_pe` is a permutation of this one.
//! Rotating halves *without* that permutation (Llama's layout) is wrong by O(1) (vllm#26995, transformers#39687).
//!
//! **Pinned rounding.** `theta_i` is an fp32 number, and so is the product `p * theta_i`: at position 131,072 one unit
//! in the last place of `theta_i` moves the rotated vector by 3.6e-3, so the f64 computation must start from the same
//! fp32 angles as everybody else. All after that (cosine, sine, rotation) is in the type of the computation.

mod dynamic;
mod frequencies;
mod llama3;
mod longrope;
pub mod yarn;

use ndarray::{Array2, Array3, Array4, Axis};

pub use dynamic::DynamicNtk;
use frequencies::{inverse_frequencies, proportional};
use longrope::LongCalls;
pub use yarn::yarn_get_mscale;

use crate::config::RopeType;
use crate::{DeepseekV2Config, Dialect, Real, Result};

/// The factor in front of `q k^T`: `(n + r)^(-1/2)`, times `ms(factor, mscale_all_dim)^2` if the config has the pair of
/// a rope type other than default and a non-zero `mscale_all_dim`. Why it
/// is squared: [`yarn`]. (n, r: `qk_nope_head_dim`, `qk_rope_head_dim`.)
///
/// 0.1147213868 for V2 and V2-Lite, 0.1352337789 for V2.5.
///
/// **Trap.** Transformers 4.54 to 5.14 leave the second factor out, so that every published checkpoint ran with a scale
/// 1.59 (V2.5: 1.87) times too small; fixed by transformers#47435. [`Dialect::HfPre515`] is that behaviour.
///
/// **Trap.** The rule fires for every other rope type too (`linear`, `dynamic`, `llama3`, ...) if the key is there, and `attention_factor` does not
/// suppress it.
///
/// # Errors
/// If the rotary parameters are impossible.
pub fn softmax_scale(config: &DeepseekV2Config, dialect: Dialect) -> Result<f64> {
    let rope = config.rope()?;
    let scale = (config.qk_head_dim() as f64).powf(-0.5);
    let mscale = match (rope.rope_type, rope.factor, rope.mscale_all_dim) {
        (RopeType::Default, _, _) | (_, None, _) | (_, _, None) => 1.0,
        (_, Some(_), Some(0.0)) => 1.0,
        (_, Some(factor), Some(mscale_all_dim)) => yarn_get_mscale(factor, mscale_all_dim),
    };
    Ok(if dialect.folds_mscale_into_softmax_scale() { scale * mscale * mscale } else { scale })
}

/// Cosine and sine of every angle, with the attention factor: \[B,S,r/2\] each (B = 1 if all rows have the same
/// positions).
#[derive(Debug, Clone)]
pub struct RotaryTables<T> {
    /// `af cos(p theta_i)`.
    pub cos: Array3<T>,
    /// `af sin(p theta_i)`.
    pub sin: Array3<T>,
}

/// The frequencies of a model. For the rope type `dynamic` they depend on the longest position seen.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inv_freq: Vec<f32>,
    attention_factor: f64,
    dynamic: Option<DynamicNtk>,
    long: Option<LongCalls>,
}

impl RotaryEmbedding {
    /// The frequencies that the config asks for.
    ///
    /// # Errors
    /// If the rotary parameters are impossible.
    pub fn new(config: &DeepseekV2Config, dialect: Dialect) -> Result<Self> {
        let rope = config.rope()?;
        let dim = config.qk_rope_head_dim;
        let factor = rope.factor.unwrap_or(1.0); // there where the type needs it: `config.rope` sees to it
        let original = rope.original_max_position_embeddings.unwrap_or(config.max_position_embeddings);
        let theta = rope.rope_theta;
        let plain = || inverse_frequencies(theta, dim);
        let inv_freq = match rope.rope_type {
            RopeType::Default | RopeType::Dynamic => plain(),
            RopeType::Linear => plain().iter().map(|theta| theta / factor as f32).collect(),
            RopeType::Yarn => yarn::frequencies(&rope, factor, dim, original),
            RopeType::Llama3 => llama3::frequencies(&rope, factor, dim, original),
            RopeType::LongRope => longrope::frequencies(&rope, &rope.short_factor, dim),
            RopeType::Proportional => proportional(theta, dim, rope.partial_rotary_factor, factor),
        };
        let attention_factor = match rope.rope_type {
            RopeType::Yarn => yarn::attention_factor(&rope, factor, dialect),
            RopeType::LongRope => longrope::attention_factor(&rope, factor, original),
            _ => 1.0,
        };
        let dynamic = (rope.rope_type == RopeType::Dynamic)
            .then(|| DynamicNtk::new(theta, factor, config.max_position_embeddings, dim));
        let long = (rope.rope_type == RopeType::LongRope).then(|| LongCalls::new(&rope, dim, original));
        Ok(RotaryEmbedding { inv_freq, attention_factor, dynamic, long })
    }

    /// `theta_i`, i < r/2: the pinned fp32 numbers (for the rope types `dynamic` and `longrope`: those of a short sequence).
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// The factor on cosine and sine.
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// The state that the rope type `dynamic` keeps over the calls of one sequence.
    pub fn dynamic(&self) -> Option<&DynamicNtk> {
        self.dynamic.as_ref()
    }

    /// The tables for `position_ids` \[B or 1,S\]. `state` is the sequence's own [`DynamicNtk`], if the rope type is
    /// `dynamic`.
    pub fn tables<T: Real>(&self, position_ids: &Array2<i64>, state: Option<&mut DynamicNtk>) -> RotaryTables<T> {
        let longest = position_ids.iter().max().map_or(0, |&p| p.saturating_add(1));
        let of_length = self.long.as_ref().and_then(|long| long.of_call(longest)).unwrap_or(&self.inv_freq);
        let inv_freq = state.map_or_else(|| of_length.to_vec(), |ntk| ntk.update(longest));
        let (rows, columns) = position_ids.dim();
        let angle = Array3::from_shape_fn((rows, columns, inv_freq.len()), |(b, s, i)| {
            // The pinned product: both factors and the result in fp32.
            f64::from(position_ids[[b, s]] as f32 * inv_freq[i])
        });
        let attention_factor = T::from_f64(self.attention_factor);
        RotaryTables {
            cos: angle.mapv(|a| T::from_f64(a.cos()) * attention_factor),
            sin: angle.mapv(|a| T::from_f64(a.sin()) * attention_factor),
        }
    }
}

impl<T: Real> RotaryTables<T> {
    /// Turns every pair of `x` \[B,H,S,r\] in place (paper eq. 14 and 15: RoPE(.)).
    pub fn rotate(&self, x: &mut Array4<T>) {
        for (b, mut heads) in x.outer_iter_mut().enumerate() {
            let row = if self.cos.len_of(Axis(0)) == 1 { 0 } else { b };
            for mut tokens in heads.outer_iter_mut() {
                for (s, mut token) in tokens.outer_iter_mut().enumerate() {
                    for i in 0..token.len() / 2 {
                        let (cos, sin) = (self.cos[[row, s, i]], self.sin[[row, s, i]]);
                        let (re, im) = (token[2 * i], token[2 * i + 1]);
                        token[2 * i] = re * cos - im * sin;
                        token[2 * i + 1] = re * sin + im * cos;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frequencies of every published model, as PyTorch computes them: bits of 32 fp32 numbers.
    const YARN_V2: [u32; 32] = [
        0x3f800000, 0x3f3ff911, 0x3f0ff59a, 0x3ed7e89b, 0x3ea1e89b, 0x3e72d423, 0x3e361887, 0x3e088d77, 0x3dcccccd,
        0x3d99940d, 0x3d6655c2, 0x3d1fc5ba, 0x3cdc321b, 0x3c968dc3, 0x3c4bf283, 0x3c088d77, 0x3bb43959, 0x3b697066,
        0x3b136a16, 0x3ab3a2cd, 0x3a4f3e37, 0x39d99312, 0x393a7753, 0x380bd471, 0x37d1b717, 0x379d43a3, 0x376bdcf0,
        0x3730df51, 0x3704a2b3, 0x36c6ecdd, 0x36952c42, 0x365fba4f,
    ];
    /// The same without YaRN, from index 11 on (up to 10 YaRN changes nothing).
    const PLAIN_V2_FROM_11: [u32; 21] = [
        0x3d2cba15, 0x3d0186e3, 0x3cc2434f, 0x3c91ad39, 0x3c5a7bf2, 0x3c23d70a, 0x3bf5b9b0, 0x3bb8449c, 0x3b8a2e77,
        0x3b4f3e38, 0x3b1b690d, 0x3ae91528, 0x3aaec98e, 0x3a83126f, 0x3a44948c, 0x3a136a16, 0x39dd1725, 0x39a5cb60,
        0x3978a815, 0x393a7753, 0x390bd472,
    ];

    fn bits(frequencies: &[f32]) -> Vec<u32> {
        frequencies.iter().map(|f| f.to_bits()).collect()
    }

    #[test]
    fn the_frequencies_of_the_published_models_are_pytorchs_to_the_bit() {
        let config = DeepseekV2Config::preset("v2").unwrap();
        assert_eq!(bits(RotaryEmbedding::new(&config, Dialect::Hf).unwrap().inv_freq()), YARN_V2);
        let plain = bits(&inverse_frequencies(10000.0, 64));
        assert_eq!(plain[..11], YARN_V2[..11]);
        assert_eq!(plain[11..], PLAIN_V2_FROM_11);
    }

    #[test]
    fn transformers_other_rope_types_have_pytorchs_frequencies_to_the_bit() {
        let llama3 = |low: f64, high: f64, original: usize| {
            serde_json::json!({"type": "llama3", "factor": 8.0, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original})
        };
        let longrope = serde_json::json!({"type": "longrope", "factor": 4.0,
            "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
            "long_factor": [1.1, 1.3, 1.7, 2.9, 4.1, 7.7, 13.3, 40.0], "original_max_position_embeddings": 64});
        let proportional = serde_json::json!({"type": "proportional", "factor": 4.0, "partial_rotary_factor": 0.7});
        let cases: [(_, f64, [u32; 8]); 4] = [
            (
                llama3(1.0, 4.0, 64),
                1e4,
                [0x3f800000, 0x3e7a3ff4, 0x3c55af30, 0x3b8186e3, 0x3aa3d70a, 0x39cf3e38, 0x3903126f, 0x3825cb60],
            ),
            (
                llama3(1.5, 40.0, 8192),
                5e5,
                [0x3f800000, 0x3e4693b0, 0x3d1a08c8, 0x3b12ba13, 0x3944f3cb, 0x380fc8f8, 0x36df10c4, 0x35ad07a7],
            ),
            (
                longrope,
                1e4,
                [0x3f800000, 0x3e9a32dd, 0x3dba2e8c, 0x3cd7e0ce, 0x3bfc0fc1, 0x3b1407df, 0x3a2ec33e, 0x394f3e38],
            ),
            (proportional, 1e4, [0x3e800000, 0x3da1e89b, 0x3ccccccd, 0x3c0186e3, 0x3b23d70a, 0, 0, 0]),
        ];
        for (scaling, theta, expected) in cases {
            let config = DeepseekV2Config {
                qk_rope_head_dim: 16,
                rope_theta: Some(theta),
                rope_scaling: scaling.as_object().cloned(),
                ..DeepseekV2Config::default()
            };
            let rotary = RotaryEmbedding::new(&config, Dialect::Hf).unwrap();
            assert_eq!(bits(rotary.inv_freq()), expected, "{scaling}");
            let Some(long) = &rotary.long else { continue };
            assert_eq!(long.of_call(64), None);
            let expected =
                [0x3f68ba2e, 0x3e791716, 0x3d70f0f1, 0x3c32a864, 0x3b1fd80a, 0x39d75144, 0x389dae3c, 0x3704a2b3];
            assert_eq!(bits(long.of_call(65).unwrap()), expected);
            assert!((rotary.attention_factor() - 1.1547005383792517).abs() < 1e-15);
        }
    }
}
