//! Laws of YaRN: the frequencies of a longer context, and the softmax scale.

use dsv2_reference::model::rope::{RotaryEmbedding, softmax_scale, yarn_get_mscale};
use dsv2_reference::{DeepseekV2Config, Dialect};
use dsv2_testing::for_all;
use proptest::prelude::*;
use serde_json::json;

/// YaRN's parameters, as config.json has them.
#[derive(Debug, Clone)]
struct Yarn {
    half: usize,
    base: u32,
    original: usize,
    beta_slow: u32,
    beta_fast: u32,
    factor: f64,
    mscale: f64,
    mscale_all_dim: f64,
}

fn yarn(factors: impl Strategy<Value = f64>) -> impl Strategy<Value = Yarn> {
    let mscale = || (1..=4_u32).prop_map(|quarters| f64::from(quarters) / 4.0);
    let bases = prop_oneof![Just(100_u32), Just(10_000), Just(500_000)];
    let original = (5..=13_u32).prop_map(|power| 1 << power);
    (2..=32_usize, bases, original, 1..=3_u32, 4..=64_u32, factors, mscale(), mscale()).prop_map(
        |(half, base, original, beta_slow, beta_fast, factor, mscale, mscale_all_dim)| Yarn {
            half,
            base,
            original,
            beta_slow,
            beta_fast,
            factor,
            mscale,
            mscale_all_dim,
        },
    )
}

fn stretched() -> impl Strategy<Value = f64> {
    (2..=64_u32).prop_map(f64::from)
}

const NOPE: usize = 6;

impl Yarn {
    fn config(&self) -> DeepseekV2Config {
        DeepseekV2Config::from_value(json!({
            "model_type": "deepseek_v2", "qk_nope_head_dim": NOPE, "qk_rope_head_dim": 2 * self.half,
            "rope_theta": self.base, "max_position_embeddings": 163_840,
            "rope_scaling": {"type": "yarn", "factor": self.factor, "original_max_position_embeddings": self.original,
                             "beta_slow": self.beta_slow, "beta_fast": self.beta_fast, "mscale": self.mscale,
                             "mscale_all_dim": self.mscale_all_dim},
        }))
        .expect("a possible config")
    }

    /// Frequency i without YaRN.
    fn plain(&self, i: usize) -> f64 {
        f64::from(self.base).powf(-(i as f64) / self.half as f64)
    }

    /// The index (a real number) of the frequency that turns so often within the original context.
    fn index_of(&self, turns: u32) -> f64 {
        let wavelength = self.original as f64 / (f64::from(turns) * std::f64::consts::TAU);
        self.half as f64 * wavelength.ln() / f64::from(self.base).ln()
    }

    /// Between which indices the ramp runs.
    fn ramp(&self) -> (f64, f64) {
        let (low, high) = (self.index_of(self.beta_fast).floor(), self.index_of(self.beta_slow).ceil());
        (low.max(0.0), high.min(2.0 * self.half as f64 - 1.0))
    }

    /// How much of frequency i is kept, and not divided by the factor, if it is `theta`.
    fn kept(&self, i: usize, theta: f64) -> f64 {
        (theta / self.plain(i) - 1.0 / self.factor) / (1.0 - 1.0 / self.factor)
    }

    /// The frequencies if so much of each is kept.
    fn mixed(&self, kept: impl Fn(usize) -> f64) -> Vec<f32> {
        let theta = |i: usize| self.plain(i) * (kept(i) + (1.0 - kept(i)) / self.factor);
        (0..self.half).map(|i| theta(i) as f32).collect()
    }
}

/// What YaRN makes of a model.
struct Rope {
    inv_freq: Vec<f32>,
    /// On cosine and sine.
    attention_factor: f64,
    softmax_scale: f64,
}

type Stretch = dyn Fn(&Yarn) -> Rope;

fn stretch_in(dialect: Dialect, yarn: &Yarn) -> Rope {
    let config = yarn.config();
    let rotary = RotaryEmbedding::new(&config, dialect).expect("possible parameters");
    Rope {
        inv_freq: rotary.inv_freq().to_vec(),
        attention_factor: rotary.attention_factor(),
        softmax_scale: softmax_scale(&config, dialect).expect("possible parameters"),
    }
}

fn stretch(yarn: &Yarn) -> Rope {
    stretch_in(Dialect::Hf, yarn)
}

/// The reference with other frequencies.
fn with_frequencies(of: impl Fn(&Yarn) -> Vec<f32>) -> impl Fn(&Yarn) -> Rope {
    move |yarn| Rope { inv_freq: of(yarn), ..stretch(yarn) }
}

