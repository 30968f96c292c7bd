//! FlashInfer-Bench's files: a definition for each set of sizes that a kernel is compiled for, and its workloads, one a line.

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::{AxisKind, Contract, TypeSpec, Workload};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor, Tensors};

/// A workload's name as part of a file's: letters and digits, one `_` for whatever lies between.
pub fn file_stem(workload: &Workload) -> String {
    let words = workload.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_").to_lowercase()
}

/// A workload whose sizes are known, and the definition that it is one of.
pub struct Instance {
    name: String,
    definition: Value,
    workload: Value,
}

impl Instance {
    /// Of a workload whose inputs lie in `file`.
    ///
    /// # Errors
    /// If the inputs do not fit the contract.
    pub fn new(contract: &Contract, workload: &Workload, inputs: &Tensors, file: &str) -> Result<Self> {
        let axes = contract.bind(inputs, workload.dtype)?;
        let name = match workload.dtype {
            ElementType::Bfloat16 => contract.instance(&axes),
            other => format!("{}_{}", contract.instance(&axes), other.name()),
        };
        let definition = definition(contract, &name, &axes, inputs, workload.dtype);
        let open = contract.axes.iter().filter(|(_, axis)| axis.kind == AxisKind::Var);
        let open: Map<_, _> = open.filter_map(|(axis, _)| Some((axis.clone(), json!(axes.get(axis)?)))).collect();
        let source = |(key, tensor): (&String, &Tensor)| {
            let scalar = tensor.as_real().filter(|values| values.ndim() == 0).map(|values| json!(values.sum()));
            let scalar = scalar
                .or_else(|| tensor.as_index().filter(|values| values.ndim() == 0).map(|values| json!(values.sum())));
            let source = match scalar {
                Some(value) => json!({ "type": "scalar", "value": value }),
                None => json!({ "type": "safetensors", "path": file, "tensor_key": key }),
            };
            (key.clone(), source)
        };
        let sources: Map<_, _> = inputs.iter().map(source).collect();
        let workload = json!({
            "definition": name,
            "workload": { "uuid": file_stem(workload), "axes": open, "inputs": sources },
            "solution": null,
            "evaluation": null,
        });
        Ok(Instance { name, definition, workload })
    }
}

/// A definition's name, text, and the lines of its workloads, for each definition that instances have.
pub fn files(instances: &[Instance]) -> Vec<(String, String, String)> {
    let mut of: IndexMap<&str, Vec<&Instance>> = IndexMap::new();
    for instance in instances {
        of.entry(&instance.name).or_default().push(instance);
    }
    let text = |instances: Vec<&Instance>| {
        let definition = serde_json::to_string_pretty(&instances[0].definition).expect("a tree of strings and numbers");
        let lines = instances.iter().map(|instance| format!("{}\n", instance.workload)).collect();
        (instances[0].name.clone(), format!("{definition}\n"), lines)
    };
    of.into_values().map(text).collect()
}

/// The contract with its sizes, as a definition. What it means is not said in Python: `dsv2 operator check` says it.
fn definition(
    contract: &Contract,
    name: &str,
    bound: &IndexMap<String, usize>,
    inputs: &Tensors,
    activation: ElementType,
) -> Value {
    let axis = |(name, axis): (&String, &super::Axis)| {
        let value = match (axis.kind, bound.get(name)) {
            (AxisKind::Const, Some(length)) => {
                json!({ "type": "const", "value": length, "description": axis.description })
            }
            _ => json!({ "type": "var", "description": axis.description }),
        };
        (name.clone(), value)
    };
    let tensor = |shape: &[String], dtype: TypeSpec, description: &str| {
        let shape = if shape.is_empty() { Value::Null } else { json!(shape) };
        json!({ "shape": shape, "dtype": dtype.resolve(activation).name(), "description": description })
    };
    let given = contract.inputs.iter().filter(|(name, _)| inputs.contains_key(*name));
    let given: Map<_, _> =
        given.map(|(name, spec)| (name.clone(), tensor(&spec.shape, spec.dtype, &spec.description))).collect();
    let returned = contract.outputs.iter();
    let returned: Map<_, _> =
        returned.map(|(name, spec)| (name.clone(), tensor(&spec.shape, spec.dtype, &spec.description))).collect();
    let arguments = given.keys().cloned().collect::<Vec<_>>().join(", ");
    let reference = format!(
        "def run({arguments}):\n    raise NotImplementedError(\"dsv2 operator check {} OUTPUTS\")\n",
        contract.name
    );
    json!({
        "name": name,
        "op_type": contract.op_type,
        "description": contract.description,
        "axes": contract.axes.iter().map(axis).collect::<Map<_, _>>(),
        "constraints": contract.constraints,
        "inputs": given,
        "outputs": returned,
        "reference": reference,
    })
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
        let left_out = |spec: &super::TensorSpec| {
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
