//! Weights without files: every element is a pure function of a seed, its tensor's name and its index.
//!
//! A golden case with generated weights is a few hundred bytes of rules, whatever the size of the model, and any
//! program in any language can make the same weights bit for bit. That is why the recipe below is so plain: wrapping
//! 64-bit integers, then a handful of `f64` operations that IEEE 754 defines exactly, and one rounding to bf16.
//!
//! For element `i` (row-major) of tensor `name`:
//!
//! ```text
//! base  = splitmix64(fnv1a64(name) ^ seed)
//! z     = splitmix64(base + i)                         a counter: no state, so any element can be made alone
//! s     = sum of the four 16-bit fields of z           four uniform numbers: already close to a normal one
//! u     = ((s + 2) / 65536 - 2) * sqrt(3)              mean 0, variance 1, |u| < 2 sqrt(3)
//! value = bf16(f32(mean + u * std))                    both roundings to nearest, ties to even
//! ```
//!
//! The values are bf16 because released weights are; they then have the same values in every type of computation.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::one_line;
use crate::weights::WeightSource;
use crate::{Dtype, Error, Result, Tensor};

/// Weights made on demand: those of a "generated" golden case.
///
/// ```
/// # use dsv2_reference::weights::{WeightSource, generator::GeneratedWeights};
/// let weights: GeneratedWeights = serde_json::from_str(
///     r#"{"seed": 7,
///         "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.3}, {"suffix": "weight", "gain": 1.5}]}"#,
/// )?;
/// let weight = weights.tensor("model.layers.0.self_attn.o_proj.weight", &[64, 32])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratedWeights {
    /// Another seed, other weights.
    pub seed: u64,
    /// The first rule whose suffix ends a tensor's name gives its distribution.
    pub rules: Vec<Rule>,
}

/// The distribution of the tensors whose name ends in `suffix`. Exactly one of `std` and `gain` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedRule")]
pub struct Rule {
    /// How the names of its tensors end.
    pub suffix: String,
    /// The mean; 0 if left out.
    pub mean: f64,
    /// The standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
    /// `std = gain / sqrt(last dimension)`: with gain 1 a linear layer neither shrinks nor grows what passes through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gain: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedRule {
    suffix: String,
    #[serde(default)]
    mean: f64,
    std: Option<f64>,
    gain: Option<f64>,
}

impl TryFrom<UncheckedRule> for Rule {
    type Error = String;

    fn try_from(UncheckedRule { suffix, mean, std, gain }: UncheckedRule) -> Result<Self, String> {
        let rule = Rule { suffix, mean, std, gain };
        rule.std(1)?;
        Ok(rule)
    }
}

impl Rule {
    /// The standard deviation for rows of `last_dimension` elements.
    fn std(&self, last_dimension: usize) -> Result<f64, String> {
        let std = match (self.std, self.gain) {
            (Some(std), None) => std,
            (None, Some(gain)) => gain / (last_dimension as f64).sqrt(),
            (std, gain) => {
                let found = if std.or(gain).is_some() { "both" } else { "neither" };
                return Err(format!("rule `{}`: expected one of std and gain, found {found}", one_line(&self.suffix)));
            }
        };
        // The largest value that can come out; bf16 holds up to 3.39e38. (Written so that a NaN is refused as well.)
        let largest = self.mean.abs() + 2.0 * 3f64.sqrt() * std;
        if std >= 0.0 && largest < 3e38 {
            return Ok(std);
        }
        let found = format!("mean {} and std {std}", self.mean);
        Err(format!("rule `{}`: expected a std of at least 0 and bf16 values, found {found}", one_line(&self.suffix)))
    }
}

impl WeightSource for GeneratedWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(rule) = self.rules.iter().find(|rule| name.ends_with(&rule.suffix)) else {
            let found = format!("none among {}", self.rules.len());
            return Err(Error::weight(name, "a rule whose suffix ends the name", found));
        };
        let std = rule.std(shape.last().map_or(1, |&n| n.max(1)));
        let std = std.map_err(|message| Error::weight(name, "a rule that gives a distribution", message))?;
        let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n));
        let bytes = len.and_then(|len| bf16_bytes(name, self.seed, rule.mean, std, len));
        let bytes = bytes.ok_or_else(|| Error::weight(name, "a tensor that fits into memory", format!("{shape:?}")))?;
        let range = 0..bytes.len();
        Tensor::new(name, Dtype::Bf16, shape, Arc::new(bytes), range)
    }

    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

/// `len` elements of tensor `name`, as little-endian bf16, if there is memory for them. Each is made from its index
/// alone, so the threads may share them out as they like.
fn bf16_bytes(name: &str, seed: u64, mean: f64, std: f64, len: usize) -> Option<Vec<u8>> {
    const BLOCK: usize = 1 << 14;
    let size = len.checked_mul(2)?;
    // A failed `vec!` would end the program, so this asks first.
    Vec::<u8>::new().try_reserve_exact(size).ok()?;
    let mut bytes = vec![0; size];
    let base = splitmix64(fnv1a64(name) ^ seed);
    let sqrt_3 = 3f64.sqrt();
    bytes.par_chunks_mut(2 * BLOCK).enumerate().for_each(|(block, bytes)| {
        let (elements, _) = bytes.as_chunks_mut::<2>();
        let first = base.wrapping_add((block * BLOCK) as u64);
        for (i, element) in elements.iter_mut().enumerate() {
            let z = splitmix64(first.wrapping_add(i as u64));
            let s = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
            let u = ((s as f64 + 2.0) / 65536.0 - 2.0) * sqrt_3;
            *element = bf16_bits((mean + u * std) as f32).to_le_bytes();
        }
    });
    Some(bytes)
}

