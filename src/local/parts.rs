//! How far off a stage is, and plain runs are. What a decoding step cached is compared in two parts: what was there before may be
//! off by more.

use dsv2_metrics::{Comparing, Comparison, Metrics};
use dsv2_reference::stage::Stage;

use super::copies::{cached_before, with_keys_of};
use super::noise::with_usual;
use crate::budget::Spreading;
use crate::case::Case;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

/// How far off something is, and how what it should be is spread.
pub(crate) struct Difference(Comparing, Spreading);

impl Difference {
    /// Of a stage of this shape.
    pub(crate) fn of(stage: Stage, shape: &[usize]) -> Self {
        Difference(Comparing::new(shape), Spreading::new(stage, shape))
    }

    /// The rows from `row` on; those count for which `compared` holds (all, if there is none).
    pub(crate) fn add(&mut self, row: usize, got: &[f64], own: &[f64], compared: Option<&[bool]>) {
        let Difference(off, spread) = self;
        off.go_to(row);
        off.add(got, own, compared);
        spread.go_to(row);
        spread.add(own, compared);
    }

    /// Both.
    pub(crate) fn finish(self) -> (Comparison, Spreading) {
        (self.0.finish(), self.1)
    }
}

/// A stage in one part, or what a step cached in two: what was there before, and what is new.
pub(crate) struct Parts(Vec<Part>);

/// How far off a trace is in some rows, and the plain runs are: as if the trace were right in all others.
struct Part {
    noise: Vec<Comparing>,
    off: Difference,
}

/// The part that is furthest off, in what it may be.
pub(crate) struct Worst {
    part: usize,
    /// How far off the plain runs are.
    pub(crate) noise: Metrics,
    /// How far off the trace is.
    pub(crate) off: Comparison,
    /// How what it should be is spread.
    pub(crate) spread: Spreading,
}

impl Parts {
    /// Of a stage of this shape, of which there are so many plain runs.
    pub(crate) fn of(stage: Stage, shape: &[usize], plain: usize, are_two: bool) -> Self {
        let noise = || (0..plain).map(|_| Comparing::new(shape)).collect();
        let part = |_| Part { noise: noise(), off: Difference::of(stage, shape) };
        Parts((0..if are_two { 2 } else { 1 }).map(part).collect())
    }

    /// The rows from `row` on, of a trace, of what it should be, and of the plain runs: all of them new ones, or none. Those count for
    /// which `compared` holds (all, if there is none).
    pub(crate) fn add(
        &mut self,
        (row, are_new): (usize, bool),
        (got, own): (&[f64], &[f64]),
        plain: &[&[f64]],
        compared: Option<&[bool]>,
    ) {
        let this = if self.0.len() > 1 && are_new { 1 } else { 0 };
        for (at, part) in self.0.iter_mut().enumerate() {
            let or_as_it_is = |rows| if at == this { rows } else { got };
            for (noise, plain) in part.noise.iter_mut().zip(plain) {
                noise.go_to(row);
                noise.add(or_as_it_is(plain), or_as_it_is(own), compared);
            }
            part.off.add(row, got, or_as_it_is(own), compared);
        }
    }

    /// The part that is furthest off; new keys are left out if they are copies. The noise is no less than is `usual`.
    pub(crate) fn worst(mut self, are_copies: bool, usual: f64, factors: &Metrics) -> Option<Worst> {
        if are_copies {
            self.0.truncate(1);
        }
        let parts = self.0.into_iter().enumerate().map(|(part, Part { noise, off })| {
            let noise: Vec<_> = noise.into_iter().map(|noise| noise.finish().metrics).collect();
            let (noise, (off, spread)) = (with_usual(&noise, usual), off.finish());
            let times = times(&off, noise.zip(factors, |noise, factor| noise * factor));
            (times, Worst { part, noise, off, spread })
        });
        parts.reduce(|one, other| if other.0 > one.0 { other } else { one }).map(|(_, worst)| worst)
    }
}

/// How many times what it may be something is off, by the worst of the measures.
fn times(off: &Comparison, may_be: Metrics) -> f64 {
    let each = off.metrics.values().into_iter().zip(may_be.values());
    let most = each.map(|(off, may_be)| if off == 0.0 { 0.0 } else { off / may_be }).fold(0.0, f64::max);
    if off.nonfinite.is_some() { f64::INFINITY } else { most }
}

/// What a step cached, as a whole.
pub(super) struct Step<'a> {
    /// The case and the stage.
    pub of: (&'a Case, &'a str),
    /// What the trace has.
    pub got: &'a Values,
    /// What it should be.
    pub truth: &'a Values,
    /// What plain runs have.
    pub plain: &'a [Trace],
    /// Which rows mean something.
    pub rows: &'a ComparedRows,
}

impl Step<'_> {
    /// What the cache should be in the worse of its two parts, as if the trace were right in the other, and the noise there.
    pub(super) fn worst(&self, are_copies: bool, usual: f64, factors: &Metrics) -> Option<(Values, Metrics)> {
        let (case, name) = self.of;
        let (stage, before, shape) = (Stage::parse(name)?, cached_before(case, name), self.truth.shape());
        let &[batch, keys, width] = shape else { return None };
        let fitted = |values: &Values| Some(values.fit(shape)?.real()?.iter().copied().collect::<Vec<f64>>());
        let plain: Option<Vec<_>> = self.plain.iter().map(|run| fitted(run.get(name)?)).collect();
        let (got, own, plain) = (fitted(self.got)?, fitted(self.truth)?, plain?);
        let compared = self.rows.of_stage(&stage, shape);
        let mut parts = Parts::of(stage, shape, plain.len(), true);
        for of_sequence in (0..batch).map(|b| b * keys) {
            for (are_new, rows) in [(false, 0..before), (true, before..keys)] {
                let rows = of_sequence + rows.start..of_sequence + rows.end;
                let numbers = rows.start * width..rows.end * width;
                let plain: Vec<&[f64]> = plain.iter().map(|plain| &plain[numbers.clone()]).collect();
                let compared = compared.as_deref().map(|compared| &compared[rows.clone()]);
                parts.add((rows.start, are_new), (&got[numbers.clone()], &own[numbers]), &plain, compared);
            }
        }
        let Worst { part, noise, .. } = parts.worst(are_copies, usual, factors)?;
        let right = if part == 0 { before..keys } else { 0..before };
        Some((with_keys_of(self.got, &right, self.truth)?, noise))
    }
}
