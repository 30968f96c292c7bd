//! How much memory it takes to judge a dump stage by stage: what the [runs](held) hold, what is compared, and what is kept.

use std::num::Saturating;

use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::*;
use dsv2_reference::stage::{Stage, flow};
use indexmap::IndexMap;

use super::pieces::PIECE;
use super::ranks::Sources;
use super::tensors::{Tensor, meant_case, stages_of};
use crate::case::Case;
use crate::check::align::{self, Order};
use crate::error::Result;
use crate::files::TensorFile;
use crate::local::draws;
use crate::memory::held::{self, Chunk, Count, count};
use crate::memory::{at_a_time, largest, of_kinds};
use crate::planned::{self, Planned};
use crate::precision::Precision;
use crate::rows::ComparedRows;

/// What is kept of a row that is compared, and what it takes beside that to sum rows up.
const ROW: usize = 32;
const SUMMED: usize = 80;
/// What is kept of a stage: its name, and how far off it is.
const OF_A_STAGE: usize = 2048;
/// What the allocator keeps beside what it is asked for, measured: an eighth at most. And what the program has before it begins.
const BESIDE: usize = 8;
const OWN: Count = count(2 << 20);
/// Bytes of a number of the truth, and of a plain run.
const WIDE: Count = count(8);
const NARROW: Count = count(4);

/// About so many bytes are needed for a dump of these tensors of files.
///
/// # Errors
/// If one cannot be read.
pub fn need(case: &Case, files: &[TensorFile], sources: &Sources) -> Result<u64> {
    let meant = &meant_case(&sources.tensors, case)?;
    let case = &meant.case;
    let planned = &planned::stages(case, AttentionForm::Expanded, Precision::F64);
    let tensors = stages_of(files, &sources.tensors, meant)?;
    let tensors: Vec<Tensor> = tensors.map_or_else(Vec::new, |tensors| tensors.stages.into_values().collect());
    let runs = Runs::of(case, planned, Saturating(draws(case)));
    // what is kept: the routing, of the dump, the truth and what it should be; and of a layer, that of the plain runs
    let routing = Saturating(of_kinds(planned, &ROUTING));
    let layers = case.part.as_ref().map_or(case.config.num_hidden_layers, |part| part.layers.0.len());
    let of_a_layer = routing / count(layers.max(1));
    let kept = routing * count(24) + of_a_layer * WIDE * (runs.plain + count(2)) + count(planned.len() * OF_A_STAGE);
    // what is compared is, in pieces: of each run one that is looked at and one to come, each made of another; and of the dump
    let widest = planned.values().filter_map(|planned| planned.shape.last()).max().map_or(1, |&width| width);
    let pieces = (count(4) * (runs.plain + count(1)) + count(5)) * WIDE * count(PIECE.max(widest));
    let unread = Saturating(at_a_time(planned)) * WIDE;
    let unread = unread * Saturating(ComparedRows::of(&case.inputs).unread_of_hundred()) / count(100);
    let beside = kept + pieces + unread + rows(planned, case, runs.plain) + decoded(files, &tensors, planned)?;
    let judged = runs.in_layers().max(runs.at_queries + reread(planned, case)) + beside;
    // a stage that fails: what it should be, beside the run of which it comes, and then with that of the dump
    let failing = Saturating(largest(planned));
    let some_rows = count(2) * count(PIECE.max(widest));
    let hinted = ((runs.wide + failing).max(count(2) * failing) + some_rows) * WIDE + runs.inputs + kept;
    let held = judged.max(hinted);
    Ok((held + held / count(BESIDE) + OWN).0)
}

/// About so many bytes runs in f64 and in a narrow type hold, side by side.
pub fn of_runs(case: &Case, planned: &IndexMap<String, Planned>) -> u64 {
    (Runs::of(case, planned, count(1)).in_layers() + OWN).0
}

/// What is kept as it is.
const ROUTING: [&str; 3] = [ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS];

/// What the runs hold.
struct Runs {
    /// How many plain ones there are.
    plain: Count,
    /// How many numbers a run has at most, in one form of attention, and in either.
    wide: Count,
    narrow: Count,
    /// Bytes of all of them where they have queries.
    at_queries: Count,
    /// Bytes of what is fed to one of them, as it was given.
    inputs: Count,
    /// Bytes of all of them, wherever they are.
    always: Count,
}