#[test]
fn yarn_keeps_fast_frequencies_divides_slow_ones_and_mixes_by_index_between() {
    // Frequencies are fp32. Worst case of 1500: 4.1e-7.
    let law = |stretch: &Stretch, yarn: Yarn| {
        let (low, high) = yarn.ramp();
        for (i, &theta) in stretch(&yarn).inv_freq.iter().enumerate() {
            let expected = if low == high {
                1.0 - f64::from(u8::from(i as f64 > low))
            } else {
                (1.0 - (i as f64 - low) / (high - low)).clamp(0.0, 1.0)
            };
            let kept = yarn.kept(i, f64::from(theta));
            prop_assert!((kept - expected).abs() <= 2e-6, "index {i}: {kept}, expected {expected}");
        }
        Ok(())
    };
    let by_turns = |yarn: &Yarn| {
        let turns = |i: usize| yarn.original as f64 * yarn.plain(i) / std::f64::consts::TAU;
        let (slow, fast) = (f64::from(yarn.beta_slow), f64::from(yarn.beta_fast));
        yarn.mixed(|i| ((turns(i) - slow) / (fast - slow)).clamp(0.0, 1.0))
    };
    let unrounded = |yarn: &Yarn| {
        let (low, high) = (yarn.index_of(yarn.beta_fast), yarn.index_of(yarn.beta_slow));
        yarn.mixed(|i| (1.0 - (i as f64 - low) / (high - low)).clamp(0.0, 1.0))
    };
    let upside_down = |yarn: &Yarn| {
        let (low, high) = yarn.ramp();
        yarn.mixed(|i| ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0))
    };
    for_all(yarn(stretched()), law)
        .holds_for(&stretch)
        .fails_for("the ramp of the YaRN paper, linear in the number of turns", &with_frequencies(by_turns))
        .fails_for("the ends of the ramp are not rounded", &with_frequencies(unrounded))
        .fails_for("the ramp is upside down", &with_frequencies(upside_down))
        .fails_for("all frequencies are divided", &with_frequencies(|yarn| yarn.mixed(|_| 0.0)));
}

#[test]
fn yarns_frequencies_fall_and_lie_between_the_plain_ones_and_those_divided() {
    let law = |stretch: &Stretch, yarn: Yarn| {
        let frequencies = stretch(&yarn).inv_freq;
        prop_assert_eq!(frequencies[0], 1.0);
        prop_assert!(frequencies.is_sorted_by(|a, b| a >= b));
        for (i, &theta) in frequencies.iter().enumerate() {
            let (theta, plain) = (f64::from(theta), yarn.plain(i));
            prop_assert!(theta <= plain * (1.0 + 1e-6) && theta >= plain / yarn.factor * (1.0 - 1e-6));
        }
        Ok(())
    };
    for_all(yarn(stretched()), law)
        .holds_for(&stretch)
        .fails_for(
            "frequencies are multiplied by the factor",
            &with_frequencies(|yarn| stretch(yarn).inv_freq.iter().map(|theta| theta * yarn.factor as f32).collect()),
        )
        .fails_for(
            "frequencies are in the opposite order",
            &with_frequencies(|yarn| stretch(yarn).inv_freq.into_iter().rev().collect()),
        );
}

#[test]
fn a_factor_of_one_is_no_stretch_and_a_smaller_one_adds_no_length_factor() {
    let law = |stretch: &Stretch, yarn: Yarn| {
        let rope = stretch(&yarn);
        prop_assert_eq!((rope.attention_factor, rope.softmax_scale), (1.0, ((NOPE + 2 * yarn.half) as f64).powf(-0.5)));
        if yarn.factor == 1.0 {
            for (i, &theta) in rope.inv_freq.iter().enumerate() {
                prop_assert!((f64::from(theta) / yarn.plain(i) - 1.0).abs() <= 1e-6, "index {i}");
            }
        }
        Ok(())
    };
    let unguarded = |yarn: &Yarn| {
        let mscale = 0.1 * yarn.mscale_all_dim * yarn.factor.ln() + 1.0;
        Rope { softmax_scale: mscale * mscale * stretch(yarn).softmax_scale, ..stretch(yarn) }
    };
    let extended_by_one = |yarn: &Yarn| stretch(&Yarn { factor: yarn.factor + 1.0, ..yarn.clone() });
    for_all(yarn(prop_oneof![Just(1.0), Just(0.5)]), law)
        .tried(64)
        .holds_for(&stretch)
        .fails_for("a logarithm below zero", &unguarded)
        .fails_for("the factor is one too large", &extended_by_one);
}

#[test]
fn cosine_and_sine_are_unscaled_just_if_both_mscales_are_equal() {
    let law = |stretch: &Stretch, yarn: Yarn| {
        prop_assert_eq!(stretch(&yarn).attention_factor == 1.0, yarn.mscale == yarn.mscale_all_dim);
        Ok(())
    };
    for_all(yarn(stretched()), law).tried(64).holds_for(&stretch).fails_for("the factor is mscale alone", &|yarn| {
        // kekzl/imp#880; the error grew with the position
        Rope { attention_factor: yarn_get_mscale(yarn.factor, yarn.mscale), ..stretch(yarn) }
    });
}

#[test]
fn the_rotary_part_of_a_score_grows_by_mscale_squared_whatever_mscale_all_dim_is() {
    // Once in the query, once in the key, and the rest in the softmax scale. Worst case of 1500: 4.4e-16.
    let law = |stretch: &Stretch, yarn: Yarn| {
        let rope = stretch(&yarn);
        let plain = ((NOPE + 2 * yarn.half) as f64).powf(-0.5);
        let growth = rope.attention_factor.powi(2) * rope.softmax_scale / plain;
        let expected = yarn_get_mscale(yarn.factor, yarn.mscale).powi(2);
        prop_assert!((growth / expected - 1.0).abs() <= 2e-15, "{growth} {expected}");
        Ok(())
    };
    let once = |yarn: &Yarn| {
        let mscale = yarn_get_mscale(yarn.factor, yarn.mscale_all_dim);
        Rope { softmax_scale: stretch(yarn).softmax_scale / mscale, ..stretch(yarn) }
    };
    for_all(yarn(stretched()), law)
        .tried(64)
        .holds_for(&stretch)
        .fails_for("Transformers 4.54 to 5.14", &|yarn| stretch_in(Dialect::HfPre515, yarn))
        .fails_for("mscale is there once", &once);
}
