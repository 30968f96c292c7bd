//! A stage is computed chunk by chunk: where the rows of a chunk are among all rows of the stage, as a dump holds them.

use std::collections::BTreeMap;
use std::ops::Range;

use dsv2_reference::stage::{Layout, Stage, flow};
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
}

/// What one chunk has of a stage.
#[derive(Debug)]
pub struct Visit {
    /// Whether this is the last chunk.
    pub is_last: bool,
    /// Whether its tokens are some of those that are looked at.
    pub is_looked_at: bool,
    /// Its rows, and those in their place in a dump; nothing, if a dump says nothing of them.
    spans: Vec<Piece>,
    layout: Layout,
    /// How long its rows are, and those of the stage: of the keys that are not there yet it has none.
    widths: [usize; 2],
}

/// Some rows of a chunk that stand one after another in a dump, too.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The rows of the chunk.
    pub own: Range<usize>,
    /// Those in their place in a dump.
    pub rows: Range<usize>,
    /// Whether they are compared. What was cached by a chunk before is not: behind that chunk the dump's rows stand there.
    pub counts: bool,
}

/// How far a run has got with each stage.
#[derive(Default)]
pub struct Progress(BTreeMap<String, [usize; 2]>);

impl Chunks {
    /// Of a case.
    pub fn of(case: &Case) -> Self {
        let inputs = &case.inputs;
        let (batch, past) = (inputs.batch(), inputs.past());
        Chunks { lengths: case.chunks.clone(), batch, past }
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
        let fed: usize = chunks.lengths.iter().take(at).sum();
        let is_looked_at = fed >= chunks.past;
        let visit = |spans| Visit { is_last: at == last, is_looked_at, spans, layout: stage.layout, widths };
        let all_rows = |counts| vec![Piece { own: 0..rows_of(shape), rows: 0..rows_of(shape), counts }];
        if chunks.are_one() {
            return visit(all_rows(true));
        }
        let (outer, own, all) = match stage.layout {
            Layout::Keys => {
                let (keys, held) = (shape[1], whole[1]);
                let shown = keys.min(held);
                // keys and values are made of all that is cached, chunk by chunk; the cache has what it had, and more
                let before = match flow::is_copy(name) {
                    true => fed.min(shown),
                    false if at == last => 0,
                    false => shown,
                };
                let span = |b: usize, from: usize, to: usize, counts| Piece {
                    own: b * keys + from..b * keys + to,
                    rows: b * held + from..b * held + to,
                    counts,
                };
                let spans = (0..shape[0]).flat_map(|b| [span(b, 0, before, false), span(b, before, shown, true)]);
                return visit(spans.filter(|span| !span.rows.is_empty()).collect());
            }
            Layout::Whole => return visit(all_rows(at == last)),
            Layout::Tokens | Layout::Table | Layout::Logits => (shape[0], shape[1], whole[1]),
            Layout::Heads | Layout::Scores | Layout::Weights => (shape[0] * shape[1], shape[2], whole[2]),
            Layout::Flat => (chunks.batch, shape[0] / chunks.batch.max(1), whole[0] / chunks.batch.max(1)),
        };
        if !is_looked_at {
            return visit(Vec::new());
        }
        let start = *done;
        *done += own;
        let span = |i: usize| {
            let rows = i * all + start..i * all + start + own;
            Piece { own: i * own..(i + 1) * own, rows, counts: true }
        };
        visit((0..outer).map(span).collect())
    }
}

impl Visit {
    /// Whether some of its rows are compared.
    pub fn counts(&self) -> bool {
        self.spans.iter().any(|span| span.counts)
    }

    /// Its rows, some at a time.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<> {
        let step = (PIECE / self.widths[1].max(1)).max(1);
        self.spans.clone().into_iter().flat_map(move |span| {
            let Piece { own, rows, counts } = span;
            rows.clone().step_by(step).map(move |at| {
                let (from, to) = (at - rows.start, (at + step).min(rows.end) - rows.start);
                Piece { own: own.start + from..own.start + to, rows: at..rows.start + to, counts }
            })
        })
    }

    /// Those that are compared.
    pub fn compared(&self) -> impl Iterator<Item = Piece> + use<> {
        self.pieces().filter(|piece| piece.counts)
    }

    /// Rows of this chunk as those of the stage: a key that is not there yet has nothing.
    pub fn widened(&self, rows: Values) -> Values {
        let [own, all] = self.widths;
        match rows {
            Values::Real(dtype, a) if own < all => {
                let behind = ArrayD::from_elem(IxDyn(&[a.shape()[0], all - own]), self.of_no_key());
                let joined = concatenate(Axis(1), &[a.view(), behind.view()]).expect("rows, and as many behind them");
                Values::Real(dtype, joined.as_standard_layout().into_owned())
            }
            rows => rows,
        }
    }

    /// What a stage has of a key that is not there yet.
    fn of_no_key(&self) -> f64 {
        if self.layout == Layout::Scores { f64::NEG_INFINITY } else { 0.0 }
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

    /// Puts what is compared of this chunk in its place in `all` of a stage of this shape.
    pub fn put_into(&self, all: &mut Option<Values>, chunk: Values, shape: &[usize]) {
        let whole = matches!(&self.spans[..], [all] if all.counts && all.rows.len() == rows_of(shape));
        match (&mut *all, chunk) {
            (_, chunk) if whole && self.widths[0] == self.widths[1] => *all = Some(chunk),
            (None, Values::Real(dtype, a)) => {
                *all = Some(Values::Real(dtype, ArrayD::from_elem(IxDyn(shape), self.of_no_key())));
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
        for Piece { own: at, rows, .. } in self.spans.iter().filter(|span| span.counts) {
            for (at, row) in at.clone().zip(rows.clone()) {
                to[row * all..row * all + own].copy_from_slice(&from[at * own..(at + 1) * own]);
            }
        }
    }

    /// What this chunk has of all of a stage, span by span.
    pub fn of_all(&self, all: &Values) -> Vec<(Range<usize>, Values)> {
        let width = self.widths[1];
        let span = |rows: &Range<usize>| rows.start * width..rows.end * width;
        let shape = |rows: &Range<usize>| IxDyn(&[rows.len(), width]);
        let part = |Piece { own, rows, .. }: &Piece| {
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
            Some((own.clone(), self.narrowed(values)))
        };
        self.spans.iter().filter_map(part).collect()
    }
}

fn rows_of(shape: &[usize]) -> usize {
    shape.iter().rev().skip(1).product()
}
