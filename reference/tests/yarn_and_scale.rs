//! Checklist items 13 to 20: the frequencies, YaRN, and the softmax scale.

use crate::common::{difference, ids, input, logits, model_in};
use approx::{assert_abs_diff_eq, assert_relative_eq};
use dsv2_reference::model::rope::{RotaryEmbedding, softmax_scale};
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::{array, s};
use serde_json::{Value, json};

/// V2's sizes (n = 128, r = 64, original context 4096) with other rotary parameters.
pub fn v2_with(rope_scaling: Value) -> DeepseekV2Config {
    DeepseekV2Config {
        rope_scaling: rope_scaling.as_object().cloned(),
        max_position_embeddings: 4096,
        ..DeepseekV2Config::preset("v2").unwrap()
    }
}

fn inv_freq(rope_scaling: Value) -> Vec<f64> {
    let rotary = RotaryEmbedding::new(&v2_with(rope_scaling), Dialect::Hf).unwrap();
    rotary.inv_freq().iter().map(|&theta| f64::from(theta)).collect()
}

/// theta^(-2i/r).
pub fn plain(theta: f64) -> Vec<f64> {
    (0..32).map(|i| theta.powf(-f64::from(2 * i) / 64.0)).collect()
}

/// Each frequency of YaRN divided by the plain one.
fn yarn_ratios(rope_scaling: Value) -> Vec<f64> {
    inv_freq(rope_scaling).iter().zip(plain(10000.0)).map(|(yarn, plain)| yarn / plain).collect()
}

/// Fp32 results of a few operations.
const FP32: f64 = 2.5e-7;

#[test]
fn linear_divides_every_frequency_by_the_factor() {
    let linear = inv_freq(json!({"type": "linear", "factor": 4.0}));
    for (found, expected) in linear.into_iter().zip(plain(10000.0)) {
        assert_relative_eq!(found, expected / 4.0, max_relative = FP32);
    }
}

#[test]
fn other_betas_move_the_ramp() {
    // corr(16) = 12.88 and corr(2) = 20.09: the ramp goes from 12 to 21.
    let ratios = yarn_ratios(json!({"type": "yarn", "factor": 40, "beta_fast": 16, "beta_slow": 2,
                                    "original_max_position_embeddings": 4096}));
    assert_eq!(ratios.iter().filter(|ratio| (**ratio - 1.0).abs() < 1e-6).count(), 13);
    assert_eq!(ratios.iter().filter(|ratio| (**ratio - 0.025).abs() < 1e-6).count(), 11);
}

#[test]
fn a_beta_of_zero_or_null_is_the_default() {
    let defaults = yarn_ratios(json!({"type": "yarn", "factor": 40}));
    assert_eq!(yarn_ratios(json!({"type": "yarn", "factor": 40, "beta_fast": 0, "beta_slow": null})), defaults);
}

#[test]
fn without_truncation_the_ramp_ends_between_two_indices() {
    let ratios = yarn_ratios(json!({"type": "yarn", "factor": 40, "truncate": false}));
    let turns = |n: f64| 64.0 * (4096.0 / (2.0 * std::f64::consts::PI * n)).ln() / (2.0 * 10000_f64.ln());
    assert_abs_diff_eq!(turns(32.0), 10.472, epsilon = 1e-3);
    assert_abs_diff_eq!(turns(1.0), 22.513, epsilon = 1e-3);
    for (i, ratio) in ratios.into_iter().enumerate() {
        let ramp = ((i as f64 - turns(32.0)) / (turns(1.0) - turns(32.0))).clamp(0.0, 1.0);
        assert_relative_eq!(ratio, 1.0 - ramp + ramp / 40.0, max_relative = 2e-5);
    }
}

/// ms(40, 0.707), ms(40, 1).
const MS_707: f64 = 1.260_803_777_40;

const MS_1: f64 = 1.368_887_945_41;

#[test]
fn the_eight_combinations_of_mscale_mscale_all_dim_and_attention_factor() {
    let (m, a, f) = (Some(0.707), Some(1.0), Some(0.5));
    let plain = 0.072_168_783_6;
    // mscale, mscale_all_dim, attention_factor: factor on cosine and sine in hf and in deepseek, softmax scale in both.
    let table = [
        (None, None, None, MS_1, MS_1, plain),
        (m, None, None, MS_1, MS_707, plain),
        (None, Some(0.707), None, MS_1, MS_1 / MS_707, plain * MS_707 * MS_707),
        (m, a, None, MS_707 / MS_1, MS_707 / MS_1, plain * MS_1 * MS_1),
        (None, None, f, 0.5, MS_1, plain),
        (m, None, f, 0.5, MS_707, plain),
        (None, a, f, 0.5, 1.0, plain * MS_1 * MS_1),
        (m, a, f, 0.5, MS_707 / MS_1, plain * MS_1 * MS_1),
    ];
    for (mscale, all_dim, attention_factor, hf, deepseek, scale) in table {
        let mut rope = json!({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096});
        for (key, value) in [("mscale", mscale), ("mscale_all_dim", all_dim), ("attention_factor", attention_factor)] {
            if let Some(value) = value {
                rope[key] = json!(value);
            }
        }
        let config = v2_with(rope.clone());
        for dialect in [Dialect::Hf, Dialect::HfPre515] {
            let rotary = RotaryEmbedding::new(&config, dialect).unwrap();
            assert_abs_diff_eq!(rotary.attention_factor(), hf, epsilon = 1e-9);
        }
        assert_abs_diff_eq!(softmax_scale(&config, Dialect::Hf).unwrap(), scale, epsilon = 1e-9);
        assert_abs_diff_eq!(softmax_scale(&config, Dialect::HfPre515).unwrap(), plain, epsilon = 1e-9);
        // DeepSeek's code has no such key as attention_factor, and reads none
        let rotary = RotaryEmbedding::new(&config, Dialect::Deepseek).unwrap();
        assert_abs_diff_eq!(rotary.attention_factor(), deepseek, epsilon = 1e-9);
        assert_abs_diff_eq!(softmax_scale(&config, Dialect::Deepseek).unwrap(), scale, epsilon = 1e-9);
    }
}

