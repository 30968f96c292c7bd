//! What a kernel returned for an operator's workload, judged as a stage of the whole model is.
//!
//! The truth is the operator's meaning in f64 on the inputs as they are stored. A budget is a multiple of what plain
//! implementations in the kernel's types are off on the same inputs ([`Plain`]), with the floors and factors of
//! [`crate::budget`]. Experts are judged as sets, near ties included, and weights by expert.

mod alone;
mod blocks;
mod choice;
mod given;
mod report;
mod sampling;

use dsv2_metrics::{
    Element, LOCAL_FACTORS, Metrics, NARROW_LOCAL_FACTORS, Spread, compare, for_so_many, unravel, with_floors,
};
use dsv2_operators::contract::Judged;
use dsv2_operators::{ElementType, Operator, Plain, Tensors, Workload};
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis};

pub use alone::{BatchInvariance, FirstDifference, chosen_rows};
pub use given::GivenWorkloads;
pub use report::{KernelReport, KernelVerdict, OutputVerdict};

use crate::error::Result;
use crate::judge::Disposition;
use crate::values::{Values, fit};

/// A workload with everything that outputs are held against.
pub struct Judge {
    operator: &'static Operator,
    workload: String,
    /// The type of activations.
    dtype: ElementType,
    inputs: Tensors,
    truth: Tensors,
    plain: [Tensors; 2],
}

impl Judge {
    /// Of one workload of an operator.
    ///
    /// # Errors
    /// If the operator refuses the workload's inputs.
    pub fn new(operator: &'static Operator, workload: &Workload) -> Result<Self> {
        Self::of(operator, &workload.name, workload.dtype, operator.inputs(workload)?)
    }

    /// Of any inputs, by a name that they are called.
    ///
    /// # Errors
    /// If the operator refuses them.
    pub fn of(operator: &'static Operator, workload: &str, dtype: ElementType, inputs: Tensors) -> Result<Self> {
        let truth = operator.truth(&inputs)?;
        let plain = [operator.plain(&inputs, Plain::Fp32)?, operator.plain(&inputs, Plain::Operands)?];
        Ok(Judge { operator, workload: workload.to_owned(), dtype, inputs, truth, plain })
    }

    /// The inputs.
    pub fn inputs(&self) -> &Tensors {
        &self.inputs
    }

    /// What plain implementations returned.
    pub fn plain(&self) -> &[Tensors; 2] {
        &self.plain
    }

    /// Judges what a kernel returned.
    ///
    /// # Errors
    /// If the operator refuses the workload's inputs.
    pub fn judge(&self, returned: &IndexMap<String, Values>) -> Result<KernelReport> {
        let contract = &self.operator.contract;
        let mut outputs = Vec::new();
        for name in contract.outputs.keys() {
            outputs.push(match returned.get(name) {
                Some(values) => self.judge_output(name, values, returned)?,
                None => OutputVerdict::new(name, Disposition::NotHeld),
            });
        }
        let first = outputs.first().is_some_and(|first| first.disposition.compared());
        let verdict = match outputs.iter().any(|output| output.disposition.fails()) {
            true => KernelVerdict::Fail,
            false if first => KernelVerdict::Pass,
            false => KernelVerdict::NotJudged,
        };
        let unknown = returned.keys().filter(|name| !contract.outputs.contains_key(*name)).cloned().collect();
        let axes = contract.bind(&self.inputs, self.dtype)?;
        Ok(KernelReport {
            operator: contract.name.clone(),
            instance: contract.instance(&axes),
            workload: self.workload.clone(),
            verdict,
            outputs,
            unknown,
            batch_invariance: None,
        })
    }

