//! Rows: what of an operator's inputs can be given alone, a token or a sequence, so that its bits can be compared with those
//! that it has among others.

use indexmap::IndexMap;
use ndarray::{Axis, Slice};
use serde::{Deserialize, Serialize};

use super::Contract;
use crate::tensor::{Elements, Tensor, Tensors};

/// Along which axes rows lie.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// The axis that counts them, where tensors have such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<String>,
    /// Inputs that say where rows begin along other axes, and these axes.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub offsets: IndexMap<String, String>,
}

impl Contract {
    /// How many rows these inputs hold; 0 if none can be given alone.
    pub fn row_count(&self, inputs: &Tensors) -> usize {
        let Some(rows) = &self.rows else { return 0 };
        let counted = || {
            let axis = rows.axis.as_ref()?;
            self.inputs.iter().find_map(|(name, spec)| {
                let at = spec.shape.iter().position(|own| own == axis)?;
                Some(inputs.get(name)?.shape()[at])
            })
        };
        let offsets = || Some(inputs.get(rows.offsets.keys().next()?)?.shape()[0].saturating_sub(1));
        counted().or_else(offsets).unwrap_or(0)
    }

    /// The inputs of one row alone, as they are for a batch of one.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn alone(&self, inputs: &Tensors, row: usize) -> Tensors {
        let rows = self.rows.as_ref().expect("a contract with rows");
        let of = |(name, tensor): (&String, &Tensor)| {
            let alone = match rows.offsets.get(name) {
                Some(axis) => {
                    let length = self.span(inputs, axis, row).map_or(0, |(begin, end)| end - begin);
                    Tensor::index(tensor.element, ndarray::arr1(&[0, length as i64]).into_dyn())
                }
                None => self.part(inputs, &self.inputs[name].shape, tensor, row),
            };
            (name.clone(), alone)
        };
        inputs.iter().map(of).collect()
    }

    /// What of a tensor with these axes belongs to a row.
    ///
    /// # Panics
    /// If there is no such row, or the tensor has other axes.
    pub fn part(&self, inputs: &Tensors, shape: &[String], tensor: &Tensor, row: usize) -> Tensor {
        let mut part = tensor.clone();
        for (at, (begin, end)) in self.spans(inputs, shape, row) {
            let slice = Slice::from(begin..end);
            part.elements = match part.elements {
                Elements::Real(values) => Elements::Real(values.slice_axis(Axis(at), slice).to_owned()),
                Elements::Index(values) => Elements::Index(values.slice_axis(Axis(at), slice).to_owned()),
            };
        }
        part
    }

    /// Where a row begins and ends along each of these axes that rows lie along, by the place of the axis.
    pub fn spans(&self, inputs: &Tensors, shape: &[String], row: usize) -> Vec<(usize, (usize, usize))> {
        shape.iter().enumerate().filter_map(|(at, axis)| Some((at, self.span(inputs, axis, row)?))).collect()
    }

    /// Where a row begins and ends along an axis, if rows lie along it.
    fn span(&self, inputs: &Tensors, axis: &str, row: usize) -> Option<(usize, usize)> {
        let rows = self.rows.as_ref()?;
        if rows.axis.as_deref() == Some(axis) {
            return Some((row, row + 1));
        }
        let (name, _) = rows.offsets.iter().find(|(_, along)| *along == axis)?;
        let offsets = inputs[name].as_index()?;
        Some((usize::try_from(offsets[[row]]).ok()?, usize::try_from(offsets[[row + 1]]).ok()?))
    }
}
