//! How much noise there is: what plain implementations err by, and how many of them tell.

use dsv2_metrics::{Metrics, are_few};
use dsv2_reference::Dtype;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::KV_B_PROJ;
use dsv2_reference::tap::NoTap;
use indexmap::IndexMap;

use crate::backend::{Backend, Reference, Settings};
use crate::budget::{LOCAL_FACTORS, NARROW_LOCAL_FACTORS};
use crate::case::Case;
use crate::error::Result;
use crate::inputs::AttentionMask;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::{PartialSums, RoundedParts, storage};
use crate::trace::Trace;
use crate::values::Values;

/// How many times the noise a stage may be off by itself.
pub fn factors(precision: Precision) -> Metrics {
    if precision.narrow().is_some() { NARROW_LOCAL_FACTORS } else { LOCAL_FACTORS }
}

/// What a plain implementation computes in: an f64 candidate is held to what f32 can do, since parts of the model are fp32 by
/// definition.
pub fn plain(precision: Precision) -> Precision {
    if precision == Precision::F64 { Precision::F32 } else { precision }
}

/// What rounding costs a stage in a narrow type as a rule, where the candidate has `written` it in a type.
pub(crate) fn usual_noise(name: &str, written: Option<Dtype>, case: &Case, precision: Precision) -> f64 {
    let Some(narrow) = precision.narrow() else { return 0.0 };
    let usual = storage::usual_rounding(name, &case.config, case.partial_sums, narrow);
    match precision.stored(name) == narrow {
        true => usual,
        // fp32 by definition, but written in the narrow type all the same, and so may be what it is computed from
        false if written == Some(narrow) => 3.0 * usual,
        false => 0.0,
    }
}

/// The form of attention of a plain run: the candidate may have the other one, unless it holds what only this one computes.
pub(super) fn form(draw: u64, teacher: &Trace) -> AttentionForm {
    let expands = |name: &str| Stage::parse(name).is_some_and(|stage| stage.kind == KV_B_PROJ);
    match draw.is_multiple_of(2) || teacher.iter().any(|(name, _)| expands(name)) {
        true => AttentionForm::Expanded,
        false => AttentionForm::Absorbed,
    }
}

/// How many plain runs tell how much noise there is: one, unless the model is so narrow, and the inputs so short, that the
/// error of some stage is that of a few numbers. (Then a run costs nothing.)
pub(crate) fn draws(case: &Case) -> u64 {
    let config = &case.config;
    let narrowest = [
        config.hidden_size,
        config.kv_lora_rank,
        config.q_lora_rank.unwrap_or(config.hidden_size),
        config.qk_rope_head_dim,
        config.num_attention_heads * config.v_head_dim,
        config.intermediate_size,
        config.moe_intermediate_size,
    ];
    let tokens = case.inputs.batch() * case.inputs.length();
    let masked = match &case.inputs.attention_mask {
        Some(AttentionMask::Padding(attend)) => attend.iter().filter(|real| !**real).count(),
        _ => 0,
    };
    let few = |width: usize| width < LEAST_WIDTH || are_few(((tokens - masked) * width) as f64);
    let few = narrowest.into_iter().min().is_some_and(few);
    let affordable = config.parameter_count() * (tokens as u64) < AFFORDABLE;
    if few && affordable { DRAWS } else { 1 }
}

/// The relative error of w sums that may all nearly cancel has a mean square only from this w on: below, the worst row of one
/// run says nothing about that of another, however many rows there are.
const LEAST_WIDTH: usize = 3;
/// How many plain runs of a small model are made.
const DRAWS: u64 = 16;
/// Weights times tokens of what is a small model.
const AFFORDABLE: u64 = 1 << 24;

/// How far each stage of the `plain` runs is from the truth, in the mean.
pub fn noise(plain: &[Trace], truth: &Trace, rows: &ComparedRows) -> IndexMap<String, Metrics> {
    root_mean_squares(&plain.iter().map(|plain| distances(plain, truth, rows)).collect::<Vec<_>>())
}

/// What rounding the parts of sums over ranks costs each stage at the end of a run in `precision`, which goes where `choices` say:
/// of the f64 reference with no other errors than these, against the same without any. Nothing, if one device has all of each sum.
///
/// # Errors
/// If the reference refuses the case.
pub fn of_partial_sums(
    case: &Case,
    choices: Option<&Trace>,
    precision: Precision,
) -> Result<IndexMap<String, Metrics>> {
    let Some(narrow) = precision.narrow().filter(|_| case.partial_sums != PartialSums::default()) else {
        return Ok(IndexMap::new());
    };
    let settings = Settings { replay: choices, ..Settings::default() };
    let with_errors =
        |draw| Reference.run(case, &settings, &mut RoundedParts::new(case.partial_sums, narrow, draw, &|_| false));
    let truth = Reference.run(case, &settings, &mut NoTap)?;
    let runs = (0..draws(case)).map(with_errors).collect::<Result<Vec<_>>>()?;
    Ok(noise(&runs, &truth, &ComparedRows::of(&case.inputs)))
}

/// How far each stage of a run is from the truth, as far as it has them.
pub(super) fn distances(run: &Trace, truth: &Trace, rows: &ComparedRows) -> IndexMap<String, Metrics> {
    let of = |(name, want): (&str, &Values)| Some((name.to_owned(), rows.measure(name, run.get(name)?, want)?.metrics));
    truth.iter().filter_map(of).collect()
}

/// The means of what is known of several runs, of the stages that all of them have.
pub(super) fn root_mean_squares(seen: &[IndexMap<String, Metrics>]) -> IndexMap<String, Metrics> {
    let names = seen.first().into_iter().flat_map(IndexMap::keys);
    let of = |name: &String| {
        let of_all: Option<Vec<Metrics>> = seen.iter().map(|run| run.get(name).copied()).collect();
        Some((name.clone(), root_mean_square(&of_all?)))
    };
    names.filter_map(of).collect()
}

/// The same, which in one measure is no less than is `usual`.
pub(crate) fn with_usual(seen: &[Metrics], usual: f64) -> Metrics {
    let mut noise = root_mean_square(seen);
    noise.l2 = noise.l2.max(usual);
    noise
}

/// The mean of the noise of several runs.
pub(crate) fn root_mean_square(seen: &[Metrics]) -> Metrics {
    let squares = seen.iter().fold(Metrics::default(), |sum, seen| sum.zip(seen, |sum, x| sum + x * x));
    Metrics::from_values(squares.values().map(|sum| (sum / seen.len() as f64).sqrt()))
}
