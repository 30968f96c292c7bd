//! Files of tensors, by what they are and not by what they are called.
//!
//! | format | its tensors |
//! |---|---|
//! | safetensors | by their names |
//! | `.npz` of NumPy, compressed or not | by their names |
//! | `.npy` of NumPy | one, by the name of the file |
//! | `.pt`, `.pth` of `torch.save` | dictionaries and lists of tensors: their keys and places, joined with dots; a tensor alone by the name of the file |
//!
//! Names come first: a tensor is decoded when it is asked for, so that what nobody looks at may be of any type and costs
//! nothing. Of a pickle nothing is run ([`torch`]). No more memory is taken than in proportion to the file, except for compressed arrays,
//! for which there is a limit ([`archive::INFLATED`]).

pub mod archive;
pub mod element;
mod npy;
pub mod torch;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dsv2_reference::file;
use dsv2_reference::weights::safetensors_file::{SafetensorsFile, SharedBytes, foreign};

use crate::error::{Error, Result, one_line};
use crate::values::Values;
use archive::Archive;
pub use element::{Decoded, Element};
use npy::Npy;
use torch::TorchFile;

/// What a file of tensors is called where there is none.
const WHAT: &str = "a file of tensors (safetensors, .npz, .npy or .pt)";

/// An open file, of whose tensors the names are known.
pub struct TensorFile {
    path: PathBuf,
    source: Source,
    names: Vec<String>,
}

enum Source {
    Safetensors(SafetensorsFile),
    /// One array, and the bytes of the file.
    Npy(SharedBytes),
    /// The members are the names, each with `.npy` behind it.
    Npz(Archive),
    Torch(TorchFile),
}

