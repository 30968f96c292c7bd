//! A stage is computed chunk by chunk: where the rows of a chunk are among all rows of the stage, as a dump holds them.

use std::collections::BTreeMap;
use std::ops::Range;

use dsv2_reference::stage::table::{CACHED_K_PE, CACHED_KV};
use dsv2_reference::stage::{Layout, Stage};
use ndarray::{ArrayD, Axis, Dimension, IxDyn, concatenate};

use super::pieces::PIECE;
use crate::case::Case;
use crate::values::Values;

/// The chunks in which the sequences of a case are fed.
#[derive(Clone, Debug)]
pub struct Chunks {
    lengths: Vec<usize>,
    batch: usize,
    past: usize,
    cache_before: bool,
}

/// What one chunk has of a stage.
#[derive(Debug)]
pub struct Visit {
    /// Whether this is the last chunk.
    pub is_last: bool,
    /// Whether its rows are some of those that a dump holds. (Of what is cached it holds those of the last chunk, which has all.)
    pub counts: bool,
    /// Its rows, and those in their place in a dump; nothing, if a dump says nothing of them.
    spans: Vec<(usize, Range<usize>)>,
    layout: Layout,
    /// How long its rows are, and those of the stage: of the keys that are not there yet it has none.
    widths: [usize; 2],
}

/// How far a run has got with each stage.
#[derive(Default)]
pub struct Progress(BTreeMap<String, [usize; 2]>);

impl Chunks {
    /// Of a case.
    pub fn of(case: &Case) -> Self {
        let inputs = &case.inputs;
        let (batch, past) = (inputs.batch(), inputs.past());
        Chunks { lengths: case.chunks.clone(), batch, past, cache_before: inputs.cache_before }
    }

    /// Whether there is only one.
    pub fn are_one(&self) -> bool {
        self.lengths.len() == 1
    }

    /// The shape of a stage of routing that is `width` wide, of all tokens that are looked at.
    pub fn flat(&self, width: usize) -> [usize; 2] {
        [self.batch * (self.lengths.iter().sum::<usize>() - self.past), width]
    }
}

impl Progress {
    /// The next chunk of a stage, which has this `shape` there; all of it has the shape `whole`.
    pub fn next(&mut self, name: &str, stage: &Stage, shape: &[usize], whole: &[usize], chunks: &Chunks) -> Visit {
        let [chunk, done] = self.0.entry(name.to_owned()).or_default();
        let at = *chunk;
        *chunk += 1;
        let last = chunks.lengths.len().saturating_sub(1);
        let widths = [shape, whole].map(|shape| shape.last().copied().unwrap_or(1));
        let visit = |counts, spans| Visit { is_last: at == last, counts, spans, layout: stage.layout, widths };
        if chunks.are_one() {
            return visit(true, vec![(0, 0..rows_of(shape))]);
        }
        let fed: usize = chunks.lengths[..at].iter().sum();
        let new = fed >= chunks.past;
        let (outer, own, all) = match stage.layout {
            Layout::Keys => {
                let is_cached = [CACHED_KV, CACHED_K_PE].contains(&stage.kind);
                let counts = match chunks.cache_before && is_cached {
                    true => fed + chunks.lengths[at] == chunks.past,
                    false => at == last,
                };
                let (keys, held) = (shape[1], whole[1]);
                let spans = (0..shape[0]).map(|b| (b * keys, b * held..b * held + keys.min(held)));
                return visit(counts, spans.collect());
            }
            Layout::Whole => return visit(at == last, vec![(0, 0..rows_of(shape))]),
            Layout::Tokens | Layout::Table | Layout::Logits => (shape[0], shape[1], whole[1]),
            Layout::Heads | Layout::Scores | Layout::Weights => (shape[0] * shape[1], shape[2], whole[2]),
            Layout::Flat => (chunks.batch, shape[0] / chunks.batch.max(1), whole[0] / chunks.batch.max(1)),
        };
        if !new {
            return visit(false, Vec::new());
        }
        let start = *done;
        *done += own;
        visit(true, (0..outer).map(|i| (i * own, i * all + start..i * all + start + own)).collect())
    }
}

