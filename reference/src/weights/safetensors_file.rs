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

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype as FileDtype, tensor::Metadata};

use crate::error::one_line;
use crate::file::what_is;
use crate::weights::tensor::SharedBytes;
use crate::{Dtype, Error, Result, Tensor};

mod header;
mod write;
pub use write::write_safetensors;
pub(crate) use write::{FileWriter, Unfinished, cannot};

/// A tensor of a trace or of the inputs, which unlike a weight may hold token ids, positions or a mask.
#[derive(Clone, Debug)]
pub enum Data {
    /// Real numbers, in the type they are stored in (BF16, F16, F32, F64).
    Real(Tensor),
    /// Integers. Read from any of I64, I32, I16, I8 and U8, written as I64.
    Index(ArrayD<i64>),
    /// Truth values (BOOL).
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

    /// The type it is written in, as safetensors calls it: "BF16", "F16", "F32", "F64", "I64" or "BOOL".
    pub fn type_name(&self) -> String {
        self.file_dtype().to_string()
    }

    fn file_dtype(&self) -> FileDtype {
        match self {
            Data::Real(tensor) => to_file(tensor.dtype()),
            Data::Index(_) => FileDtype::I64,
            Data::Bool(_) => FileDtype::BOOL,
        }
    }
}

/// All tensors of a file, in the order in which they lie there. Real ones share the mapped file.
///
/// # Errors
/// If the file cannot be read, is no safetensors file, or has a tensor of a type that [`Data`] has no room for.
pub fn read_safetensors(path: &Path) -> Result<Vec<(String, Data)>> {
    let file = SafetensorsFile::open(path)?;
    file.names().into_iter().map(|name| file.data(&name).map(|data| (name, data))).collect()
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
        let cannot_read = |source| Error::Io { path: path.to_owned(), action: "read", source };
        match fs::metadata(path) {
            // Opening a pipe would wait for somebody to write to it.
            Ok(found) if !found.is_file() => return Err(Error::file(path, "a file", what_is(&found))),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::file(path, "a safetensors file", "no such file"));
            }
            Err(error) => return Err(cannot_read(error)),
        }
        let file = File::open(path).map_err(cannot_read)?;
        // SAFETY: nobody may change or shorten the file while it is mapped. A program cannot enforce that, but this
        // crate keeps to it: it never writes into a file that exists, it puts a new one in its place by renaming.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(cannot_read)?;
        Self::from_bytes(path, Arc::new(map))
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

    /// A tensor of any type that traces and inputs have.
    ///
    /// # Errors
    /// If there is no such tensor or it is of another type (complex, 8-bit floats and smaller).
    pub fn data(&self, name: &str) -> Result<Data> {
        let Some(info) = self.header.info(name) else { return self.real(name).map(Data::Real) };
        let (start, end) = info.data_offsets;
        let bytes = &(*self.bytes).as_ref()[self.start + start..self.start + end];
        let integers = match info.dtype {
            FileDtype::I64 => integers(bytes, i64::from_le_bytes),
            FileDtype::I32 => integers(bytes, |b| i32::from_le_bytes(b).into()),
            FileDtype::I16 => integers(bytes, |b| i16::from_le_bytes(b).into()),
            FileDtype::I8 => integers(bytes, |b| i8::from_le_bytes(b).into()),
            FileDtype::U8 => integers(bytes, |[b]| b.into()),
            FileDtype::BOOL => {
                if let Some(other) = bytes.iter().find(|&&b| b > 1) {
                    return Err(self.refuse(format!("0 or 1 in the BOOL tensor `{}`", one_line(name)), other));
                }
                let values = bytes.iter().map(|&b| b == 1).collect();
                return self.array(name, &info.shape, values).map(Data::Bool);
            }
            _ if from_file(info.dtype).is_some() => return self.real(name).map(Data::Real),
            other => {
                let expected = "BF16, F16, F32, F64, BOOL, I64, I32, I16, I8 or U8";
                return Err(self.refuse(format!("{expected} for `{}`", one_line(name)), other));
            }
        };
        self.array(name, &info.shape, integers).map(Data::Index)
    }

    fn array<V>(&self, name: &str, shape: &[usize], values: Vec<V>) -> Result<ArrayD<V>> {
        let array = ArrayD::from_shape_vec(IxDyn(shape), values);
        array.map_err(|error| self.refuse(format!("an array in `{}`", one_line(name)), error))
    }

    fn refuse(&self, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::file(&self.path, expected, found)
    }
}

fn integers<const N: usize>(bytes: &[u8], widen: impl Fn([u8; N]) -> i64) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|&b| widen(b)).collect()
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
