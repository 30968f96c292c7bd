//! A stored tensor: the bytes of a checkpoint, in the checkpoint's own type, widened only where they are used.
//!
//! A weight stays bf16 (or f16, f32) in memory, mapped from its file; [`Tensor::widen`] turns a run of elements into
//! the type of the computation. Widening is exact, so it makes no difference to any result, only to the memory
//! (half of an f32 copy) and to the bandwidth that a decode step needs.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use ndarray::{Array, Dimension, IntoDimension};

use super::finite::Unread;
use super::scaled::Scaled;
use crate::{Dtype, Error, Real, Result};

/// Bytes owned by somebody else: a memory map, a vector, an embedded file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A tensor in row-major order, little-endian, in the type it is stored in. Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    stored: Stored,
    /// Who is told if a number is not finite.
    unread: Option<Arc<Unread>>,
}

#[derive(Clone)]
enum Stored {
    Plain(SharedBytes, Range<usize>),
    /// Made fp32 numbers whenever they are read.
    Scaled(Scaled),
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
        Ok(Tensor { dtype, shape: shape.to_vec(), stored: Stored::Plain(bytes, range), unread: None })
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
        Tensor { dtype, shape: shape.to_vec(), stored: Stored::Plain(Arc::new(bytes), range), unread: None }
    }

    /// A matrix of e4m3 numbers with their scales: a tensor of fp32 numbers to whoever reads it.
    pub(crate) fn scaled(shape: &[usize], scaled: Scaled) -> Self {
        Tensor { dtype: Dtype::F32, shape: shape.to_vec(), stored: Stored::Scaled(scaled), unread: None }
    }

    /// The same, looked at when it is first read: `unread` is told if there is a number that is not finite.
    pub(crate) fn watched(self, unread: Arc<Unread>) -> Self {
        Tensor { unread: Some(unread), ..self }
    }

    /// The same for a computation in fp8, where what is multiplied with a matrix of 8-bit numbers is made one first.
    /// Other tensors stay what they are.
    pub fn with_fp8_operands(&self) -> Self {
        match &self.stored {
            Stored::Scaled(scaled) => Tensor { stored: Stored::Scaled(scaled.with_fp8_operands()), ..self.clone() },
            Stored::Plain(..) => self.clone(),
        }
    }

    /// Whether it is stored as numbers of 8 bits with scales.
    pub fn is_scaled(&self) -> bool {
        matches!(self.stored, Stored::Scaled(_))
    }

    /// See [`Scaled::operand_tile`].
    pub(crate) fn operand_tile(&self) -> Option<usize> {
        match &self.stored {
            Stored::Scaled(scaled) => scaled.operand_tile(),
            Stored::Plain(..) => None,
        }
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The little-endian bytes, row-major, of numbers of the tensor's type: as they are stored, or made for the
    /// occasion.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        if let Some(unread) = &self.unread {
            unread.look_at(self);
        }
        match &self.stored {
            Stored::Plain(bytes, range) => (&(**bytes).as_ref()[range.clone()]).into(),
            Stored::Scaled(scaled) => scaled.bytes(self.len()).into(),
        }
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
        let stored = match &self.stored {
            Stored::Plain(bytes, range) => {
                Stored::Plain(bytes.clone(), range.start + rows.start * row..range.start + rows.end * row)
            }
            Stored::Scaled(scaled) => Stored::Scaled(scaled.rows(rows)),
        };
        Tensor { dtype: self.dtype, shape, stored, unread: self.unread.as_ref().map(|unread| unread.of_a_part()) }
    }

    /// Writes elements `start..start + out.len()` (row-major) to `out`, exactly widened.
    /// (To `f32` from a stored `f64`: rounded.)
    pub fn widen<T: Real>(&self, start: usize, out: &mut [T]) {
        self.widen_unseen(start, out);
        if let Some(unread) = self.unread.as_ref().filter(|_| out.iter().any(|x| !x.is_finite())) {
            unread.look_at(self);
        }
    }

    fn widen_unseen<T: Real>(&self, start: usize, out: &mut [T]) {
        match &self.stored {
            Stored::Plain(bytes, range) => {
                let size = self.dtype.size();
                let bytes = &(**bytes).as_ref()[range.clone()][start * size..(start + out.len()) * size];
                T::widen(bytes, self.dtype, out);
            }
            Stored::Scaled(scaled) => {
                let mut values = vec![0.0; out.len()];
                scaled.widen(start, &mut values);
                for (x, value) in out.iter_mut().zip(values) {
                    *x = T::from_f32(value);
                }
            }
        }
    }

    /// The first element that is no finite number: its place in the row-major order, and what it is.
    pub(super) fn first_not_finite(&self) -> Option<(usize, f64)> {
        match &self.stored {
            Stored::Plain(bytes, range) => {
                let first = super::finite::first_not_finite(&(**bytes).as_ref()[range.clone()], self.dtype)?;
                let mut value = [0f64];
                self.widen_unseen(first, &mut value);
                Some((first, value[0]))
            }
            Stored::Scaled(scaled) => scaled.first_not_finite(self.len()),
        }
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
