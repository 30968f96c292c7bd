//! How much memory a dump takes that is read whole.
//!
//! | held together, at most | in dumps |
//! |---|---|
//! | while it is read: as it came, without wrappers in its names, and under the names of stages | 3, with all rows |
//! | while it is judged: as it came | 1, with all rows |
//! | in the model's terms, the truth, what each stage should be, and the dump's stages that it is made of | 4 |
//! | the same once more, by another layout, by other weights or by near ties, while it is made | 7 |
//! | a run whose chunks are joined | 1 |
//!
//! Beside that are what [runs](super::lockstep) hold, weights that were widened, and what the search for near ties keeps.

use std::path::Path;

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage;
use dsv2_reference::stage::table::{CACHED_K_PE, CACHED_KV, TOPK_INDICES};

use super::dump::size::{Elements, elements};
use super::near_ties::most_kept;
use super::{lockstep, stages_of_model};
use crate::case::Case;
use crate::error::Result;
use crate::local::draws;
use crate::memory::of_kinds;
use crate::mutants::explain::may_be_tried;
use crate::planned;
use crate::precision::Precision;
use crate::taps::has_8_bits;

/// Bytes of a number.
const WIDE: u64 = 8;
/// How many dumps are held together while it is read, and while it is judged, beside the dump as it came.
const READ: u64 = 3;
const JUDGED: u64 = 12;

/// About so many bytes are needed for the dump in these files; known bugs are tried on it if they are `explained`.
///
/// # Errors
/// If a file cannot be read, or a large tensor of it is far from any shape that its stage could have.
pub fn need<'a>(case: &Case, files: impl IntoIterator<Item = &'a Path>, explained: bool) -> Result<u64> {
    let (whole, own) = (stages_of_model(case), planned::stages(case, AttentionForm::Expanded, Precision::F64));
    let (mut all, mut count) = (Elements::default(), 0_u64);
    for file in files {
        all.add(elements(file, &whole, &own)?);
        count += 1;
    }
    // several files are held beside what they are together
    let came = if count > 1 { 2 } else { 1 };
    // a dump that fails is judged once more as that of an engine that multiplies numbers of 8 bits
    let twice = if has_8_bits(case)? { 2 } else { 0 };
    let layers = case.part.as_ref().map_or(0..case.config.num_hidden_layers, |part| part.layers.0.clone());
    let choices = layers.filter(|layer| case.config.is_moe_layer(*layer, case.dialect));
    let lacks_a_choice = choices.map(|layer| stage::name(TOPK_INDICES, layer)).any(|name| !all.names.contains(&name));
    let searched = if lacks_a_choice { most_kept(all.judged) } else { 0 };
    let reading = all.in_files.saturating_mul(READ + came - 1);
    let judging = all.in_files.saturating_mul(came + twice).saturating_add(all.judged.saturating_mul(JUDGED));
    // mutants have weights that were widened, and so has a plain run with errors of its own
    let of_weights = [explained || may_be_tried(case), draws(case) > 1].into_iter().filter(|widened| *widened).count();
    let weights = case.weight_shapes().into_iter().map(|(_, shape)| shape.iter().product::<usize>() as u64);
    let weights = weights.fold(0, u64::saturating_add).saturating_mul(of_weights as u64);
    let cached = of_kinds(&own, &[CACHED_KV, CACHED_K_PE]);
    let numbers = reading.max(judging.saturating_add(searched)).saturating_add(weights).saturating_add(cached);
    Ok(numbers.saturating_mul(WIDE).saturating_add(lockstep::of_runs(case, &own)))
}
