//! Definitions and workloads of others, read.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{Contract, TensorSpec, TypeSpec};
use crate::error::{Error, Result};
use crate::operators::{Draw, softmax_rows};
use crate::tensor::{ElementType, Tensor, Tensors};

/// What a workload may hold in all: it is held as eight bytes a number.
const MOST_NUMBERS: usize = 1 << 27;

/// A line of a file of workloads.
#[derive(Deserialize)]
struct Line {
    definition: String,
    workload: Given,
}

/// A workload, as FlashInfer-Bench gives it.
#[derive(Clone, Debug, Deserialize)]
pub struct Given {
    /// What it is called.
    pub uuid: String,
    /// The lengths of the axes that the definition leaves open.
    pub axes: IndexMap<String, usize>,
    /// Where each input comes from.
    pub inputs: IndexMap<String, Source>,
    /// The definition's name.
    #[serde(skip)]
    pub definition: String,
}

/// Where an input comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Source {
    /// Normal numbers; probabilities, where probabilities are drawn from.
    Random,
    /// This number.
    Scalar {
        /// It.
        value: Value,
    },
    /// A tensor of a file.
    Safetensors {
        /// The file, from the root of the trace set.
        path: String,
        /// The tensor's name in it.
        tensor_key: String,
    },
}

/// The workloads of a file of lines, and the number of each line.
///
/// # Errors
/// If a line is none.
pub fn workloads(text: &str) -> Result<Vec<(usize, Given)>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let refused = |error: serde_json::Error| Error::Format {
                what: format!("line {}", at + 1),
                expected: "a workload of FlashInfer-Bench".into(),
                found: error.to_string(),
            };
            let Line { definition, workload } = serde_json::from_str(line).map_err(refused)?;
            Ok((at + 1, Given { definition, ..workload }))
        })
        .collect()
}

impl Given {
    /// Its name as part of a file's.
    pub fn file_stem(&self) -> String {
        super::stem(&self.uuid)
    }

    /// Its inputs, for sizes that the definition fixes and a type of activations; `load` reads a tensor of a file.
    ///
    /// # Errors
    /// If an input is missing or makes no sense, is of another shape or type than the contract's, or cannot be loaded.
    pub fn inputs<E: From<Error>>(
        &self,
        contract: &Contract,
        consts: &IndexMap<String, usize>,
        activation: ElementType,
        mut load: impl FnMut(&str, &str) -> Result<Tensor, E>,
    ) -> Result<Tensors, E> {
        let mut inputs = Tensors::new();
        let mut room = MOST_NUMBERS;
        for (name, spec) in &contract.inputs {
            let Some(source) = self.inputs.get(name) else { continue };
            let element = spec.dtype.resolve(activation);
            let tensor = match source {
                Source::Scalar { value } => scalar(contract, name, spec, element, value)?,
                Source::Random => self.random(contract, name, spec, element, consts, &mut room)?,
                Source::Safetensors { path, tensor_key } => {
                    let tensor = stored(contract, name, element, load(path, tensor_key)?)?;
                    self.fits(contract, name, spec, consts, tensor.shape())?;
                    tensor
                }
            };
            inputs.insert(name.clone(), tensor);
        }
        if let Some(name) = self.inputs.keys().find(|name| !contract.inputs.contains_key(*name)) {
            let known = contract.inputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::Unknown { what: "input", name: name.clone(), known }.into());
        }
        contract.bind(&inputs, activation)?;
        Ok(inputs)
    }

    /// The length of an axis, if it is known.
    fn axis(&self, consts: &IndexMap<String, usize>, axis: &str) -> Option<usize> {
        consts.get(axis).or_else(|| self.axes.get(axis)).copied()
    }

    fn fits(
        &self,
        contract: &Contract,
        name: &str,
        spec: &TensorSpec,
        consts: &IndexMap<String, usize>,
        shape: &[usize],
    ) -> Result<()> {
        let known: Vec<_> = spec.shape.iter().map(|axis| self.axis(consts, axis)).collect();
        let same = known.len() == shape.len()
            && known.iter().zip(shape).all(|(known, n)| known.is_none_or(|known| known == *n));
        if same {
            return Ok(());
        }
        let named =
            |(axis, known): (&String, &Option<usize>)| known.map_or(axis.clone(), |known| format!("{axis} = {known}"));
        let expected = spec.shape.iter().zip(&known).map(named).collect::<Vec<_>>().join(", ");
        Err(contract.mismatch("input", name, &format!("[{expected}]"), &format!("{shape:?}")))
    }

    /// Normal numbers of this shape: the same for the same workload.
    fn random(
        &self,
        contract: &Contract,
        name: &str,
        spec: &TensorSpec,
        element: ElementType,
        consts: &IndexMap<String, usize>,
        room: &mut usize,
    ) -> Result<Tensor> {
        let refused = |expected: &str, found: &str| contract.mismatch("input", name, expected, found);
        if !element.is_real() {
            return Err(refused("a scalar, or a tensor of a file", "random whole numbers, which mean nothing"));
        }
        let length =
            |axis: &String| self.axis(consts, axis).ok_or_else(|| refused(&format!("a length of axis {axis}"), "none"));
        let shape = spec.shape.iter().map(length).collect::<Result<Vec<_>>>()?;
        let count = shape.iter().try_fold(1usize, |count, length| count.checked_mul(*length));
        let left = count.and_then(|count| room.checked_sub(count));
        *room = left
            .ok_or_else(|| refused(&format!("at most {MOST_NUMBERS} random numbers in all"), &format!("{shape:?}")))?;
        let mut values = Draw::new(&self.definition, &self.uuid).normal(name, &shape, 1.0);
        if element == ElementType::Float8 {
            values.mapv_inplace(|x| x.clamp(-2.0, 2.0));
        }
        if contract.op_type == "sampling" && name == "probs" {
            softmax_rows(&mut values);
        }
        Ok(Tensor::real(element, values))
    }
}

