//! Other ways to write the choice of experts: a weight for every expert, and shared experts as columns of their own.

use dsv2_reference::stage::{Layout, Stage, sibling};
use dsv2_reference::{DeepseekV2Config, Dtype};
use ndarray::{ArrayD, Axis, Slice};

use super::Recognised;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

/// What is said of weights that come for every expert.
pub const DENSE: &str = "a weight for every expert, [B·S, E]";
/// The same, where the choice of experts is not in the dump.
const DENSE_AND_CHOICE: &str = "a weight for every expert, [B·S, E]; topk_indices are those that have one";
/// What is said of columns for shared experts.
const SHARED: &str = "shared experts as the last experts, of weight 1";

/// Brings experts and weights that come so into the form of the model: k for each token.
pub fn of_tokens(dump: Trace, config: &DeepseekV2Config, rows: &ComparedRows) -> (Trace, Vec<Recognised>) {
    let (Ok(k), experts) = (config.experts_per_token(), config.num_experts()) else { return (dump, Vec::new()) };
    let mut recognised = Vec::new();
    let mut changed: Vec<(String, Values)> = Vec::new();
    for (name, values) in dump.iter() {
        let width = values.shape().last().copied().unwrap_or(0);
        let found = match values {
            Values::Index(chosen) if name.ends_with(".topk_indices") => {
                routed(name, chosen, k, experts, config, rows).map(|chosen| (vec![Values::Index(chosen)], SHARED))
            }
            Values::Real(dtype, weights) if name.ends_with(".topk_weights") && width == experts && experts != k => {
                let chosen = dump.get(&sibling(name, "topk_indices"));
                dense(name, weights, chosen, k, rows).map(|(weights, chosen)| {
                    let says = if chosen.is_some() { DENSE_AND_CHOICE } else { DENSE };
                    let weights = Values::Real(*dtype, weights);
                    (Some(weights).into_iter().chain(chosen.map(Values::Index)).collect(), says)
                })
            }
            Values::Real(dtype, weights) if name.ends_with(".topk_weights") => {
                let shared = |weight: f64| is_shared(weight, *dtype, config);
                without_last(name, weights, k, config, rows, shared)
                    .map(|weights| (vec![Values::Real(*dtype, weights)], SHARED))
            }
            _ => None,
        };
        if let Some((values, says)) = found {
            recognised.push(Recognised::new(name, says));
            let names = [name.to_owned(), sibling(name, "topk_indices")];
            changed.extend(names.into_iter().zip(values));
        }
    }
    let kept = dump.iter().filter(|(name, _)| !changed.iter().any(|(other, _)| other == name));
    let kept: Vec<_> = kept.map(|(name, values)| (name.to_owned(), values.clone())).collect();
    (kept.into_iter().chain(changed).collect(), recognised)
}

/// The choice without the last columns, if these are shared experts: they come after all others.
fn routed(
    name: &str,
    chosen: &ArrayD<i64>,
    k: usize,
    experts: usize,
    config: &DeepseekV2Config,
    rows: &ComparedRows,
) -> Option<ArrayD<i64>> {
    let most = experts + config.n_shared_experts.unwrap_or(0);
    without_last(name, chosen, k, config, rows, |id| (experts..most).contains(&usize::try_from(id).unwrap_or(0)))
}

/// A shared expert's weight: 1, or what `routed_scaling_factor` makes 1.
fn is_shared(weight: f64, dtype: Dtype, config: &DeepseekV2Config) -> bool {
    let rounding = 2.0 * crate::precision::unit_roundoff(dtype);
    [1.0, 1.0 / config.routed_scaling_factor].iter().any(|shared| (weight / shared - 1.0).abs() <= rounding)
}

/// The first k columns, if all others are those of shared experts wherever anybody may look.
fn without_last<A: Copy>(
    name: &str,
    a: &ArrayD<A>,
    k: usize,
    config: &DeepseekV2Config,
    rows: &ComparedRows,
    is_shared: impl Fn(A) -> bool,
) -> Option<ArrayD<A>> {
    let last = Axis(a.ndim().checked_sub(1)?);
    let more = a.len_of(last).checked_sub(k).filter(|more| *more > 0)?;
    (more <= config.n_shared_experts?).then_some(())?;
    let read = rows_of(name, a, rows);
    let mut tokens = a.lanes(last).into_iter().enumerate().filter(|(row, _)| read(*row));
    tokens
        .all(|(_, token)| token.iter().skip(k).all(|&x| is_shared(x)))
        .then(|| a.slice_axis(last, Slice::from(..k)).to_owned())
}

/// The weights of the chosen experts, and their choice if the dump does not hold it. All other weights must be 0.
fn dense(
    name: &str,
    weights: &ArrayD<f64>,
    chosen: Option<&Values>,
    k: usize,
    rows: &ComparedRows,
) -> Option<(ArrayD<f64>, Option<ArrayD<i64>>)> {
    let last = Axis(weights.ndim().checked_sub(1)?);
    let experts = weights.len_of(last);
    let tokens = weights.len() / experts.max(1);
    let given = match chosen {
        Some(Values::Index(chosen)) => Some(chosen.to_shape((tokens, k)).ok()?),
        Some(_) => return None,
        None => None,
    };
    let read = rows_of(name, weights, rows);
    let (mut of_chosen, mut choice) = (Vec::with_capacity(tokens * k), Vec::with_capacity(tokens * k));
    for (row, token) in weights.lanes(last).into_iter().enumerate() {
        let mut heavy: Vec<usize> = (0..experts).filter(|&e| token[e] != 0.0).collect();
        heavy.sort_by(|&a, &b| token[b].total_cmp(&token[a]));
        let own: Vec<usize> = match &given {
            _ if !read(row) => (0..k).collect(),
            Some(given) => {
                let exists = |&e: &i64| usize::try_from(e).ok().filter(|&e| e < experts);
                given.row(row).iter().map(exists).collect::<Option<_>>()?
            }
            None => heavy.clone(),
        };
        let fits = own.len() == k && heavy.iter().all(|e| own.contains(e));
        if read(row) && !fits {
            return None;
        }
        of_chosen.extend(own.iter().map(|&e| token[e]));
        choice.extend(own.iter().map(|&e| e as i64));
    }
    let mut shape = weights.shape().to_vec();
    shape[last.0] = k;
    let weights = ArrayD::from_shape_vec(shape.clone(), of_chosen).ok()?;
    let choice = if given.is_some() { None } else { Some(ArrayD::from_shape_vec(shape, choice).ok()?) };
    Some((weights, choice))
}

/// Which rows somebody reads; all, if the rows are not the model's.
fn rows_of<A>(name: &str, a: &ArrayD<A>, rows: &ComparedRows) -> impl Fn(usize) -> bool + use<A> {
    let width = a.shape().last().copied().unwrap_or(1).max(1);
    let read = Stage::parse(name)
        .filter(|stage| stage.layout == Layout::Flat)
        .and_then(|stage| rows.of_stage(&stage, &[a.len() / width, width]));
    move |row| read.as_ref().is_none_or(|read| read[row])
}
