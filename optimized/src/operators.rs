//! The operators: each checks its operands, chooses a kernel, and launches it on the device of its operands.
//!
//! Outputs are given by the caller, so that nothing is allocated while a model runs. Names and shapes are those of
//! `dsv2-reference`; N is the number of tokens of all sequences.

mod activation;
pub mod advance;
pub mod argmax;
mod arguments;
pub mod combine;
pub mod dispatch;
pub mod embedding;
pub mod experts;
pub mod gemm;
pub mod generated;
pub mod latent;
pub mod latent_read;
pub mod loss;
pub mod merge;
pub mod mla_decode;
pub mod mla_prefill;
pub mod rms_norm;
pub mod rope;
pub mod rotary;
pub mod router;
pub mod sample;
pub mod scratch;
pub mod swiglu;

use ptx_emulator::Grid;

use crate::{Element, Error, Result, Tensor};
use arguments::Arguments;

/// Which of an operator's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Written to be read: one thread for each result, no shared memory.
    Naive,
    /// Written to be fast.
    Tuned,
}

impl Variant {
    /// Both.
    pub const ALL: [Variant; 2] = [Variant::Naive, Variant::Tuned];
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Variant::Naive => "naive",
            Variant::Tuned => "tuned",
        })
    }
}

/// An operand with the words that an error about it needs.
pub(crate) struct Operand<'a> {
    operator: &'static str,
    name: &'static str,
    tensor: &'a Tensor,
}

impl<'a> Operand<'a> {
    pub(crate) fn new(operator: &'static str, name: &'static str, tensor: &'a Tensor) -> Self {
        Operand { operator, name, tensor }
    }

    /// It has this shape.
    pub(crate) fn shape(self, expected: &[usize]) -> Result<Self> {
        self.holds(
            self.tensor.shape() == expected,
            || format!("the shape {expected:?}"),
            || format!("{:?}", self.tensor.shape()),
        )?;
        Ok(self)
    }

    /// It has so many axes.
    pub(crate) fn axes<const N: usize>(self) -> Result<[usize; N]> {
        let shape = self.tensor.shape();
        shape
            .try_into()
            .map_err(|_| Error::operand(self.operator, self.name, format!("{N} axes"), format!("{shape:?}")))
    }

    /// Its elements are no integers.
    pub(crate) fn real(self) -> Result<Self> {
        let real = self.tensor.element() != Element::I32;
        self.holds(real, || "f32 or bf16".into(), || self.tensor.element().to_string())?;
        Ok(self)
    }

    /// Its elements are of this type.
    pub(crate) fn element(self, expected: Element) -> Result<Self> {
        self.holds(self.tensor.element() == expected, || expected.to_string(), || self.tensor.element().to_string())?;
        Ok(self)
    }

    /// Its elements are neighbours in row-major order.
    pub(crate) fn contiguous(self) -> Result<Self> {
        let found = || format!("the shape {:?} with strides {:?}", self.tensor.shape(), self.tensor.strides());
        self.holds(self.tensor.is_contiguous(), || "neighbouring elements".into(), found)?;
        Ok(self)
    }

    /// The elements of a row (the last axis) are neighbours; rows may be anywhere.
    pub(crate) fn contiguous_rows(self) -> Result<Self> {
        let (shape, strides) = (self.tensor.shape(), self.tensor.strides());
        let neighbours = strides.last().is_none_or(|stride| *stride == 1) || shape.last() == Some(&1);
        self.holds(neighbours, || "rows of neighbouring elements".into(), || format!("strides {strides:?}"))?;
        Ok(self)
    }

    fn holds(&self, it_does: bool, expected: impl FnOnce() -> String, found: impl FnOnce() -> String) -> Result<()> {
        if it_does { Ok(()) } else { Err(Error::operand(self.operator, self.name, expected(), found())) }
    }
}

/// Launches a kernel of a module that works on each row of logits \[N,V\] by itself, rows apart or not: naive with a thread
/// for each row, tuned with a grid of its own. `operands` stand between the logits and the sizes.
fn launch_by_row(
    module: &'static str,
    operator: &'static str,
    variant: Variant,
    logits: &Tensor,
    tuned: Grid,
    operands: impl FnOnce(Arguments) -> Arguments,
) -> Result<()> {
    let [rows, vocab] = Operand::new(operator, "logits", logits).axes()?;
    if rows == 0 {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear(rows.div_ceil(32) as u32, 32),
        Variant::Tuned => tuned,
    };
    let args = operands(Arguments::default().strided(logits, 1)).sizes([rows, vocab]);
    args.launch(logits, module, format!("{operator}_{variant}_{}", logits.element()), grid)
}

/// A tensor on an emulator of its own, to try what an operator refuses.
#[cfg(test)]
fn tensor(element: Element, shape: &[usize]) -> Tensor {
    let device: std::sync::Arc<dyn crate::Device> = crate::Emulated::new(crate::Library::embedded());
    Tensor::empty(&device, element, shape).unwrap()
}