#[test]
fn an_mscale_of_zero_counts_as_missing_in_hf_and_as_zero_in_deepseek() {
    let config = v2_with(json!({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
                                "mscale": 0, "mscale_all_dim": 1}));
    let factor = |dialect| RotaryEmbedding::new(&config, dialect).unwrap().attention_factor();
    assert_abs_diff_eq!(factor(Dialect::Hf), 1.3689, epsilon = 1e-4);
    assert_abs_diff_eq!(factor(Dialect::Deepseek), 0.7305, epsilon = 1e-4);
}

#[test]
fn the_attention_factor_multiplies_cosine_and_sine() {
    let yarn = json!({"type": "yarn", "factor": 40, "attention_factor": 0.5});
    let rotary = RotaryEmbedding::new(&v2_with(yarn), Dialect::Hf).unwrap();
    let tables = rotary.tables::<f64>(&array![[0, 3]], None);
    assert_eq!((tables.cos[[0, 0, 7]], tables.sin[[0, 0, 7]]), (0.5, 0.0));
    let angle = f64::from(3.0 * rotary.inv_freq()[7]);
    assert_eq!((tables.cos[[0, 1, 7]], tables.sin[[0, 1, 7]]), (0.5 * angle.cos(), 0.5 * angle.sin()));
}

#[test]
fn the_softmax_scales_of_the_released_models() {
    let scale = |preset: &str, dialect| softmax_scale(&DeepseekV2Config::preset(preset).unwrap(), dialect).unwrap();
    for dialect in [Dialect::Hf, Dialect::Deepseek] {
        assert_abs_diff_eq!(scale("v2", dialect), 0.114_721_386_8, epsilon = 1e-10);
        assert_abs_diff_eq!(scale("v2-lite", dialect), 0.114_721_386_8, epsilon = 1e-10);
        assert_abs_diff_eq!(scale("v2.5", dialect), 0.135_233_778_9, epsilon = 1e-10);
    }
    assert_abs_diff_eq!(softmax_scale(&v2_with(Value::Null), Dialect::Hf).unwrap(), 0.072_168_783_6, epsilon = 1e-10);
}

#[test]
fn transformers_before_5_15_leaves_mscale_out_of_the_softmax_scale() {
    for preset in ["v2", "v2-lite", "v2.5"] {
        let config = DeepseekV2Config::preset(preset).unwrap();
        let scale = softmax_scale(&config, Dialect::HfPre515).unwrap();
        assert_abs_diff_eq!(scale, 0.072_168_783_6, epsilon = 1e-10);
    }
    let [hf, old] = [Dialect::Hf, Dialect::HfPre515].map(|dialect| model_in::<f64>(dialect, json!({})));
    let [hf, old] = [hf, old].map(|model| logits(&model, &input(ids(1, 9))));
    assert_eq!(hf.slice(s![.., 0, ..]), old.slice(s![.., 0, ..]));
    assert!(difference(&hf, &old) > 0.1);
    // Without YaRN's keys the two are one.
    let rope = json!({"rope_scaling": null});
    let [hf, old] = [Dialect::Hf, Dialect::HfPre515].map(|dialect| model_in::<f64>(dialect, rope.clone()));
    assert_eq!(logits(&hf, &input(ids(1, 9))), logits(&old, &input(ids(1, 9))));
}

#[test]
fn mscale_all_dim_scales_the_softmax_of_linear_and_dynamic_too() {
    for rope_type in ["linear", "dynamic", "yarn"] {
        let config = v2_with(json!({"type": rope_type, "factor": 40, "mscale_all_dim": 1.0}));
        let ratio = softmax_scale(&config, Dialect::Hf).unwrap() * 192_f64.sqrt();
        assert_abs_diff_eq!(ratio, 1.873_854_2, epsilon = 1e-7);
    }
    let default = v2_with(json!({"type": "default", "factor": 40, "mscale_all_dim": 1.0}));
    assert_eq!(softmax_scale(&default, Dialect::Hf).unwrap(), 192_f64.powf(-0.5));
}