impl TensorFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// If there is no such file, it cannot be read, or it is of no format that is known.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path, file::map(path, WHAT)?)
    }

    /// The same of a file that lies in memory; `path` is for messages, and for the name of a tensor that has none.
    ///
    /// # Errors
    /// If it is of no format that is known.
    pub fn from_bytes(path: &Path, bytes: SharedBytes) -> Result<Self> {
        let start = (*bytes).as_ref().get(..6).unwrap_or_default();
        let stem = || path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let of = |refused: Refusal| refused.of(path);
        let (source, names) = if start == npy::MAGIC {
            (Source::Npy(bytes), vec![stem()])
        } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            let archive = Archive::open(bytes).map_err(of)?;
            match TorchFile::is_one(&archive) {
                true => {
                    let torch = TorchFile::open(archive, &stem()).map_err(of)?;
                    let names = torch.names();
                    (Source::Torch(torch), names)
                }
                false => {
                    let names = npz_names(&archive).map_err(of)?;
                    (Source::Npz(archive), names)
                }
            }
        } else if let Some(format) = foreign((*bytes).as_ref()) {
            return Err(Refusal::new(WHAT, format).of(path));
        } else {
            let file = SafetensorsFile::from_bytes(path, bytes)?;
            let names = file.names();
            (Source::Safetensors(file), names)
        };
        Ok(TensorFile { path: path.to_owned(), source, names })
    }

    /// The names of all tensors, in the order in which they lie in the file.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Type and shape of a tensor, before it is decoded; nothing, if the file says nothing of them that can be read, or a shape that
    /// no memory could hold.
    pub fn lies_as(&self, name: &str) -> Option<(Element, Vec<usize>)> {
        let of_array = |bytes: &[u8]| {
            let array = Npy::parse(bytes).ok()?;
            let (element, shape) = array.is();
            Some((element, shape.to_vec()))
        };
        let said = match &self.source {
            Source::Safetensors(file) => {
                let raw = file.raw(name)?;
                Some((Element::of(raw.dtype)?, raw.shape.to_vec()))
            }
            Source::Npy(bytes) => of_array((**bytes).as_ref()),
            Source::Npz(archive) => of_array(&archive.beginning(&format!("{name}.npy"), Npy::LONGEST_HEADER).ok()?),
            Source::Torch(file) => file.lies_as(name).map(|(element, shape)| (element, shape.to_vec())),
        };
        said.filter(|(element, shape)| element.bytes(shape).is_some())
    }

    /// Decodes the tensor `name`.
    ///
    /// # Errors
    /// If there is none, it is of a type that is none of ours, or what the file says of it does not fit together.
    pub fn tensor(&self, name: &str) -> Result<Decoded> {
        self.decoded(name).map_err(|Refusal { expected, found }| {
            Error::file(&self.path, format!("{expected} for `{}`", one_line(name)), found)
        })
    }

    /// Decodes some rows of the tensor `name`, slices along its last axis, as `[rows, width]`: nothing, if they do not lie in the
    /// file as they are, one after another, or the tensor is no array of numbers.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`].
    pub fn rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Values>> {
        let Some((element, shape, bytes)) = self.in_order(name) else { return Ok(None) };
        let width = shape.last().copied().unwrap_or(1);
        let size = width.saturating_mul(element.size());
        let Some(bytes) = bytes.get(rows.start.saturating_mul(size)..rows.end.saturating_mul(size)) else {
            return Ok(None);
        };
        match element.decode(bytes, &[rows.len(), width]).map_err(|refused| refused.of(&self.path))? {
            Decoded::Values(values) => Ok(Some(values)),
            Decoded::Narrow(..) | Decoded::Complex(..) => Ok(None),
        }
    }

    /// The elements of a tensor where they lie in the file, if they lie there row-major and little-endian, all of them.
    fn in_order(&self, name: &str) -> Option<(Element, Vec<usize>, &[u8])> {
        let of_array = |bytes| {
            let array = Npy::parse(bytes).ok()?;
            let (element, shape) = array.is();
            Some((element, shape.to_vec(), array.in_order(bytes)?))
        };
        let (element, shape, bytes) = match &self.source {
            Source::Safetensors(file) => {
                let raw = file.raw(name)?;
                (Element::of(raw.dtype)?, raw.shape.to_vec(), raw.bytes)
            }
            Source::Npy(bytes) => of_array((**bytes).as_ref())?,
            Source::Npz(archive) => of_array(archive.stored(&format!("{name}.npy")).ok()?)?,
            Source::Torch(file) => {
                let (element, shape) = file.lies_as(name)?;
                (element, shape.to_vec(), file.in_order(name)?)
            }
        };
        (element.bytes(&shape) == Some(bytes.len())).then_some((element, shape, bytes))
    }

    fn decoded(&self, name: &str) -> Result<Decoded, Refusal> {
        let none = || Refusal::new("a tensor", "none");
        match &self.source {
            Source::Safetensors(file) => {
                let raw = file.raw(name).ok_or_else(none)?;
                let element = Element::of(raw.dtype).ok_or_else(|| Refusal::new(element::KNOWN, raw.dtype))?;
                element.decode(raw.bytes, raw.shape)
            }
            Source::Npy(bytes) => npy(Cow::Borrowed((**bytes).as_ref())),
            Source::Npz(archive) => npy(archive.whole(&format!("{name}.npy"))?),
            Source::Torch(file) => file.tensor(name),
        }
    }
}

fn npy(bytes: Cow<'_, [u8]>) -> Result<Decoded, Refusal> {
    Npy::parse(&bytes)?.decode(&bytes)
}

/// The arrays of an .npz archive.
fn npz_names(archive: &Archive) -> Result<Vec<String>, Refusal> {
    let name = |member: &str| match member.strip_suffix(".npy") {
        Some(name) => Ok(name.to_owned()),
        None => Err(Refusal::new(
            "a zip archive of .npy arrays (np.savez) or of torch.save",
            format!("one that holds `{}`", one_line(member)),
        )),
    };
    archive.names().map(name).collect()
}

/// Why a file or a tensor was refused.
#[derive(Debug)]
pub struct Refusal {
    expected: String,
    found: String,
}

impl Refusal {
    /// What was expected, and what was found, which may be any text of a file.
    pub fn new(expected: impl Into<String>, found: impl ToString) -> Self {
        Refusal { expected: expected.into(), found: one_line(&found.to_string()) }
    }

    fn of(self, path: &Path) -> Error {
        Error::file(path, self.expected, self.found)
    }
}

#[cfg(test)]
mod tests;
