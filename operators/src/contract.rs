//! A contract: what an operator is given and returns, in data.

pub mod flashinfer;
mod rows;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor, Tensors};

pub use rows::Rows;

/// What an operator is given and returns. The terms are those of FlashInfer-Bench's definitions; sizes that a definition
/// fixes are left open, so that one contract stands for all of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// What it is called.
    pub name: String,
    /// What it is called with its sizes: `{axis}` stands for an axis' length.
    pub instance: String,
    /// FlashInfer-Bench's kind of operator.
    pub op_type: String,
    /// What it computes.
    pub description: String,
    /// The axes, by name.
    pub axes: IndexMap<String, Axis>,
    /// What holds between axes and inputs, as Python expressions.
    #[serde(default)]
    pub constraints: Vec<String>,
    /// What it is given, in the order of its arguments.
    pub inputs: IndexMap<String, TensorSpec>,
    /// What it returns, in order.
    pub outputs: IndexMap<String, OutputSpec>,
    /// What of its inputs has no meaning: a kernel may read it, and nothing may come of that.
    #[serde(default)]
    pub garbage: Vec<String>,
    /// What of its inputs can be given alone, if anything can.
    #[serde(default)]
    pub rows: Option<Rows>,
    /// What it is tried on.
    pub workloads: Vec<Workload>,
}

/// An axis.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Whether a kernel may be compiled for its length.
    #[serde(rename = "type")]
    pub kind: AxisKind,
    /// What it counts.
    pub description: String,
}

/// When the length of an axis is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AxisKind {
    /// When a kernel is compiled.
    Const,
    /// When it is launched.
    Var,
}

/// The type of an input or output: a fixed one, or that of the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TypeSpec {
    /// The type of activations and weights.
    Open(Activation),
    /// This one.
    Fixed(ElementType),
}

/// The type that a workload gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// bf16, f16 or fp32.
    Activation,
}

impl TypeSpec {
    /// The type, where activations have the type `activation`.
    pub fn resolve(self, activation: ElementType) -> ElementType {
        if let TypeSpec::Fixed(element) = self { element } else { activation }
    }

    /// What a contract calls it.
    pub fn name(self) -> &'static str {
        if let TypeSpec::Fixed(element) = self { element.name() } else { "activation" }
    }
}

/// An input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its axes, by name; a scalar has none.
    pub shape: Vec<String>,
    /// The type of its elements.
    pub dtype: TypeSpec,
    /// What it is.
    pub description: String,
    /// Where axes have these lengths, it says nothing, and is left out.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub left_out_where: IndexMap<String, usize>,
}

/// An output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Its axes, by name.
    pub shape: Vec<String>,
    /// The type of its elements.
    pub dtype: TypeSpec,
    /// What it is.
    pub description: String,
    /// How it is held against the truth.
    #[serde(default)]
    pub judged: Judged,
}

/// How an output is held against the truth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judged {
    /// By its error, against a budget.
    #[default]
    Numbers,
    /// The same where it was written; what was not must have the bits that the input of this name has.
    InPlace(String),
    /// As sets of experts for each token; near ties may go either way.
    Experts,
    /// By expert, for the experts that the output of this name holds.
    WeightsOf(String),
    /// As the index of the largest of the output of this name, the first of equal ones.
    BestOf(String),
    /// By its error, and by which numbers are 0: those of tokens that filters leave out.
    Filtered,
    /// Whole numbers, one by one.
    Exact,
    /// As blocks of choices, each of the expert that the output of this name says; the order of choices and blocks is free.
    BlocksOf(String),
    /// As so many blocks for each expert: those of the output of this name.
    ExpertOfBlock(String),
    /// As tokens that may be drawn; where many rows have one distribution, by how often each was.
    Sample,
}

/// One set of inputs: sizes, a type, and what is nasty about it. The numbers are a function of the name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// What is special about it.
    pub name: String,
    /// The lengths of axes; those that follow from others are left out.
    pub axes: IndexMap<String, usize>,
    /// The type of activations and weights.
    pub dtype: ElementType,
    /// Lengths of sequences and the like, by what they are of.
    #[serde(default)]
    pub lists: IndexMap<String, Vec<usize>>,
    /// Numbers that are not the usual ones.
    #[serde(default)]
    pub numbers: IndexMap<String, f64>,
    /// What is nasty about it, by the words that the operator knows.
    #[serde(default)]
    pub with: Vec<String>,
}