    fn judge_output(&self, name: &str, values: &Values, returned: &IndexMap<String, Values>) -> Result<OutputVerdict> {
        let spec = &self.operator.contract.outputs[name];
        let shape = self.truth[name].shape();
        if let (Judged::BlocksOf(experts), Values::Index(got)) = (&spec.judged, values) {
            return Ok(self.judge_blocks(name, got, returned.get(experts)));
        }
        if let (Judged::ExpertOfBlock(_), Values::Index(got)) = (&spec.judged, values) {
            return Ok(self.judge_experts_of_blocks(name, got));
        }
        let Some(values) = values.fit(shape) else {
            let note = format!("shape {:?} where {shape:?} is expected", values.shape());
            return Ok(OutputVerdict::noted(name, Disposition::WrongShape, note));
        };
        let of_kind = |expected: &str| {
            let note = format!("{} where {expected} are expected", values.describe());
            OutputVerdict::noted(name, Disposition::WrongShape, note)
        };
        match (&spec.judged, &values) {
            (Judged::Numbers, Values::Real(_, got)) => Ok(self.judge_numbers(name, got, None)),
            (Judged::InPlace(input), Values::Real(_, got)) => Ok(self.judge_in_place(name, got, input)),
            (Judged::WeightsOf(chosen), Values::Real(_, got)) => self.judge_weights(name, got, returned.get(chosen)),
            (Judged::Experts, Values::Index(got)) => self.judge_experts(name, got),
            (Judged::BestOf(logits), Values::Index(got)) => Ok(self.judge_best(name, got, logits)),
            (Judged::Filtered, Values::Real(_, got)) => self.judge_filtered(name, got),
            (Judged::Exact, Values::Index(got)) => Ok(self.judge_exact(name, got)),
            (Judged::Sample, Values::Index(got)) => self.judge_samples(name, got),
            (Judged::Numbers | Judged::InPlace(_) | Judged::WeightsOf(_) | Judged::Filtered, _) => {
                Ok(of_kind("numbers"))
            }
            _ => Ok(of_kind("whole numbers")),
        }
    }

    /// Numbers, over the rows for which `compared` holds.
    fn judge_numbers(&self, name: &str, got: &ArrayD<f64>, compared: Option<&[bool]>) -> OutputVerdict {
        let plain = [0, 1].map(|which| real(&self.plain[which], name));
        self.judge_against(name, got, real(&self.truth, name), &plain, compared)
    }

    fn judge_against(
        &self,
        name: &str,
        got: &ArrayD<f64>,
        want: &ArrayD<f64>,
        plain: &[&ArrayD<f64>],
        compared: Option<&[bool]>,
    ) -> OutputVerdict {
        if want.is_empty() || compared.is_some_and(|rows| !rows.contains(&true)) {
            return OutputVerdict::new(name, Disposition::Pass);
        }
        let comparison = compare(got.view(), want.view(), compared);
        let budget = self.budget(name, want, plain, compared);
        let over = comparison.metrics.values().into_iter().zip(budget.values()).any(|(error, budget)| error > budget);
        let (disposition, worst) = match (comparison.nonfinite, over) {
            (Some(element), _) => (Disposition::NonFinite, Some(element)),
            (None, true) => (Disposition::OverBudget, comparison.worst),
            (None, false) => (Disposition::Pass, comparison.worst),
        };
        let judged = OutputVerdict {
            error: Some(comparison.metrics),
            budget: Some(budget),
            worst,
            ..OutputVerdict::new(name, disposition)
        };
        match not_zero(got, want, compared) {
            Some(element) if !judged.disposition.fails() => {
                let note = "a row that nothing adds to is not 0".to_owned();
                OutputVerdict { disposition: Disposition::OverBudget, worst: Some(element), note: Some(note), ..judged }
            }
            _ => judged,
        }
    }

    /// What an output may be off: a multiple of what the plain implementations are, of which the worse counts.
    fn budget(&self, name: &str, want: &ArrayD<f64>, plain: &[&ArrayD<f64>], compared: Option<&[bool]>) -> Metrics {
        let noise = plain.iter().map(|plain| compare(plain.view(), want.view(), compared).metrics);
        let noise = noise.reduce(|a, b| a.zip(&b, f64::max)).unwrap_or_default();
        let spread = Spread::of(want.view(), compared);
        let stored = self.operator.contract.outputs[name].dtype.resolve(self.dtype);
        let factors = if stored == ElementType::Float32 { LOCAL_FACTORS } else { NARROW_LOCAL_FACTORS };
        let factors = for_so_many(factors, spread.independent_elements);
        with_floors(noise, spread, spread.independent_rows).zip(&factors, |noise, factor| noise * factor)
    }