impl Runs {
    fn of(case: &Case, planned: &IndexMap<String, Planned>, plain: Count) -> Self {
        let (config, chunks) = (&case.config, Chunk::all(case));
        let all = |of: &dyn Fn(&Chunk) -> Count| chunks.iter().map(of).fold(count(0), |sum, chunk| sum + chunk);
        let most = |of: &dyn Fn(&Chunk) -> Count| chunks.iter().map(of).max().unwrap_or(count(0));
        let behind = held::most_behind_layers(case, planned);
        // the residual stream of the other chunks
        let others = all(&|chunk| chunk.stream(config)) - most(&|chunk| chunk.stream(config));
        let at_most = |form| others + (held::most_in_layers(case, form) + held::cache(case)).max(behind);
        let wide = at_most(AttentionForm::Expanded);
        let narrow = if plain > count(1) { wide.max(at_most(AttentionForm::Absorbed)) } else { wide };
        // the truth waits at the next layer
        let ahead = chunks.first().map_or(count(0), |first| first.before_a_layer(case)) + others;
        let each = WIDE * count(2) + NARROW * plain;
        // plain runs beside the first have weights of their own, and every other one W^UK and W^UV apart
        let rows = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim);
        let absorbed = count(config.num_hidden_layers) * count(rows) * count(config.kv_lora_rank) * NARROW / count(2);
        let own_weights = (plain - count(1)) * (Saturating(config.parameter_count()) * WIDE + absorbed);
        let inputs = all(&|chunk| chunk.given_mask(case)) * NARROW;
        let always = ahead * WIDE
            + all(&|chunk| chunk.tables(case)) * each
            + inputs * (plain + count(2))
            + held::of_weights(case) * (plain + count(2))
            + own_weights;
        let at_queries = most(&|chunk| chunk.at_queries(case)) + others;
        Runs { plain, wide, narrow, at_queries: at_queries * (WIDE + NARROW * plain) + always, inputs, always }
    }

    fn in_layers(&self) -> Count {
        self.wide * WIDE + self.narrow * NARROW * self.plain + self.always
    }
}

/// What is kept of the rows of stages, and how they are summed up: how far off each row is, by itself and in plain runs, and how they
/// are spread. While chunks are to come it is kept of all stages of a layer.
fn rows(planned: &IndexMap<String, Planned>, case: &Case, plain: Count) -> Count {
    let (mut layers, mut longest) = (IndexMap::<_, Count>::new(), count(0));
    for (name, planned) in planned {
        let Some(stage) = Stage::parse(name) else { continue };
        let rows = planned.shape.iter().rev().skip(1).fold(count(1), |rows, &length| rows * count(length));
        // a rotation is spread in one more way; what a step caches has two parts, and may be a copy in two ways
        let spreads = count(if [Q_PE, K_PE, CACHED_K_PE].contains(&stage.kind) { 2 } else { 1 });
        let parts = count(if flow::is_copy(name) && case.inputs.past() > 0 { 2 } else { 1 });
        let copies = count(if flow::is_copy(name) { 2 } else { 0 });
        let kept = rows * count(ROW) * ((plain + spreads + count(1)) * parts + (spreads + count(1)) * copies);
        let of_layer = layers.entry(stage.layer).or_insert(count(0));
        *of_layer = if case.chunks.len() > 1 { *of_layer + kept } else { (*of_layer).max(kept) };
        longest = longest.max(rows);
    }
    layers.into_values().max().unwrap_or(count(0)) + longest * count(SUMMED)
}

/// What is decoded as a whole, since it may lie in more than one order: the dump's stage, the truth, and all readings of it.
fn reread(planned: &IndexMap<String, Planned>, case: &Case) -> Count {
    if case.chunks.len() > 1 {
        return count(0);
    }
    let heads = case.config.num_attention_heads;
    let otherwise = planned.iter().filter(|(name, planned)| align::has_other_readings(name, &planned.shape, heads));
    Saturating(otherwise.map(|(_, planned)| planned.elements()).max().unwrap_or(0)) * count(48)
}

/// What is decoded as a whole for another reason: it does not lie in its file number by number, or lies there in another order,
/// and then it is kept.
fn decoded(files: &[TensorFile], tensors: &[Tensor], planned: &IndexMap<String, Planned>) -> Result<Count> {
    let mut decoded = count(0);
    for tensor in tensors {
        if tensor.source.rows(files, 0..0)?.is_none() {
            decoded = Saturating(largest(planned)) * WIDE;
        }
    }
    let turned = tensors.iter().filter(|tensor| tensor.order == Order::Other);
    let turned = turned.map(|tensor| tensor.shape.iter().fold(count(1), |all, &length| all * count(length))).max();
    let kept = turned.map_or(count(0), |turned| turned * count(48));
    Ok(decoded + kept)
}
