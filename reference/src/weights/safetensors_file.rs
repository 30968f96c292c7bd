//! One safetensors file: the form of checkpoints, of inputs and of traces.
//!
//! A safetensors file is nothing but
//!
//! ```text
//! 8 bytes      the length of the header, little-endian
//! header       JSON: {"name": {"dtype": "BF16", "shape": [128, 16], "data_offsets": [0, 4096]}, ...}
//! the rest     the tensors one after another, row-major and little-endian, without gap or overlap
//! ```
//!
//! so a tensor can be used where it lies. [`SafetensorsFile::open`] maps the file into memory: the operating system
//! reads a page when it is first touched, and may drop it again, since it can be read anew. A checkpoint of many
//! gigabytes opens at once, and programs that use the same one share its pages.

use std::path::{Path, PathBuf};

use ndarray::ArrayD;
pub use safetensors::Dtype as FileDtype;
use safetensors::tensor::Metadata;

use crate::error::one_line;
use crate::file;
pub use crate::weights::tensor::SharedBytes;
use crate::{Dtype, Error, Result, Tensor};

mod foreign;
mod header;
mod write;
pub use foreign::foreign;
pub use write::write_safetensors;
pub(crate) use write::{FileWriter, cannot};

/// A tensor to be written, which unlike a weight may hold token ids, positions or a mask.
#[derive(Clone, Debug)]
pub enum Data {
    /// Real numbers, in their type (BF16, F16, F32, F64).
    Real(Tensor),
    /// Integers, written as I64.
    Index(ArrayD<i64>),
    /// Truth values, written as BOOL.
    Bool(ArrayD<bool>),
}

impl Data {
    /// The lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        match self {
            Data::Real(tensor) => tensor.shape(),
            Data::Index(array) => array.shape(),
            Data::Bool(array) => array.shape(),
        }
    }

    fn file_dtype(&self) -> FileDtype {
        match self {
            Data::Real(tensor) => to_file(tensor.dtype()),
            Data::Index(_) => FileDtype::I64,
            Data::Bool(_) => FileDtype::BOOL,
        }
    }
}

/// A tensor as it lies in a file, in whatever type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a> {
    /// The type of the elements.
    pub dtype: FileDtype,
    /// The lengths of the axes.
    pub shape: &'a [usize],
    /// The bytes of all elements, row-major and little-endian.
    pub bytes: &'a [u8],
}

/// An open file, whose header has been read and found consistent with its length.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: SharedBytes,
    /// Where the header ends and the tensors begin.
    start: usize,
    header: Metadata,
}

impl std::fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SafetensorsFile({}, {} tensors)", self.path.display(), self.header.tensors().len())
    }
}

impl SafetensorsFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// If there is no such file, it cannot be read, or it is no safetensors file; also if it was cut short.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path, file::map(path, "a safetensors file")?)
    }

    /// Reads a file that is in memory already; `path` is what messages call it.
    ///
    /// # Errors
    /// If the bytes are no safetensors file.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: SharedBytes) -> Result<Self> {
        let path = path.into();
        let (start, header) = header::read(&path, (*bytes).as_ref())?;
        Ok(SafetensorsFile { path, bytes, start, header })
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, in the order in which they lie in the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The shape of a tensor, or `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// A tensor of real numbers, as a view of the file. NaN and infinity are let through.
    ///
    /// # Errors
    /// If there is no such tensor or it does not hold real numbers.
    pub fn real(&self, name: &str) -> Result<Tensor> {
        let Some(info) = self.header.info(name) else {
            return Err(self.refuse(format!("a tensor `{}`", one_line(name)), "none"));
        };
        let Some(dtype) = from_file(info.dtype) else {
            return Err(self.refuse(format!("BF16, F16, F32 or F64 for `{}`", one_line(name)), info.dtype));
        };
        let (start, end) = info.data_offsets;
        Tensor::new(name, dtype, &info.shape, self.bytes.clone(), self.start + start..self.start + end)
    }

    /// A tensor of any type as it lies there; `None` if there is none of that name.
    pub fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let info = self.header.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = &(*self.bytes).as_ref()[self.start + start..self.start + end];
        Some(Raw { dtype: info.dtype, shape: &info.shape, bytes })
    }

    fn refuse(&self, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::file(&self.path, expected, found)
    }
}

fn from_file(dtype: FileDtype) -> Option<Dtype> {
    match dtype {
        FileDtype::BF16 => Some(Dtype::Bf16),
        FileDtype::F16 => Some(Dtype::F16),
        FileDtype::F32 => Some(Dtype::F32),
        FileDtype::F64 => Some(Dtype::F64),
        _ => None,
    }
}

fn to_file(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::Bf16 => FileDtype::BF16,
        Dtype::F16 => FileDtype::F16,
        Dtype::F32 => FileDtype::F32,
        Dtype::F64 => FileDtype::F64,
    }
}

#[cfg(test)]
mod tests;