    /// Whole numbers, one by one.
    fn judge_exact(&self, name: &str, got: &ArrayD<i64>) -> OutputVerdict {
        let want = self.truth[name].as_index().expect("whole numbers");
        let other = got.indexed_iter().zip(want).find(|((_, got), want)| got != want);
        let Some(((index, &got), &want)) = other else { return OutputVerdict::new(name, Disposition::Pass) };
        let worst =
            Some(Element { index: ndarray::Dimension::slice(&index).to_vec(), got: got as f64, want: want as f64 });
        OutputVerdict { worst, ..OutputVerdict::new(name, Disposition::OverBudget) }
    }

    /// What was written is judged by its error; what was not must be what was there.
    fn judge_in_place(&self, name: &str, got: &ArrayD<f64>, input: &str) -> OutputVerdict {
        let (before, want) = (real(&self.inputs, input), real(&self.truth, name));
        let width = want.shape().last().copied().unwrap_or(1).max(1);
        let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let flat = |values: &ArrayD<f64>| values.iter().copied().collect::<Vec<_>>();
        let (before, flat_want, flat_got) = (flat(before), flat(want), flat(got));
        let rows = before.chunks(width).zip(flat_want.chunks(width));
        let written: Vec<bool> = rows.map(|(before, want)| !before.iter().zip(want).all(same)).collect();
        let kept = written.iter().enumerate().filter(|(_, written)| !**written).map(|(row, _)| row);
        let changed =
            kept.flat_map(|row| row * width..(row + 1) * width).find(|&at| !same((&flat_got[at], &before[at])));
        if let Some(at) = changed {
            let worst = Some(Element { index: unravel(at, want.shape()), got: flat_got[at], want: before[at] });
            let note = "a slot that no token was to be written to was changed".to_owned();
            return OutputVerdict { worst, ..OutputVerdict::noted(name, Disposition::OverBudget, note) };
        }
        self.judge_numbers(name, got, Some(&written))
    }
}

/// An element of a row that is 0 in the truth, from end to end, and is not 0: no rounding makes that of nothing.
fn not_zero(got: &ArrayD<f64>, want: &ArrayD<f64>, compared: Option<&[bool]>) -> Option<Element> {
    let last = want.ndim().checked_sub(1)?;
    let rows = got.lanes(Axis(last)).into_iter().zip(want.lanes(Axis(last))).enumerate();
    let rows = rows.filter(|(row, _)| compared.is_none_or(|rows| rows[*row]));
    let mut zero = rows.filter(|(_, (_, want))| want.len() > 1 && want.iter().all(|x| *x == 0.0));
    let (row, at, got) =
        zero.find_map(|(row, (got, _))| got.iter().enumerate().find(|(_, x)| **x != 0.0).map(|(at, x)| (row, at, *x)))?;
    let index = unravel(row * want.len_of(Axis(last)) + at, want.shape());
    Some(Element { index, got, want: 0.0 })
}

/// The numbers of a tensor of a contract.
fn real<'a>(tensors: &'a Tensors, name: &str) -> &'a ArrayD<f64> {
    tensors[name].as_real().expect("an output of numbers")
}

/// The values of a tensor of a contract.
pub fn values(tensor: &dsv2_operators::Tensor) -> Values {
    match (tensor.element.real(), &tensor.elements) {
        (Some(dtype), dsv2_operators::tensor::Elements::Real(values)) => Values::Real(dtype, values.clone()),
        (_, dsv2_operators::tensor::Elements::Real(values)) => Values::Real(dsv2_reference::Dtype::F64, values.clone()),
        (_, dsv2_operators::tensor::Elements::Index(values)) => Values::Index(values.clone()),
    }
}

/// The same elements in the contract's shape.
fn in_shape(values: Option<&Values>, shape: &[usize]) -> Option<ArrayD<i64>> {
    fit(values?.index()?, shape)
}

#[cfg(test)]
mod tests;