impl Visit {
    /// Its rows and those in their place, some at a time.
    pub fn pieces(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let step = (PIECE / self.widths[1].max(1)).max(1);
        let pieces = |(start, rows): (usize, Range<usize>), step| {
            let first = rows.start;
            rows.step_by(step).map(move |at| (start + at - first, at))
        };
        let spans = self.spans.clone().into_iter();
        spans.flat_map(move |(start, rows)| {
            let end = rows.end;
            pieces((start, rows), step).map(move |(own, at)| {
                let length = step.min(end - at);
                (own..own + length, at..at + length)
            })
        })
    }

    /// Rows of this chunk as those of the stage: a key that is not there yet has nothing.
    pub fn widened(&self, rows: Values) -> Values {
        let [own, all] = self.widths;
        let fill = if self.layout == Layout::Scores { f64::NEG_INFINITY } else { 0.0 };
        match rows {
            Values::Real(dtype, a) if own < all => {
                let behind = ArrayD::from_elem(IxDyn(&[a.shape()[0], all - own]), fill);
                let joined = concatenate(Axis(1), &[a.view(), behind.view()]).expect("rows, and as many behind them");
                Values::Real(dtype, joined.as_standard_layout().into_owned())
            }
            rows => rows,
        }
    }

    /// Rows of the stage as those of this chunk.
    pub fn narrowed(&self, rows: Values) -> Values {
        let [own, all] = self.widths;
        match rows {
            Values::Real(dtype, a) if own < all => {
                let (first, _) = a.view().split_at(Axis(1), own);
                Values::Real(dtype, first.as_standard_layout().into_owned())
            }
            rows => rows,
        }
    }

    /// Puts what this chunk has in its place in `all` of a stage of this shape.
    pub fn put_into(&self, all: &mut Option<Values>, chunk: Values, shape: &[usize]) {
        let whole = self.spans.len() == 1 && self.spans[0].1.len() == rows_of(shape);
        match (&mut *all, chunk) {
            (_, chunk) if whole && self.widths[0] == self.widths[1] => *all = Some(chunk),
            (None, Values::Real(dtype, a)) => {
                *all = Some(Values::Real(dtype, ArrayD::zeros(IxDyn(shape))));
                self.put_into(all, Values::Real(dtype, a), shape);
            }
            (None, Values::Index(a)) => {
                // no expert twice, wherever nothing is known yet
                *all = Some(Values::Index(ArrayD::from_shape_fn(IxDyn(shape), |at| at[at.ndim() - 1] as i64)));
                self.put_into(all, Values::Index(a), shape);
            }
            (Some(Values::Real(_, to)), Values::Real(_, from)) => self.copy(to, &from),
            (Some(Values::Index(to)), Values::Index(from)) => self.copy(to, &from),
            _ => {}
        }
    }

    fn copy<A: Copy>(&self, to: &mut ArrayD<A>, from: &ArrayD<A>) {
        let [own, all] = self.widths;
        let from = from.as_standard_layout();
        let (Some(to), Some(from)) = (to.as_slice_mut(), from.as_slice()) else { return };
        for (start, rows) in &self.spans {
            for (i, row) in rows.clone().enumerate() {
                to[row * all..row * all + own].copy_from_slice(&from[(start + i) * own..(start + i + 1) * own]);
            }
        }
    }

    /// What this chunk has of all of a stage, span by span.
    pub fn of_all(&self, all: &Values) -> Vec<(Range<usize>, Values)> {
        let width = self.widths[1];
        let span = |rows: &Range<usize>| rows.start * width..rows.end * width;
        let shape = |rows: &Range<usize>| IxDyn(&[rows.len(), width]);
        let part = |(start, rows): &(usize, Range<usize>)| {
            let values = match all {
                Values::Real(dtype, a) => {
                    let part = a.as_standard_layout().as_slice()?.get(span(rows))?.to_vec();
                    Values::Real(*dtype, ArrayD::from_shape_vec(shape(rows), part).ok()?)
                }
                Values::Index(a) => {
                    let part = a.as_standard_layout().as_slice()?.get(span(rows))?.to_vec();
                    Values::Index(ArrayD::from_shape_vec(shape(rows), part).ok()?)
                }
                Values::Bool(_) => return None,
            };
            Some((*start..start + rows.len(), self.narrowed(values)))
        };
        self.spans.iter().filter_map(part).collect()
    }
}

fn rows_of(shape: &[usize]) -> usize {
    shape.iter().rev().skip(1).product()
}