impl Workload {
    /// The length of an axis.
    pub(crate) fn axis(&self, name: &str) -> usize {
        self.axes.get(name).copied().unwrap_or_else(|| panic!("workload \"{}\" has no axis {name}", self.name))
    }

    /// A list of lengths.
    pub(crate) fn list(&self, name: &str) -> &[usize] {
        self.lists.get(name).unwrap_or_else(|| panic!("workload \"{}\" has no list {name}", self.name))
    }

    /// A number, or the usual one.
    pub(crate) fn number(&self, name: &str, usual: f64) -> f64 {
        self.numbers.get(name).copied().unwrap_or(usual)
    }

    /// Whether it has this nastiness.
    pub(crate) fn has(&self, nastiness: &str) -> bool {
        self.with.iter().any(|word| word == nastiness)
    }
}

impl Contract {
    /// The name with sizes, such as `mla_paged_decode_h16_ckv512_kpe64_ps1`.
    pub fn instance(&self, axes: &IndexMap<String, usize>) -> String {
        axes.iter().fold(self.instance.clone(), |name, (axis, length)| {
            name.replace(&format!("{{{axis}}}"), &length.to_string())
        })
    }

    /// The lengths of all axes that the inputs have, which must be there in the contract's shapes and types.
    ///
    /// # Errors
    /// If an input is missing, is one too many, is of another type, has other axes, or gives an axis two lengths.
    pub fn bind(&self, inputs: &Tensors, activation: ElementType) -> Result<IndexMap<String, usize>> {
        if let Some(name) = inputs.keys().find(|name| !self.inputs.contains_key(*name)) {
            let known = self.inputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::Unknown { what: "input", name: name.clone(), known });
        }
        let mut axes = IndexMap::new();
        for (name, spec) in &self.inputs {
            if let Some(tensor) = inputs.get(name) {
                self.bind_one("input", name, tensor, &spec.shape, spec.dtype.resolve(activation), &mut axes)?;
            }
        }
        let says_nothing = |spec: &TensorSpec| {
            let left_out = &spec.left_out_where;
            !left_out.is_empty() && left_out.iter().all(|(axis, length)| axes.get(axis) == Some(length))
        };
        for (name, spec) in &self.inputs {
            match (inputs.contains_key(name), says_nothing(spec)) {
                (false, false) => return Err(self.mismatch("input", name, "a tensor", "none")),
                (true, true) => return Err(self.mismatch("input", name, "none for these sizes", "a tensor")),
                _ => {}
            }
        }
        Ok(axes)
    }

    /// The same of what was returned, for lengths that are known.
    ///
    /// # Errors
    /// As [`Contract::bind`].
    pub fn check_output(
        &self,
        name: &str,
        tensor: &Tensor,
        activation: ElementType,
        axes: &IndexMap<String, usize>,
    ) -> Result<()> {
        let known = || self.outputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let unknown = || Error::Unknown { what: "output", name: name.to_owned(), known: known() };
        let spec = self.outputs.get(name).ok_or_else(unknown)?;
        self.bind_one("output", name, tensor, &spec.shape, spec.dtype.resolve(activation), &mut axes.clone())
    }

    fn bind_one(
        &self,
        what: &'static str,
        name: &str,
        tensor: &Tensor,
        shape: &[String],
        element: ElementType,
        axes: &mut IndexMap<String, usize>,
    ) -> Result<()> {
        if tensor.element != element {
            return Err(self.mismatch(what, name, element.name(), tensor.element.name()));
        }
        let symbols = || format!("[{}]", shape.join(", "));
        if tensor.shape().len() != shape.len() {
            return Err(self.mismatch(what, name, &symbols(), &format!("{:?}", tensor.shape())));
        }
        for (axis, &length) in shape.iter().zip(tensor.shape()) {
            let known = *axes.entry(axis.clone()).or_insert(length);
            if known != length {
                let expected = format!("{} with {axis} = {known}", symbols());
                return Err(self.mismatch(what, name, &expected, &format!("{:?}", tensor.shape())));
            }
        }
        Ok(())
    }

    /// A tensor, an axis or a key that is not what the contract says.
    pub(crate) fn mismatch(&self, what: &'static str, name: &str, expected: &str, found: &str) -> Error {
        Error::Mismatch {
            operator: self.name.clone(),
            what,
            name: name.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }
}
