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
use crate::error::{Error, Result};
use crate::values::Values;

/// The question that is meant by the shapes of the dump.
///
/// # Errors
/// If some layers alone are asked for, and the dump does not hold what enters them; or the caches are those of different tokens.
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
        holds_cache_before(dump.trace.iter().map(|(name, values)| (name, values.shape())), &case)?;
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
///
/// # Errors
/// If that of one layer is as it was before them, and that of another is longer: nobody could look at what is new in it.
pub fn holds_cache_before<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>, case: &Case) -> Result<bool> {
    let before = case.inputs.batch() * case.inputs.past();
    let cached = tensors.filter_map(|(name, shape)| {
        let width = match Stage::parse(name)?.kind {
            CACHED_KV => case.config.kv_lora_rank,
            CACHED_K_PE => case.config.qk_rope_head_dim,
            _ => return None,
        };
        let elements: usize = shape.iter().product();
        let rows = elements.checked_div(shape.last().copied().unwrap_or(0))?;
        let is_judged = case.part.as_ref().is_none_or(|part| part::is_inside(name, &part.layers));
        is_judged.then_some((name, shape, rows, elements > before * width))
    });
    let cached: Vec<_> = cached.collect();
    let Some((as_it_was, ..)) = cached.iter().find(|(_, _, rows, _)| before > 0 && *rows == before) else {
        return Ok(false);
    };
    match cached.iter().find(|(_, _, rows, has_more)| *rows > before && *has_more) {
        None => Ok(true),
        Some((name, shape, ..)) => {
            let rows = format!("{before} rows, those before the step, as `{as_it_was}` has (or all rows in both)");
            Err(Error::input(*name, rows, format!("{shape:?}")))
        }
    }
}

#[cfg(test)]
mod tests;
