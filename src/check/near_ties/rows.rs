//! The rows of a stage that are off by more than its budget.

use dsv2_metrics::Metrics;
use dsv2_reference::stage::Stage;
use ndarray::{ArrayBase, ArrayD, CowArray, Data, IxDyn};

use super::Question;
use super::reach::Owner;
use crate::budget::part;
use crate::trace::Trace;
use crate::values::fit;

/// A row of a stage that the dump holds.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its place in the stage.
    pub at: usize,
    /// Whose it is.
    pub owner: Owner,
    /// How many times what is allowed it is off as a whole.
    pub size: f64,
}

/// A stage of the dump that is over its budget.
pub struct Held<'a> {
    /// Its name.
    pub name: &'a str,
    stage: Stage,
    budget: Metrics,
    got: ArrayD<f64>,
    /// Whether no row is over the budget by itself, and all together are.
    by_sum: bool,
}

impl<'a> Held<'a> {
    /// A stage, against what `run` says that it should be.
    pub fn new(name: &'a str, budget: Metrics, run: &Trace, question: &Question<'_>) -> Option<Self> {
        let got = question.dump.get(name)?.real()?;
        let got = fit(got, run.get(name)?.shape())?.as_standard_layout().into_owned();
        let held = Held { name, stage: Stage::parse(name)?, budget, got, by_sum: false };
        let by_sum = held.over(run, question)?.is_empty();
        Some(Held { by_sum, ..held })
    }

    /// The rows that are over the budget.
    pub fn over(&self, run: &Trace, question: &Question<'_>) -> Option<Vec<Row>> {
        let want = self.want(run)?;
        let compared = question.rows.of_stage(&self.stage, want.shape());
        let usual = self.usual(&want, compared.as_deref());
        let rows = self.lanes(&self.got).zip(self.lanes(&want)).enumerate();
        let rows = rows.filter(|(at, _)| compared.as_ref().is_none_or(|rows| rows[*at]));
        let over = rows.filter(|(_, (got, want))| self.excess(got, want, &usual) > 1.0);
        let row = |(at, (got, want))| Row {
            at,
            owner: Owner::of(&self.stage, self.got.shape(), at, question),
            size: self.size(&difference(got, want), want, &usual),
        };
        Some(over.map(row).collect())
    }

    /// How many times what is allowed a row is off, by the measure that tells most; nothing is wrong up to 1.
    pub fn excess_of(&self, at: usize, run: &Trace, question: &Question<'_>) -> Option<f64> {
        let want = self.want(run)?;
        let usual = self.usual(&want, question.rows.of_stage(&self.stage, want.shape()).as_deref());
        Some(self.excess(self.lanes(&self.got).nth(at)?, self.lanes(&want).nth(at)?, &usual))
    }

    /// How far a row is from one run to the other.
    pub fn moved(&self, at: usize, from: &Trace, to: &Trace) -> Option<Vec<f64>> {
        let (from, to) = (self.want(from)?, self.want(to)?);
        Some(difference(self.lanes(&to).nth(at)?, self.lanes(&from).nth(at)?))
    }

    /// How far a row of the dump is from a run.
    pub fn error(&self, at: usize, run: &Trace) -> Option<Vec<f64>> {
        let want = self.want(run)?;
        Some(difference(self.lanes(&self.got).nth(at)?, self.lanes(&want).nth(at)?))
    }

    /// How large a difference of a row is, in what it may be off from a run.
    pub fn measure(&self, at: usize, difference: &[f64], run: &Trace, question: &Question<'_>) -> Option<f64> {
        let want = self.want(run)?;
        let usual = self.usual(&want, question.rows.of_stage(&self.stage, want.shape()).as_deref());
        Some(self.size(difference, self.lanes(&want).nth(at)?, &usual))
    }

    /// The stage in a run, which is copied only if it lies there in another order.
    fn want<'b>(&self, run: &'b Trace) -> Option<CowArray<'b, f64, IxDyn>> {
        let want = run.get(self.name)?.real().filter(|want| want.shape() == self.got.shape())?;
        Some(want.as_standard_layout())
    }

    fn lanes<'b, S: Data<Elem = f64>>(&self, a: &'b ArrayBase<S, IxDyn>) -> std::slice::Chunks<'b, f64> {
        let width = a.shape().last().copied().unwrap_or(1).max(1);
        a.as_slice().expect("row-major").chunks(width)
    }

    /// The usual size of a row, and of an element.
    fn usual(&self, want: &CowArray<'_, f64, IxDyn>, compared: Option<&[bool]>) -> (f64, f64) {
        let rows = self.lanes(want).enumerate().filter(|(at, _)| compared.is_none_or(|rows| rows[*at]));
        let (mut square, mut count, mut elements) = (0.0, 0_usize, 0_usize);
        for (_, row) in rows {
            square += row.iter().filter(|x| x.is_finite()).map(|x| x * x).sum::<f64>();
            count += 1;
            elements += row.len();
        }
        ((square / count.max(1) as f64).sqrt(), (square / elements.max(1) as f64).sqrt())
    }

    /// How large a difference is, in what the row `want` may be off: as the metric `row` has it.
    fn size(&self, difference: &[f64], want: &[f64], (row, _): &(f64, f64)) -> f64 {
        let difference = norm(difference.iter().copied());
        let allowed = match self.by_sum {
            true => row * self.budget.l2,
            false => norm(want.iter().copied()).max(0.1 * row) * self.budget.row,
        };
        part(difference, allowed)
    }

    fn excess(&self, got: &[f64], want: &[f64], usual: &(f64, f64)) -> f64 {
        let size = self.size(&difference(got, want), want, usual);
        let largest = got.iter().zip(want).map(|(a, b)| (a - b).abs()).filter(|d| d.is_finite()).fold(0.0, f64::max);
        if self.by_sum { size } else { size.max(part(largest, usual.1 * self.budget.max)) }
    }
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn norm(of: impl Iterator<Item = f64>) -> f64 {
    of.filter(|x| x.is_finite()).map(|x| x * x).sum::<f64>().sqrt()
}
