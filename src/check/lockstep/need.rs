//! How much memory it takes to judge a dump stage by stage.

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::*;
use dsv2_reference::stage::{Layout, Stage};
use indexmap::IndexMap;

use super::pieces::PIECE;
use super::ranks::Sources;
use super::tensors::{meant_case, stages_of};
use crate::case::Case;
use crate::check::align::{self, Order};
use crate::error::Result;
use crate::files::TensorFile;
use crate::inputs::AttentionMask;
use crate::local::draws;
use crate::memory::{at_a_time, largest, of_kinds};
use crate::planned::{self, Planned};
use crate::precision::Precision;
use crate::rows::ComparedRows;

/// About so many bytes are needed for a dump of these tensors of files.
///
/// # Errors
/// If one cannot be read.
pub fn need(case: &Case, files: &[TensorFile], sources: &Sources) -> Result<u64> {
    let meant = &meant_case(&sources.tensors, case);
    let case = &meant.case;
    let planned = planned::stages(case, AttentionForm::Expanded, Precision::F64);
    let all = |parts: &[u64]| parts.iter().copied().fold(0, u64::saturating_add);
    // what is kept: the routing, of the dump, the truth and what it should be
    let routing = of_kinds(&planned, &[ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS]).saturating_mul(24);
    // two runs in a layer, one in f64 and one in f32 (of small models several), and the truth, which waits at the next; what is
    // compared, in pieces
    let layer = at_a_time(&of_a_chunk(&planned, case));
    let (wide, narrow) = (layer.saturating_mul(8), layer.saturating_mul(4).saturating_mul(draws(case)));
    let widest = planned.values().filter_map(|planned| planned.shape.last()).max().map_or(1, |&width| width as u64);
    let pieces = 12 * 8 * (PIECE as u64).max(widest);
    let unread =
        at_a_time(&planned).saturating_mul(8).saturating_mul(ComparedRows::of(&case.inputs).unread_of_hundred()) / 100;
    let tensors = stages_of(files, &sources.tensors, meant)?;
    let tensors = tensors.map_or_else(Vec::new, |tensors| tensors.stages.into_values().collect());
    // decoded as a whole: what does not lie in its file number by number, and what lies there in another order, which is kept
    let mut decoded = 0;
    for tensor in &tensors {
        if tensor.source.rows(files, 0..0)?.is_none() {
            decoded = decoded.max(8 * largest(&planned));
        }
    }
    let turned = tensors.iter().filter(|tensor| tensor.order == Order::Other);
    let turned = turned.map(|tensor| tensor.shape.iter().product::<usize>() as u64).max().unwrap_or(0);
    let otherwise = decoded.saturating_add(turned.saturating_mul(48));
    let kept = if turned > 0 { at_a_time(&planned).saturating_mul(8) } else { 0 };
    let judged = all(&[
        wide,
        narrow,
        open(&planned, case),
        at_rest(&planned, case),
        routing,
        pieces,
        unread,
        otherwise,
        kept,
        reread(&planned, case),
    ]);
    // a stage that fails: what it should be, beside the run of which it comes, and then with that of the dump
    let hinted = all(&[wide, largest(&planned).saturating_mul(16), routing]);
    Ok(judged.max(hinted))
}

/// What is kept of the rows of a layer while chunks of it are to come: how far off each is, from the truth, by itself and in plain runs,
/// and how they are spread.
fn open(planned: &IndexMap<String, Planned>, case: &Case) -> u64 {
    if case.chunks.len() == 1 {
        return 0;
    }
    let rows = planned.iter().map(|(name, planned)| {
        let rows = planned.shape.iter().rev().skip(1).product::<usize>();
        (name.clone(), Planned { dtype: None, shape: vec![rows] })
    });
    let rows: IndexMap<String, Planned> = rows.collect();
    at_a_time(&rows).saturating_mul(32).saturating_mul(draws(case).saturating_add(3))
}

/// The same stages of the longest chunk that is fed.
fn of_a_chunk(planned: &IndexMap<String, Planned>, case: &Case) -> IndexMap<String, Planned> {
    let longest = case.chunks.iter().copied().max().unwrap_or(1);
    let of = |(name, planned): (&String, &Planned)| {
        let axis = match Stage::parse(name).map(|stage| stage.layout) {
            _ if case.chunks.len() == 1 => None,
            Some(Layout::Tokens | Layout::Table | Layout::Logits) => Some(1),
            Some(Layout::Heads | Layout::Scores | Layout::Weights) => Some(2),
            Some(Layout::Flat) => Some(0),
            _ => None,
        };
        let each = if axis == Some(0) { case.inputs.batch() } else { 1 };
        let mut shape = planned.shape.clone();
        if let Some(length) = axis.and_then(|axis| shape.get_mut(axis)) {
            *length = longest * each;
        }
        (name.clone(), Planned { shape, ..planned.clone() })
    };
    planned.iter().map(of).collect()
}

/// A run that waits before a layer: the residual stream, normed as well, rotary tables and the mask.
fn at_rest(planned: &IndexMap<String, Planned>, case: &Case) -> u64 {
    let heads = case.config.num_attention_heads as u64;
    let by_head = matches!(&case.inputs.attention_mask, Some(AttentionMask::Additive(mask)) if mask.dim().1 > 1);
    let mask = most_of(planned, ATTN_SCORES) / if by_head { 1 } else { heads.max(1) };
    let others = [INPUT_LAYERNORM, LAYER, COS, SIN].map(|kind| most_of(planned, kind));
    others.into_iter().fold(mask, u64::saturating_add).saturating_mul(8)
}

/// What is decoded as a whole, since it may lie in more than one order: the dump's stage, the truth, and all readings of it.
fn reread(planned: &IndexMap<String, Planned>, case: &Case) -> u64 {
    if case.chunks.len() > 1 {
        return 0;
    }
    let heads = case.config.num_attention_heads;
    let otherwise = planned.iter().filter(|(name, planned)| align::has_other_readings(name, &planned.shape, heads));
    otherwise.map(|(_, planned)| planned.elements()).max().unwrap_or(0).saturating_mul(48)
}

/// The elements of the largest stage of a kind.
fn most_of(planned: &IndexMap<String, Planned>, kind: &str) -> u64 {
    let is = |name: &str| Stage::parse(name).is_some_and(|stage| stage.kind == kind);
    planned.iter().filter(|(name, _)| is(name)).map(|(_, planned)| planned.elements()).max().unwrap_or(0)
}
