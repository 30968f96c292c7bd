//! The values of a stage or an input, wide enough to compare anything with anything.

use std::path::Path;
use std::sync::Arc;

use dsv2_reference::weights::safetensors_file::Data;
use dsv2_reference::{Dtype, Tensor};
use ndarray::ArrayD;

use crate::error::{Error, Result, one_line};
use crate::files::{Decoded, TensorFile};

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

    /// The type that its numbers were stored or computed in, if it holds numbers.
    pub fn dtype(&self) -> Option<Dtype> {
        if let Values::Real(dtype, _) = self { Some(*dtype) } else { None }
    }

    /// The whole numbers, if it holds such.
    pub fn index(&self) -> Option<&ArrayD<i64>> {
        if let Values::Index(a) = self { Some(a) } else { None }
    }

    /// Whether another tensor holds the same numbers in the same order, in whatever shape and type; NaN is NaN.
    pub fn identical(&self, other: &Self) -> bool {
        match (self, other) {
            (Values::Real(_, a), Values::Real(_, b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x == y || x.is_nan() && y.is_nan())
            }
            (Values::Index(a), Values::Index(b)) => a.iter().eq(b),
            _ => self == other,
        }
    }

    /// The same elements in `shape`, if the two shapes differ by axes of length 1 only.
    pub fn fit(&self, shape: &[usize]) -> Option<Self> {
        Some(match self {
            Values::Real(dtype, a) => Values::Real(*dtype, fit(a, shape)?),
            Values::Index(a) => Values::Index(fit(a, shape)?),
            Values::Bool(a) => Values::Bool(fit(a, shape)?),
        })
    }

    /// The same elements, one after another, in another shape of as many.
    pub fn in_shape(self, shape: &[usize]) -> Option<Self> {
        Some(match self {
            Values::Real(dtype, a) => Values::Real(dtype, a.into_shape_with_order(shape).ok()?),
            Values::Index(a) => Values::Index(a.into_shape_with_order(shape).ok()?),
            Values::Bool(a) => Values::Bool(a.into_shape_with_order(shape).ok()?),
        })
    }

    /// The type and the shape, for messages.
    pub fn describe(&self) -> String {
        match self {
            Values::Real(..) | Values::Index(_) => described(self.dtype(), self.shape()),
            Values::Bool(a) => format!("BOOL {:?}", a.shape()),
        }
    }
}

/// Numbers of a type, or whole ones, and their shape, for messages.
pub fn described(dtype: Option<Dtype>, shape: &[usize]) -> String {
    let name = match dtype {
        Some(Dtype::Bf16) => "BF16",
        Some(Dtype::F16) => "F16",
        Some(Dtype::F32) => "F32",
        Some(Dtype::F64) => "F64",
        None => "I64",
    };
    format!("{name} {shape:?}")
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

/// Reads all tensors of a file, of any [format](crate::files).
///
/// # Errors
/// If it cannot be read, is of no format that is known, or holds complex numbers.
pub fn read(path: &Path) -> Result<Vec<(String, Values)>> {
    all(path, TensorFile::open(path)?)
}

/// The same of a file that lies in memory; `path` is for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Vec<(String, Values)>> {
    all(path, TensorFile::from_bytes(path, Arc::new(bytes))?)
}

fn all(path: &Path, file: TensorFile) -> Result<Vec<(String, Values)>> {
    let read = |name: &String| match file.tensor(name)? {
        Decoded::Values(values) => Ok((name.clone(), values)),
        Decoded::Narrow(_, a) => Ok((name.clone(), Values::Real(Dtype::Bf16, a))),
        Decoded::Complex(..) => Err(Error::file(path, format!("real numbers in `{}`", one_line(name)), "complex ones")),
    };
    file.names().iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use dsv2_reference::weights::safetensors_file::write_safetensors;
    use ndarray::array;

    use super::*;

    #[test]
    fn every_type_survives_the_way_to_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.safetensors");
        let all = [
            Values::Real(Dtype::Bf16, array![1.0, -0.5].into_dyn()),
            Values::Real(Dtype::F16, array![1.0, -0.5].into_dyn()),
            Values::Real(Dtype::F64, array![[1e-300]].into_dyn()),
            Values::Real(Dtype::F32, ndarray::arr0(f64::NEG_INFINITY).into_dyn()),
            Values::Index(array![-100, 7].into_dyn()),
            Values::Bool(array![true, false].into_dyn()),
        ];
        let named: Vec<_> = all.iter().enumerate().map(|(i, values)| (i.to_string(), values.into())).collect();
        write_safetensors(&path, &named).unwrap();
        let read = read(&path).unwrap();
        for (i, values) in all.iter().enumerate() {
            assert_eq!(read.iter().find(|(name, _)| *name == i.to_string()).unwrap().1, *values);
        }
        assert_eq!(Values::Index(array![[1, 2]].into_dyn()).describe(), "I64 [1, 2]");
    }
}