/// A finite `x` as bf16, to nearest, ties to even: its upper half, plus one if the lower half is more than a half, or
/// is exactly a half and the upper half is odd. (A carry into the exponent is what rounding up to a power of two is.)
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Output `x` of the SplitMix64 generator, used as a mixing function: neighbouring `x` give unrelated results.
pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The 64-bit FNV-1a hash of a name's UTF-8 bytes.
pub fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use sha2::{Digest, Sha256};

    const NAME: &str = "model.layers.0.self_attn.kv_b_proj.weight";

    fn weights(rules: &str) -> serde_json::Result<GeneratedWeights> {
        serde_json::from_str(&format!(r#"{{"seed": 0, "rules": {rules}}}"#))
    }

    #[test]
    fn the_published_test_vector() {
        let by_std = weights(r#"[{"suffix": "kv_b_proj.weight", "std": 0.25}]"#).unwrap();
        let by_gain = weights(r#"[{"suffix": "weight", "gain": 1}]"#).unwrap();
        for weights in [by_std, by_gain] {
            let tensor = weights.tensor(NAME, &[128, 16]).unwrap();
            assert_eq!(tensor.bytes()[..8], [0x05, 0xbe, 0x20, 0xbe, 0xd2, 0x3e, 0x00, 0xbf]);
            assert_eq!(Sha256::digest(tensor.bytes())[..8], [0xe3, 0x78, 0xdc, 0x73, 0x68, 0x5a, 0x87, 0x7c]);
        }
    }

    #[test]
    fn known_hashes() {
        // From the reference implementations: SplitMix64 seeded with 0, FNV-1a of "" and "foobar".
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(fnv1a64(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a64("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn mean_and_std_are_the_rules() {
        let rules = r#"[{"suffix": "norm.weight", "mean": 1, "std": 0.3}, {"suffix": "", "gain": 2}]"#;
        let weights = weights(rules).unwrap();
        for (name, shape, mean, std) in [("norm.weight", [1, 200_000], 1.0, 0.3), ("proj", [500, 400], 0.0, 0.1)] {
            let mut x = vec![0f64; 200_000];
            weights.tensor(name, &shape).unwrap().widen(0, &mut x);
            let n = x.len() as f64;
            let found_mean = x.iter().sum::<f64>() / n;
            let found_std = (x.iter().map(|x| (x - found_mean).powi(2)).sum::<f64>() / n).sqrt();
            assert!((found_mean - mean).abs() < 4.0 * std / n.sqrt(), "{name}: mean {found_mean}");
            assert!((found_std / std - 1.0).abs() < 0.005, "{name}: std {found_std}");
            assert!(x.iter().all(|x| (x - mean).abs() <= 3.47 * std), "{name}: bounded");
        }
    }

    #[test]
    fn the_same_on_any_number_of_threads() {
        let weights = weights(r#"[{"suffix": "weight", "std": 1}]"#).unwrap();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| weights.tensor(NAME, &[40_001, 3]).unwrap().bytes().to_vec())
        };
        let one = with(1);
        assert!(one == with(2) && one == with(5));
        assert_ne!(one[..64], GeneratedWeights { seed: 1, ..weights.clone() }.tensor(NAME, &[32]).unwrap().bytes()[..]);
        assert_ne!(one[..64], weights.tensor("another.weight", &[32]).unwrap().bytes()[..]);
    }

    #[test]
    fn rounds_as_half_does() {
        for i in 0..1_000_000u64 {
            let x = f32::from_bits(splitmix64(i) as u32);
            if x.abs() < 3e38 {
                assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x}");
            }
        }
    }

    #[test]
    fn impossible_rules_are_refused() {
        for (rule, what) in [
            (r#"{"suffix": "w"}"#, "expected one of std and gain, found neither"),
            (r#"{"suffix": "w", "std": 1, "gain": 1}"#, "expected one of std and gain, found both"),
            (r#"{"suffix": "w", "std": -1}"#, "found mean 0 and std -1"),
            (r#"{"suffix": "w", "std": 0, "mean": 1e39}"#, "found mean 1000"),
            (r#"{"suffix": "w", "sd": 1}"#, "unknown field `sd`"),
            (r#"{"std": 1}"#, "missing field `suffix`"),
        ] {
            let refused = weights(&format!("[{rule}]")).unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
        }
        let refused = weights("[]").unwrap().tensor("x", &[1]).unwrap_err().to_string();
        assert_eq!(refused, "weight `x`: expected a rule whose suffix ends the name, found none among 0");
    }
}
