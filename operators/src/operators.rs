//! The operators: the contract of each, what it means in terms of the reference, and how its workloads' inputs are made.

mod align;
mod attention;
mod cache;
mod combine;
mod draw;
mod experts;
mod fp8;
mod head;
mod norm;
mod projection;
mod rotary;
mod router;
mod sampling;
mod table;

pub use sampling::{Allowed, Filtered};

use dsv2_reference::config::TopkMethod;
use indexmap::IndexMap;
use ndarray::ArrayD;

use crate::call::{Call, Computed, Outputs, Plain};
use crate::contract::{Contract, Workload};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor, Tensors};
pub(crate) use draw::Draw;
pub(crate) use sampling::softmax_rows;
use table::{Meaning, OPERATORS};

/// One operator.
pub struct Operator {
    /// What it is given and returns.
    pub contract: Contract,
    meaning: Meaning,
}

impl Operator {
    /// All of them, in the order of a layer.
    pub fn all() -> &'static [Operator] {
        &OPERATORS
    }

    /// The one of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(name: &str) -> Result<&'static Operator> {
        let known =
            || Self::all().iter().map(|operator| operator.contract.name.as_str()).collect::<Vec<_>>().join(", ");
        let unknown = || Error::Unknown { what: "operator", name: name.to_owned(), known: known() };
        Self::all().iter().find(|operator| operator.contract.name == name).ok_or_else(unknown)
    }

    /// One of its workloads.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn workload(&self, name: &str) -> Result<&Workload> {
        let names = self.contract.workloads.iter().map(|workload| workload.name.as_str());
        let known = || names.collect::<Vec<_>>().join(", ");
        let found = self.contract.workloads.iter().find(|workload| workload.name == name);
        found.ok_or_else(|| Error::Unknown { what: "workload", name: name.to_owned(), known: known() })
    }

    /// The inputs of a workload: the same ones every time.
    ///
    /// # Errors
    /// If they do not fit the contract.
    pub fn inputs(&self, workload: &Workload) -> Result<Tensors> {
        let made = (self.meaning.inputs)(workload, &Draw::new(&self.contract.name, &workload.name));
        let in_order = self.contract.inputs.keys().filter_map(|name| Some((name.clone(), made.get(name)?.clone())));
        let inputs: Tensors = in_order.collect();
        self.contract.bind(&inputs, workload.dtype)?;
        Ok(inputs)
    }

    /// What must come out, in f64, from the inputs as they are stored.
    ///
    /// # Errors
    /// If the inputs do not fit the contract, or say something impossible (a page that is not there).
    pub fn truth(&self, inputs: &Tensors) -> Result<Tensors> {
        let activation = self.activation(inputs);
        self.contract.bind(inputs, activation)?;
        let outputs = (self.meaning.exact)(&self.contract, &Call::new(inputs, None))?;
        Ok(self.named_outputs(outputs, activation, |_, values| Tensor {
            element: ElementType::Float32,
            elements: crate::tensor::Elements::Real(values),
        }))
    }

    /// What a plain implementation returns: fp32 inside, in the contract's types outside.
    ///
    /// # Errors
    /// As [`Operator::truth`].
    pub fn plain(&self, inputs: &Tensors, plain: Plain) -> Result<Tensors> {
        let activation = self.activation(inputs);
        self.contract.bind(inputs, activation)?;
        let operands = (plain == Plain::Operands).then_some(activation);
        let outputs = (self.meaning.plain)(&self.contract, &Call::new(inputs, operands))?;
        Ok(self.named_outputs(outputs, activation, Tensor::real))
    }

    /// The weights of experts that were chosen, whether or not they are those that should have been; `None` if the operator
    /// chooses none.
    ///
    /// # Errors
    /// If the inputs do not fit the contract.
    ///
    /// # Panics
    /// If an expert does not exist.
    pub fn weights_of(&self, inputs: &Tensors, chosen: &ArrayD<i64>) -> Result<Option<ArrayD<f64>>> {
        let weights = self.meaning.choice.as_ref().map(|choice| choice.weights);
        weights.map(|weights| weights(&self.contract, &Call::new(inputs, None), chosen)).transpose()
    }

    /// How experts are chosen by `router_logits`, where a near tie may go either way; `None` where only one choice is right.
    ///
    /// # Errors
    /// If the inputs do not fit the contract.
    pub fn method(&self, inputs: &Tensors) -> Result<Option<TopkMethod>> {
        let method = self.meaning.choice.as_ref().map(|choice| choice.method);
        Ok(method.map(|method| method(&self.contract, &Call::new(inputs, None))).transpose()?.flatten())
    }

    /// What filters leave of distributions; `None` if the operator has none.
    ///
    /// # Errors
    /// If the inputs do not fit the contract.
    pub fn filtered(&self, inputs: &Tensors) -> Result<Option<Filtered>> {
        self.meaning.filtered.map(|filtered| filtered(&self.contract, &Call::new(inputs, None))).transpose()
    }

    /// The type of activations: that of the first input whose type is open.
    pub fn activation(&self, inputs: &Tensors) -> ElementType {
        let open = |name: &&String| matches!(self.contract.inputs[*name].dtype, crate::contract::TypeSpec::Open(_));
        let first = self.contract.inputs.keys().find(open).and_then(|name| inputs.get(name));
        first.map_or(ElementType::Float32, |tensor| tensor.element)
    }

    fn named_outputs<T: dsv2_reference::Real>(
        &self,
        outputs: Outputs<T>,
        activation: ElementType,
        real: impl Fn(ElementType, ndarray::ArrayD<f64>) -> Tensor,
    ) -> Tensors {
        let mut named: IndexMap<&str, Computed<T>> = outputs.into_iter().collect();
        let specs = self.contract.outputs.iter();
        specs
            .map(|(name, spec)| {
                let element = spec.dtype.resolve(activation);
                let computed = named.swap_remove(name.as_str()).expect("an operator returns what its contract says");
                let tensor = match computed {
                    Computed::Real(values) => real(element, values.mapv(dsv2_reference::Real::to_f64)),
                    Computed::Index(values) => Tensor::index(element, values),
                };
                (name.clone(), tensor)
            })
            .collect()
    }
}
