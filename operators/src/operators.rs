//! The operators: the contract of each, what it means in terms of the reference, and how its workloads' inputs are made.

mod attention;
mod cache;
mod draw;
mod experts;
mod head;
mod norm;
mod projection;
mod rotary;
mod router;

use std::sync::LazyLock;

use dsv2_reference::config::TopkMethod;
use indexmap::IndexMap;
use ndarray::ArrayD;

use crate::call::{Call, Computed, Outputs, Plain};
use crate::contract::{Contract, Workload};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor, Tensors};
use draw::Draw;

/// One operator.
pub struct Operator {
    /// What it is given and returns.
    pub contract: Contract,
    meaning: &'static Meaning,
}

/// What an operator means: the same function in two types, and what makes its inputs.
struct Meaning {
    exact: fn(&Contract, &Call) -> Result<Outputs<f64>>,
    plain: fn(&Contract, &Call) -> Result<Outputs<f32>>,
    inputs: fn(&Workload, &Draw) -> Tensors,
    choice: Option<Choice>,
}

/// What an operator that chooses experts says of a choice that is not its own.
struct Choice {
    weights: fn(&Contract, &Call, &ArrayD<i64>) -> Result<ArrayD<f64>>,
    /// By what experts are chosen, if near ties can be told.
    method: fn(&Contract, &Call) -> Result<Option<TopkMethod>>,
}

/// A [`Meaning`] of a generic function.
macro_rules! meaning {
    ($function:path, $inputs:path) => {
        &Meaning { exact: $function, plain: $function, inputs: $inputs, choice: None }
    };
    ($function:path, $inputs:path, $weights:path, $method:path) => {{
        const CHOICE: Option<Choice> = Some(Choice { weights: $weights, method: $method });
        &Meaning { exact: $function, plain: $function, inputs: $inputs, choice: CHOICE }
    }};
}

/// The contracts, and what they mean.
static OPERATORS: LazyLock<Vec<Operator>> = LazyLock::new(|| {
    let operator = |text: &str, meaning| Operator {
        contract: serde_json::from_str(text).unwrap_or_else(|error| panic!("a contract of this crate: {error}")),
        meaning,
    };
    vec![
        operator(include_str!("../contracts/rmsnorm.json"), meaning!(norm::rmsnorm, norm::inputs)),
        operator(
            include_str!("../contracts/fused_add_rmsnorm.json"),
            meaning!(norm::fused_add_rmsnorm, norm::inputs_with_residual),
        ),
        operator(include_str!("../contracts/rotary_interleaved.json"), meaning!(rotary::interleaved, rotary::inputs)),
        operator(include_str!("../contracts/rotary_halves.json"), meaning!(rotary::halves, rotary::inputs)),
        operator(include_str!("../contracts/mla_cache_append.json"), meaning!(cache::append, cache::inputs)),
        operator(include_str!("../contracts/mla_absorb.json"), meaning!(projection::absorb, projection::inputs)),
        operator(
            include_str!("../contracts/mla_paged_decode.json"),
            meaning!(attention::paged_decode, attention::decode_inputs),
        ),
        operator(
            include_str!("../contracts/mla_paged_prefill_causal.json"),
            meaning!(attention::paged_prefill, attention::prefill_inputs),
        ),
        operator(
            include_str!("../contracts/mla_ragged_prefill_causal.json"),
            meaning!(attention::ragged_prefill, attention::ragged_inputs),
        ),
        operator(include_str!("../contracts/merge_state.json"), meaning!(attention::merge_state, attention::states)),
        operator(
            include_str!("../contracts/router_softmax.json"),
            meaning!(router::softmax, router::softmax_inputs, router::softmax_weights, router::softmax_method),
        ),
        operator(
            include_str!("../contracts/router_sigmoid_bias.json"),
            meaning!(router::sigmoid_bias, router::sigmoid_inputs, router::sigmoid_weights, router::no_method),
        ),
        operator(include_str!("../contracts/silu_and_mul.json"), meaning!(experts::silu_and_mul, experts::gate_up)),
        operator(include_str!("../contracts/moe_experts.json"), meaning!(experts::grouped, experts::inputs)),
        operator(include_str!("../contracts/lm_head_argmax.json"), meaning!(head::argmax, head::argmax_inputs)),
        operator(include_str!("../contracts/cross_entropy.json"), meaning!(head::cross_entropy, head::labelled)),
    ]
});

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
