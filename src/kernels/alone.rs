//! Bits of a row alone and among others: told as a measurement, for few kernels have the same.

use std::collections::BTreeSet;

use dsv2_operators::Operator;
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, Slice};
use serde::Serialize;

use super::{Judge, KernelReport};
use crate::report::model::Number;
use crate::values::Values;

/// Whether rows have the same bits alone and among others.
#[derive(Clone, Debug, Serialize)]
pub struct BatchInvariance {
    /// Whether all have that were given alone.
    pub invariant: bool,
    /// Which rows these are.
    pub rows: Vec<usize>,
    /// The first number that differs.
    pub first: Option<FirstDifference>,
}

/// A number that a row has alone, and another among others.
#[derive(Clone, Debug, Serialize)]
pub struct FirstDifference {
    /// The row: a token or a sequence.
    pub row: usize,
    /// The output.
    pub output: String,
    /// Where it is in the row's own output; empty if the shapes differ.
    pub index: Vec<usize>,
    /// What it is alone.
    pub alone: Number,
    /// What it is among others.
    pub among: Number,
}

/// The rows of a workload that are given alone: the first, one in the middle and the last, of two or more.
pub fn chosen_rows(operator: &Operator, inputs: &dsv2_operators::Tensors) -> Vec<usize> {
    match operator.contract.row_count(inputs) {
        0 | 1 => Vec::new(),
        count => BTreeSet::from([0, count / 2, count - 1]).into_iter().collect(),
    }
}

impl Judge {
    /// Compares what a kernel returned for rows alone with what it returned for all of them; only outputs that were returned
    /// both times are looked at. `None` if there are none such.
    pub fn batch_invariance(
        &self,
        among: &IndexMap<String, Values>,
        alone: &[(usize, IndexMap<String, Values>)],
    ) -> Option<BatchInvariance> {
        let mut compared = BTreeSet::new();
        let mut first = None;
        for (row, returned) in alone {
            for (name, own) in returned {
                let Some(part) = among.get(name).and_then(|values| self.part(name, values, *row)) else { continue };
                compared.insert(*row);
                let other = own
                    .fit(part.shape())
                    .map_or_else(|| Some((Vec::new(), [f64::NAN; 2])), |own| difference(&own, &part));
                if let Some((index, [alone, among])) = other.filter(|_| first.is_none()) {
                    let (alone, among) = (Number(alone), Number(among));
                    first = Some(FirstDifference { row: *row, output: name.clone(), index, alone, among });
                }
            }
        }
        let rows: Vec<usize> = compared.into_iter().collect();
        (!rows.is_empty()).then(|| BatchInvariance { invariant: first.is_none(), rows, first })
    }

    /// What of an output belongs to a row.
    fn part(&self, name: &str, values: &Values, row: usize) -> Option<Values> {
        let contract = &self.operator.contract;
        let spec = contract.outputs.get(name)?;
        let mut part = values.fit(self.truth[name].shape())?;
        for (axis, (begin, end)) in contract.spans(&self.inputs, &spec.shape, row) {
            let slice = Slice::from(begin..end);
            part = match part {
                Values::Real(dtype, a) => Values::Real(dtype, a.slice_axis(Axis(axis), slice).to_owned()),
                Values::Index(a) => Values::Index(a.slice_axis(Axis(axis), slice).to_owned()),
                Values::Bool(a) => Values::Bool(a.slice_axis(Axis(axis), slice).to_owned()),
            };
        }
        Some(part)
    }
}

/// The first number whose bits differ, and both; NaN is NaN.
fn difference(a: &Values, b: &Values) -> Option<(Vec<usize>, [f64; 2])> {
    let first = |a: ArrayD<f64>, b: ArrayD<f64>| {
        let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        let other = a.indexed_iter().zip(&b).find(|((_, a), b)| !same(**a, **b));
        other.map(|((index, a), b)| (ndarray::Dimension::slice(&index).to_vec(), [*a, *b]))
    };
    match (a, b) {
        (Values::Real(_, a), Values::Real(_, b)) => first(a.clone(), b.clone()),
        (Values::Index(a), Values::Index(b)) => first(a.mapv(|i| i as f64), b.mapv(|i| i as f64)),
        _ => Some((Vec::new(), [f64::NAN; 2])),
    }
}

impl BatchInvariance {
    /// What is said of several workloads in one line; nothing if it was not tried.
    pub(super) fn summary(reports: &[KernelReport]) -> Option<String> {
        let tried: Vec<_> =
            reports.iter().filter_map(|report| Some((report, report.batch_invariance.as_ref()?))).collect();
        let other = tried.iter().find_map(|(report, invariance)| Some((report, invariance.first.as_ref()?)));
        let (first, _) = tried.first()?;
        Some(match other {
            None => format!("batch-invariant: yes ({} workloads, {} the first)", tried.len(), first.workload),
            Some((report, FirstDifference { row, output, index, alone, among })) => format!(
                "batch-invariant: no; first in \"{}\", row {row}: {output} {index:?} is {:e} alone, {:e} among others",
                report.workload, alone.0, among.0
            ),
        })
    }
}
