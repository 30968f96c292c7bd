//! Rotary tables of other parameters, positions or frequencies.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::config::RopeParameters;
use dsv2_reference::model::rope::{RotaryEmbedding, RotaryTables};
use dsv2_reference::stage::table::COS;
use ndarray::{Array2, Array3, ArrayD};
use serde_json::{Value, json};

use crate::case::Case;
use crate::mutants::At;
use crate::mutants::scene::Scene;

/// Whether a position is `limit` or beyond.
pub fn far(case: &Case, limit: i64) -> bool {
    let given = case.inputs.position_ids.as_ref().and_then(|positions| positions.iter().max().copied());
    given.unwrap_or(case.inputs.length() as i64 - 1) >= limit
}

/// The rotary embedding of the config with other parameters.
pub fn embedding(scene: &Scene<'_>, change: impl Fn(&mut RopeParameters)) -> Option<RotaryEmbedding> {
    let mut rope = scene.config().rope().ok()?;
    change(&mut rope);
    RotaryEmbedding::new(&with_rope(scene.config(), &rope), scene.dialect()).ok()
}

/// The tables with other parameters.
pub fn changed(scene: &Scene<'_>, at: At<'_>, change: impl Fn(&mut RopeParameters)) -> Option<ArrayD<f64>> {
    let embedding = embedding(scene, change)?;
    Some(pick(at, embedding.tables(&scene.positions(), None)))
}

/// The tables of other positions.
pub fn at_positions(scene: &Scene<'_>, at: At<'_>, positions: &Array2<i64>) -> Option<ArrayD<f64>> {
    Some(pick(at, embedding(scene, |_| {})?.tables(positions, None)))
}

/// The tables of other frequencies.
pub fn of_frequencies(scene: &Scene<'_>, at: At<'_>, frequencies: &[f32], factor: f64) -> ArrayD<f64> {
    of_angles(scene, at, factor, frequencies.len(), |position, i| f64::from(position as f32 * frequencies[i]))
}

/// The tables of `count` angles `angle(position, i)` for each new token.
pub fn of_angles(
    scene: &Scene<'_>,
    at: At<'_>,
    factor: f64,
    count: usize,
    angle: impl Fn(i64, usize) -> f64,
) -> ArrayD<f64> {
    let positions = scene.positions();
    let (rows, columns) = positions.dim();
    let angle = Array3::from_shape_fn((rows, columns, count), |(b, s, i)| angle(positions[[b, s]], i));
    (if at.kind == COS { angle.mapv(f64::cos) } else { angle.mapv(f64::sin) } * factor).into_dyn()
}

fn pick(at: At<'_>, tables: RotaryTables<f64>) -> ArrayD<f64> {
    if at.kind == COS { tables.cos.into_dyn() } else { tables.sin.into_dyn() }
}

/// The config with these rotary parameters, in the old layout.
fn with_rope(config: &DeepseekV2Config, rope: &RopeParameters) -> DeepseekV2Config {
    let mut scaling = json!({
        "type": rope.rope_type.name(), "factor": rope.factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow,
        "mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim, "attention_factor": rope.attention_factor,
        "truncate": rope.truncate, "low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor,
        "short_factor": rope.short_factor, "long_factor": rope.long_factor,
        "partial_rotary_factor": rope.partial_rotary_factor,
    });
    // The keys beside the dictionary overrule it, or fill it up.
    let mut extra = config.extra.clone();
    ["original_max_position_embeddings", "partial_rotary_factor"].iter().for_each(|key| {
        extra.shift_remove(*key);
    });
    if let Some(length) = rope.original_max_position_embeddings {
        scaling["original_max_position_embeddings"] = length.into();
    }
    let scaling = if let Value::Object(scaling) = scaling { Some(scaling) } else { None };
    DeepseekV2Config {
        rope_theta: Some(rope.rope_theta),
        rope_scaling: scaling,
        rope_parameters: None,
        extra,
        ..config.clone()
    }
}
