//! Stages that are copies of others, which must be bit-identical; and what a decoding step found in its cache, which is none.

use std::ops::Range;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::stage::{Layout, Stage, flow};
use ndarray::{ArrayD, Axis, Slice};

use crate::case::Case;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::values::Values;

/// Whether the stage must be bit-identical: a copy of what the trace holds, kept in the type of the computation.
pub(crate) fn is_exact(name: &str, held: impl Fn(&str) -> bool, config: &DeepseekV2Config, cache: CacheFormat) -> bool {
    let kept = |source: &String| cache == CacheFormat::Plain && held(source);
    flow::is_copy(name) && flow::inputs(name, config, |_| true).iter().all(kept)
}

/// As a computation in `precision` stores the stage.
pub fn stored(precision: Precision, name: &str, a: &ArrayD<f64>) -> Values {
    let dtype = precision.stored(name);
    let tensor = dsv2_reference::Tensor::from_values(dtype, a.shape(), a.iter().copied());
    Values::Real(dtype, tensor.to_array())
}

/// What a copy of `a` should be: stored as the computation stores it, or left as it is, if that is what the trace `got`. What was
/// cached before the new tokens is no copy of anything that the trace holds: it is left as the trace has it.
pub(crate) fn copied(
    case: &Case,
    precision: Precision,
    name: &str,
    a: &ArrayD<f64>,
    got: &Values,
    rows: &ComparedRows,
) -> Values {
    let before = cached_before(case, name);
    let new = |copy: Values| match before {
        0 => copy,
        _ => with_keys_of(got, &(0..before.min(a.len_of(Axis(1)))), &copy).unwrap_or(copy),
    };
    let as_it_is = new(Values::Real(precision.stored(name), a.clone()));
    if is_same(name, got, &as_it_is, rows) { as_it_is } else { new(stored(precision, name, a)) }
}

/// A cache with some keys as the trace `got` has them; nothing, if that is of another shape.
pub(super) fn with_keys_of(got: &Values, keys: &Range<usize>, cache: &Values) -> Option<Values> {
    let (Values::Real(dtype, cache), Values::Real(_, got)) = (cache, got.fit(cache.shape())?) else { return None };
    let (mut cache, keys) = (cache.clone(), Slice::from(keys.clone()));
    cache.slice_axis_mut(Axis(1), keys).assign(&got.slice_axis(Axis(1), keys));
    Some(Values::Real(*dtype, cache))
}

/// Whether a cache of this shape holds what was there before a decoding step, and what is new: they are judged by themselves, for
/// what was there before may be off by more.
pub(crate) fn is_cached_by_step(case: &Case, name: &str, shape: &[usize]) -> bool {
    let before = cached_before(case, name);
    before > 0 && flow::is_copy(name) && shape.get(1).is_some_and(|&keys| keys > before)
}

/// How many keys of this copy were cached before the tokens that are looked at.
pub(super) fn cached_before(case: &Case, name: &str) -> usize {
    if Stage::parse(name).is_some_and(|stage| stage.layout == Layout::Keys) { case.inputs.past() } else { 0 }
}

/// Whether no number that is compared differs.
pub(super) fn is_same(name: &str, got: &Values, want: &Values, rows: &ComparedRows) -> bool {
    rows.measure(name, got, want).is_some_and(|compared| !compared.differs())
}