/// A number as an input without axes, or as the same number along its only axis.
fn scalar(contract: &Contract, name: &str, spec: &TensorSpec, element: ElementType, value: &Value) -> Result<Tensor> {
    let refused = |expected: &str| contract.mismatch("input", name, expected, &value.to_string());
    if !spec.shape.is_empty() {
        return Err(refused(&format!("a tensor [{}]", spec.shape.join(", "))));
    }
    if element.is_real() {
        let x = value.as_f64().ok_or_else(|| refused("a number"))?;
        return Ok(Tensor::real(element, ndarray::arr0(x).into_dyn()));
    }
    let whole = value.as_i64().or_else(|| value.as_bool().map(i64::from)).ok_or_else(|| refused("a whole number"))?;
    Ok(Tensor::index(element, ndarray::arr0(whole).into_dyn()))
}

/// A tensor of a file in the contract's type, which must hold its numbers as they are.
fn stored(contract: &Contract, name: &str, element: ElementType, tensor: Tensor) -> Result<Tensor> {
    let refused = |found: &str| contract.mismatch("input", name, element.name(), found);
    match (element.is_real(), tensor.as_real(), tensor.as_index()) {
        (true, Some(values), _) => {
            let held = Tensor::real(element, values.clone());
            let same = held.as_real().is_some_and(|held| held.iter().zip(values).all(|(a, b)| a == b || b.is_nan()));
            if same { Ok(held) } else { Err(refused("numbers that this type does not hold")) }
        }
        (false, _, Some(values)) => Ok(Tensor::index(element, values.clone())),
        (true, ..) => Err(refused("whole numbers")),
        (false, ..) => Err(refused("numbers that are not whole")),
    }
}

/// A definition of FlashInfer-Bench that is one of ours with its sizes: the contract's name, the lengths that it fixes, and
/// the type of its activations.
///
/// # Errors
/// If the text is no definition, or no contract has these inputs and outputs in these shapes.
pub fn recognise<'a>(
    text: &str,
    contracts: impl IntoIterator<Item = &'a Contract>,
) -> Result<(&'a Contract, IndexMap<String, usize>, ElementType)> {
    let refused =
        |expected: &str, found: String| Error::Format { what: "definition".into(), expected: expected.into(), found };
    let given: Value = serde_json::from_str(text).map_err(|error| refused("JSON", error.to_string()))?;
    let tensors = |key: &str| -> Result<IndexMap<String, (Vec<String>, String)>> {
        let tensors =
            given[key].as_object().ok_or_else(|| refused(&format!("an object `{key}`"), kind(&given[key])))?;
        let shape = |spec: &Value| {
            spec["shape"]
                .as_array()
                .map(|axes| axes.iter().map(|axis| axis.as_str().unwrap_or("").to_owned()).collect())
        };
        Ok(tensors
            .iter()
            .map(|(name, spec)| {
                (name.clone(), (shape(spec).unwrap_or_default(), spec["dtype"].as_str().unwrap_or("").to_owned()))
            })
            .collect())
    };
    let (inputs, outputs) = (tensors("inputs")?, tensors("outputs")?);
    let consts: IndexMap<String, usize> = given["axes"]
        .as_object()
        .ok_or_else(|| refused("an object `axes`", kind(&given["axes"])))?
        .iter()
        .filter_map(|(name, axis)| Some((name.clone(), usize::try_from(axis["value"].as_u64()?).ok()?)))
        .collect();
    let same = |contract: &Contract| {
        let mut activation = None;
        let mut fits = |shape: &[String], dtype: TypeSpec, given: &(Vec<String>, String)| {
            let typed = match dtype {
                TypeSpec::Fixed(element) => element.name() == given.1,
                TypeSpec::Open(_) => *activation.get_or_insert_with(|| given.1.clone()) == given.1,
            };
            typed && shape == given.0
        };
        let left_out = |spec: &TensorSpec| {
            let left_out = &spec.left_out_where;
            !left_out.is_empty() && left_out.iter().all(|(axis, length)| consts.get(axis) == Some(length))
        };
        let known = inputs.keys().all(|name| contract.inputs.contains_key(name))
            && outputs.keys().all(|name| contract.outputs.contains_key(name));
        let all = known
            && contract.inputs.iter().all(|(name, spec)| match inputs.get(name) {
                Some(given) => fits(&spec.shape, spec.dtype, given),
                None => left_out(spec),
            })
            && contract
                .outputs
                .iter()
                .all(|(name, spec)| outputs.get(name).is_some_and(|given| fits(&spec.shape, spec.dtype, given)));
        all.then_some(activation)
    };
    let found = contracts.into_iter().find_map(|contract| Some((contract, same(contract)?)));
    let (contract, activation) = found.ok_or_else(|| {
        let found = inputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        refused("the inputs and outputs of one of our contracts", format!("inputs {found}"))
    })?;
    let activation = activation.unwrap_or_else(|| ElementType::Float32.name().to_owned());
    let activation = serde_json::from_value(json!(activation))
        .map_err(|_| refused("activations in bf16, f16 or fp32", activation))?;
    Ok((contract, consts, activation))
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "none",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
    .to_owned()
}
