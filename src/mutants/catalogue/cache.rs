//! A cache that holds the wrong things.

use dsv2_reference::stage::table::{CACHED_K_PE, CACHED_KV, KV_A_PROJ};
use ndarray::{ArrayD, Axis, Slice, s};

use super::{cached, chunked, several_tokens, structural};
use crate::mutants::scene::Scene;
use crate::mutants::{At, Mutant};

pub const MUTANTS: &[Mutant] = &[
    structural(
        "append_overwrite_last",
        "New tokens are written over the last cached one; the last place keeps its copy.",
    )
    .when(|case| cached(case) && chunked(case))
    .at(&[CACHED_KV, CACHED_K_PE], shifted),
    structural("append_reversed", "The new tokens of a chunk are cached in the wrong order.")
        .when(|case| cached(case) && several_tokens(case))
        .at(&[CACHED_KV, CACHED_K_PE], |s, at| {
            let mut reversed = at.value.slice_axis(Axis(1), Slice::from(s.past()..)).to_owned();
            reversed.invert_axis(Axis(1));
            with_new(s, at, reversed)
        }),
    structural("cache_raw_latent", "The latent is cached before it is normed.").when(cached).at(
        &[CACHED_KV],
        |s, at| {
            let both = s.real3(KV_A_PROJ, at.layer)?;
            with_new(s, at, both.slice(s![.., .., ..s.config().kv_lora_rank]).to_owned().into_dyn())
        },
    ),
    structural("cache_raw_key", "The rotary key is cached before it is rotated.")
        .when(|case| cached(case) && several_tokens(case))
        .at(&[CACHED_K_PE], |s, at| {
            let raw = s.unrotated_keys(at.layer)?.index_axis_move(Axis(1), 0);
            with_new(s, at, raw.into_dyn())
        }),
];

/// The cache with `new` in the places of the new tokens.
fn with_new(scene: &Scene<'_>, at: At<'_>, new: ArrayD<f64>) -> Option<ArrayD<f64>> {
    let mut kept = at.value.clone();
    let mut place = kept.slice_axis_mut(Axis(1), Slice::from(scene.past().min(at.value.len_of(Axis(1)))..));
    // a layer alone may not know how much came before
    (place.shape() == new.shape()).then(|| place.assign(&new))?;
    Some(kept)
}

/// The cache with the new tokens one place too early.
fn shifted(scene: &Scene<'_>, at: At<'_>) -> Option<ArrayD<f64>> {
    let before = scene.past().checked_sub(1)?;
    let keys = at.value.len_of(Axis(1));
    let new = at.value.slice_axis(Axis(1), Slice::from(before + 1..)).to_owned();
    let mut kept = at.value.clone();
    kept.slice_axis_mut(Axis(1), Slice::from(before..keys - 1)).assign(&new);
    Some(kept)
}
