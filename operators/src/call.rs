//! One call of an operator: its inputs in the type of a computation.

use dsv2_reference::Real;
use ndarray::{Array, ArrayD, Dimension, IxDyn};

use crate::tensor::{ElementType, Tensor, Tensors};

/// How a plain implementation rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Everything in fp32, what is returned in the type of the outputs.
    Fp32,
    /// The same, with what is multiplied next rounded to the type of the outputs: the probabilities of attention, the gated
    /// product of an MLP. Tensor cores take no other operands.
    Operands,
}

/// A value of an output, in the type of the computation.
#[derive(Clone, Debug)]
pub enum Computed<T> {
    /// Numbers.
    Real(ArrayD<T>),
    /// Whole numbers.
    Index(ArrayD<i64>),
}

/// What an operator returns, by the names of its contract.
pub type Outputs<T> = Vec<(&'static str, Computed<T>)>;

impl<T, D: Dimension> From<Array<T, D>> for Computed<T> {
    fn from(values: Array<T, D>) -> Self {
        Computed::Real(values.into_dyn())
    }
}

/// Inputs that a contract has found right: their names, shapes and types.
pub(crate) struct Call<'a> {
    inputs: &'a Tensors,
    operands: Option<ElementType>,
}

impl<'a> Call<'a> {
    /// Of a computation that rounds its operands to a type, if there is one.
    pub fn new(inputs: &'a Tensors, operands: Option<ElementType>) -> Self {
        Call { inputs, operands }
    }

    /// Numbers.
    ///
    /// # Panics
    /// If the contract has no such input, with so many axes.
    pub fn real<T: Real, D: Dimension>(&self, name: &str) -> Array<T, D> {
        let values = self.inputs[name].as_real().expect("an input of numbers");
        values.mapv(T::from_f64).into_dimensionality().expect("as many axes as the contract says")
    }

    /// Whole numbers.
    ///
    /// # Panics
    /// If the contract has no such input, with so many axes.
    pub fn index<D: Dimension>(&self, name: &str) -> Array<i64, D> {
        let values = self.inputs[name].as_index().expect("an input of whole numbers");
        values.clone().into_dimensionality().expect("as many axes as the contract says")
    }

    /// A number.
    ///
    /// # Panics
    /// If the contract has no such input, without axes.
    pub fn scalar<T: Real>(&self, name: &str) -> T {
        T::from_f64(self.inputs[name].as_real().expect("an input of numbers")[IxDyn(&[])])
    }

    /// Whether it rounds what is multiplied next.
    pub fn rounds_operands(&self) -> bool {
        self.operands.is_some()
    }

    /// What is multiplied next, as an implementation that rounds its operands holds it.
    pub fn operand<T: Real, D: Dimension>(&self, values: Array<T, D>) -> Array<T, D> {
        match self.operands {
            Some(element) => values.mapv_into(|x| T::from_f64(element.round(x.to_f64()))),
            None => values,
        }
    }

    /// Whether it has this input.
    pub fn has(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }

    /// An input as it is.
    pub fn tensor(&self, name: &str) -> &Tensor {
        &self.inputs[name]
    }
}
