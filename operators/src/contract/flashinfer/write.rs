//! Definitions and workloads of ours, written.

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::super::{Axis, AxisKind, Contract, TypeSpec, Workload};
use super::file_stem;
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

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
    let axis = |(name, axis): (&String, &Axis)| {
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
