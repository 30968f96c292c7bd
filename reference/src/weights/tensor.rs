//! A stored tensor: the bytes of a checkpoint, in the checkpoint's own type, widened only where they are used.
//!
//! A weight stays bf16 (or f16, f32) in memory, mapped from its file; [`Tensor::widen`] turns a run of elements into
//! the type of the computation. Widening is exact, so it makes no difference to any result, only to the memory
//! (half of an f32 copy) and to the bandwidth that a decode step needs.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use ndarray::{Array, Dimension, IntoDimension};

use crate::{Dtype, Error, Real, Result};

/// Bytes owned by somebody else: a memory map, a vector, an embedded file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A tensor in row-major order, little-endian, in the type it is stored in. Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: SharedBytes,
    range: Range<usize>,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?}, {:?})", self.dtype, self.shape)
    }
}

impl Tensor {
    /// A view of `range` of `bytes`.
    ///
    /// # Errors
    /// If the range lies outside `bytes` or does not hold exactly the elements of `shape`; `name` goes into the message.
    pub fn new(name: &str, dtype: Dtype, shape: &[usize], bytes: SharedBytes, range: Range<usize>) -> Result<Self> {
        let held = (*bytes).as_ref().len();
        let wanted = shape.iter().try_fold(dtype.size(), |size, &n| size.checked_mul(n));
        if range.start > range.end || range.end > held {
            let found = format!("a file that ends at byte {held}");
            return Err(Error::weight(name, format!("bytes {} to {}", range.start, range.end), found));
        }
        if wanted != Some(range.len()) {
            let expected = format!("the bytes of shape {shape:?} in {dtype:?}");
            return Err(Error::weight(name, expected, format!("{} bytes", range.len())));
        }
        Ok(Tensor { dtype, shape: shape.to_vec(), bytes, range })
    }

    /// A tensor of its own from values, rounded to nearest, ties to even.
    pub fn from_values(dtype: Dtype, shape: &[usize], values: impl IntoIterator<Item = f64>) -> Self {
        let mut bytes = Vec::with_capacity(shape.iter().product::<usize>() * dtype.size());
        for x in values {
            match dtype {
                Dtype::Bf16 => bytes.extend(bf16::from_f32(x as f32).to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f32(x as f32).to_le_bytes()),
                Dtype::F32 => bytes.extend((x as f32).to_le_bytes()),
                Dtype::F64 => bytes.extend(x.to_le_bytes()),
            }
        }
        assert_eq!(bytes.len(), shape.iter().product::<usize>() * dtype.size(), "as many values as the shape has");
        let range = 0..bytes.len();
        Tensor { dtype, shape: shape.to_vec(), bytes: Arc::new(bytes), range }
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The little-endian bytes, row-major.
    pub fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows `rows` (along the first axis), as a tensor that shares the bytes.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let row = self.len() / self.shape[0].max(1) * self.dtype.size();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let range = self.range.start + rows.start * row..self.range.start + rows.end * row;
        Tensor { dtype: self.dtype, shape, bytes: self.bytes.clone(), range }
    }

    /// Writes elements `start..start + out.len()` (row-major) to `out`, exactly widened.
    /// (To `f32` from a stored `f64`: rounded.)
    pub fn widen<T: Real>(&self, start: usize, out: &mut [T]) {
        let size = self.dtype.size();
        let bytes = &self.bytes()[start * size..(start + out.len()) * size];
        T::widen(bytes, self.dtype, out);
    }

    /// The whole tensor in the type of the computation, in the shape it is stored in.
    ///
    /// # Panics
    /// If `D` has another number of axes than [`Tensor::shape`]; loaders check shapes first.
    pub fn to_array<T: Real, D: Dimension>(&self) -> Array<T, D> {
        let mut values = vec![T::zero(); self.len()];
        self.widen(0, &mut values);
        Array::from_shape_vec(self.shape.as_slice().into_dimension(), values)
            .expect("as many values as the shape has")
            .into_dimensionality()
            .expect("the loader has checked the number of axes")
    }
}
