//! What engines feed and dump in other shapes than the model's. Judge and truth see none of it.
//!
//! | the dump has | the judge sees |
//! |---|---|
//! | logits of the last tokens alone | a model that computes no others |
//! | logits of a padded vocabulary | those of the tokens that exist |
//! | rows beyond the tokens (padded batches, CUDA graphs) | the first rows |
//! | tokens of unequal sequences laid end to end | one sequence with a mask ([`varlen`](crate::inputs::varlen)), its keys in that order |
//! | some layers, and the residual stream that enters them | these layers alone |
//! | one decoding step, and the rows of all tokens | the rows of the new tokens |
//! | one decoding step, and the cache before it or after it | the stages of a second chunk, and the cache after the first or the second |

pub mod extra_rows;
pub mod last_tokens;
mod new_tokens;
pub mod part;
pub mod vocabulary;

use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{CACHED_K_PE, CACHED_KV, TOPK_INDICES};

use super::dump::{Dump, Recognised};
use super::request::Request;
use super::truth::Truth;
use crate::case::Case;
use crate::error::Result;
use crate::inputs::Inputs;
use crate::values::Values;

/// The question that is meant by the shapes of the dump.
///
/// # Errors
/// If some layers alone are asked for, and the dump does not hold what enters them.
pub fn recognise(request: &Request, dump: &mut Dump) -> Result<Request> {
    let mut case = request.case.clone();
    part::take_in(&mut case, dump)?;
    let left_out = case.inputs.left_out.iter();
    dump.recognised.extend(left_out.map(|name| Recognised::new(name, "not fed (--ids-only)")));
    if let Some(packed) = case.inputs.packed.as_ref().filter(|_| case.inputs.past() > 0) {
        let taken_in = dump.trace.iter().map(|(name, values)| (name.to_owned(), packed.taken_in(name, values)));
        dump.trace = taken_in.collect();
    }
    case.inputs.cache_before =
        holds_cache_before(dump.trace.iter().map(|(name, values)| (name, values.shape())), &case.inputs);
    vocabulary::without_padding(&case, dump);
    new_tokens::of_all(&case, dump)?;
    let tokens = case.inputs.batch() * case.inputs.looked_at();
    let choices = [tokens, case.config.experts_per_token().unwrap_or(0)];
    cut(dump, &case, |stage, _| (stage.kind == TOPK_INDICES).then(|| choices.to_vec()));
    Ok(last_tokens::recognise(request, case, dump))
}

/// Leaves out rows beyond the tokens, now that it is known how many there are.
pub fn without_extra_rows(mut dump: Dump, truth: &Truth, case: &Case) -> Dump {
    cut(&mut dump, case, |_, name| Some(truth.trace.get(name)?.shape().to_vec()));
    dump
}

fn cut(dump: &mut Dump, case: &Case, wanted: impl Fn(&Stage, &str) -> Option<Vec<usize>>) {
    let without = |(name, values): (&str, &Values)| {
        let stage = Stage::parse(name)?;
        let found = extra_rows::without(values, stage.layout, &wanted(&stage, name)?, case.inputs.batch())?;
        Some((name.to_owned(), found))
    };
    let found: Vec<_> = dump.trace.iter().filter_map(without).collect();
    for (stage, (values, layout)) in found {
        dump.trace = std::mem::take(&mut dump.trace).with(&stage, values);
        dump.recognised.push(Recognised { stage, layout });
    }
}

/// Whether a dump of tensors of these names and shapes has the cache as it was before the new tokens.
pub fn holds_cache_before<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>, inputs: &Inputs) -> bool {
    let before = inputs.batch() * inputs.past();
    let rows = |shape: &[usize]| shape.iter().product::<usize>().checked_div(shape.last().copied().unwrap_or(0));
    let is_cached = |name: &str| Stage::parse(name).is_some_and(|stage| [CACHED_KV, CACHED_K_PE].contains(&stage.kind));
    let mut tensors = tensors;
    before > 0 && tensors.any(|(name, shape)| is_cached(name) && rows(shape) == Some(before))
}

#[cfg(test)]
mod tests;
