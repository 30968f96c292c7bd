//! The values of a stage or an input, wide enough to compare anything with anything.

use std::path::Path;
use std::sync::Arc;

use dsv2_reference::weights::safetensors_file::{Data, SafetensorsFile, read_safetensors};
use dsv2_reference::{Dtype, Tensor};
use ndarray::ArrayD;

use crate::error::Result;

/// A tensor whose type is known only when it is looked at.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Numbers, widened to `f64`, and the type they were stored or computed in.
    Real(Dtype, ArrayD<f64>),
    /// Whole numbers.
    Index(ArrayD<i64>),
    /// Yes or no.
    Bool(ArrayD<bool>),
}

impl Values {
    /// The lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        match self {
            Values::Real(_, a) => a.shape(),
            Values::Index(a) => a.shape(),
            Values::Bool(a) => a.shape(),
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, if it holds numbers.
    pub fn real(&self) -> Option<&ArrayD<f64>> {
        if let Values::Real(_, a) = self { Some(a) } else { None }
    }

    /// The whole numbers, if it holds such.
    pub fn index(&self) -> Option<&ArrayD<i64>> {
        if let Values::Index(a) = self { Some(a) } else { None }
    }

    /// The same elements in `shape`, if the two shapes differ by axes of length 1 only.
    pub fn fit(&self, shape: &[usize]) -> Option<Self> {
        Some(match self {
            Values::Real(dtype, a) => Values::Real(*dtype, fit(a, shape)?),
            Values::Index(a) => Values::Index(fit(a, shape)?),
            Values::Bool(a) => Values::Bool(fit(a, shape)?),
        })
    }

    /// The type and the shape, for messages.
    pub fn describe(&self) -> String {
        let name = match self {
            Values::Real(Dtype::Bf16, _) => "BF16",
            Values::Real(Dtype::F16, _) => "F16",
            Values::Real(Dtype::F32, _) => "F32",
            Values::Real(Dtype::F64, _) => "F64",
            Values::Index(_) => "I64",
            Values::Bool(_) => "BOOL",
        };
        format!("{name} {:?}", self.shape())
    }
}

impl From<Data> for Values {
    fn from(data: Data) -> Self {
        match data {
            Data::Real(tensor) => Values::Real(tensor.dtype(), tensor.to_array()),
            Data::Index(a) => Values::Index(a),
            Data::Bool(a) => Values::Bool(a),
        }
    }
}

impl From<&Values> for Data {
    fn from(values: &Values) -> Self {
        match values {
            Values::Real(dtype, a) => Data::Real(Tensor::from_values(*dtype, a.shape(), a.iter().copied())),
            Values::Index(a) => Data::Index(a.clone()),
            Values::Bool(a) => Data::Bool(a.clone()),
        }
    }
}

/// The same elements in `shape`, if the two shapes differ by axes of length 1 only.
pub fn fit<T: Clone>(a: &ArrayD<T>, shape: &[usize]) -> Option<ArrayD<T>> {
    let long = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    (long(a.shape()) == long(shape)).then(|| a.to_shape(shape).ok().map(|a| a.to_owned())).flatten()
}

/// Reads all tensors of a safetensors file.
///
/// # Errors
/// If it cannot be read, or is no safetensors file.
pub fn read(path: &Path) -> Result<Vec<(String, Values)>> {
    Ok(read_safetensors(path)?.into_iter().map(|(name, data)| (name, data.into())).collect())
}

/// The same of a file that lies in memory; `path` is for messages.
///
/// # Errors
/// If it is no safetensors file.
pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Vec<(String, Values)>> {
    let file = SafetensorsFile::from_bytes(path, Arc::new(bytes))?;
    file.names().into_iter().map(|name| Ok((name.clone(), file.data(&name)?.into()))).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn every_type_survives_the_way_to_disk() {
        for values in [
            Values::Real(Dtype::Bf16, array![1.0, -0.5].into_dyn()),
            Values::Real(Dtype::F64, array![[1e-300]].into_dyn()),
            Values::Real(Dtype::F32, ndarray::arr0(f64::NEG_INFINITY).into_dyn()),
            Values::Index(array![-100, 7].into_dyn()),
            Values::Bool(array![true, false].into_dyn()),
        ] {
            assert_eq!(Values::from(Data::from(&values)), values);
        }
        assert_eq!(Values::Index(array![[1, 2]].into_dyn()).describe(), "I64 [1, 2]");
    }
}
