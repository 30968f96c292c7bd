//! Hugging Face checkpoint folders.
//!
//! A released model is a folder. `config.json` says what the model is. The weights are in `model.safetensors`, or,
//! where one file would be too large, in shards `model-00001-of-00004.safetensors` and so on, together with
//! `model.safetensors.index.json`, whose `"weight_map"` says for every tensor which shard has it.
//!
//! Weights are mapped and not read (see [`crate::weights::safetensors_file`]), and they keep the type they are stored in.
//! DeepSeek-V2 was released in bf16: as f32 the 236 billion parameters would fill twice the memory, as f64 four
//! times, and would not be a digit more exact, since widening a bf16 adds only zeros.
//!
//! What [`Checkpoint::tensor`](WeightSource::tensor) returns has been checked: type, shape, and that each element is a
//! number. A NaN in one expert would otherwise show up much later, for the tokens that are routed there.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use dsv2_foreign::Place;
use rayon::prelude::*;
use serde_json::Value;

use crate::error::one_line;
use crate::file::what_is;
use crate::weights::WeightSource;
use crate::weights::safetensors_file::SafetensorsFile;
use crate::weights::tensor::SharedBytes;
use crate::{Dtype, Error, Result, Tensor};

mod write;
pub use write::{Entry, write_checkpoint};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a checkpoint folder, mapped into memory.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Which of `files` has a tensor.
    file_of: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens the folder `dir`: its `model.safetensors`, or else its index and all shards.
    ///
    /// # Errors
    /// If the folder or a file is missing, or damaged, or index and shards do not agree.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_some(dir, |_| true)
    }

    /// The same with those shards only that have a tensor that is `needed`; the others need not be there.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_some(dir: &Path, needed: impl Fn(&str) -> bool) -> Result<Self> {
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(found) => return Err(Error::file(dir, "a checkpoint folder", what_is(&found))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::file(dir, "a checkpoint folder", "no such folder"));
            }
            Err(source) => return Err(Error::Io { path: dir.to_owned(), action: "read", source }),
        }
        let has = |name: &str| fs::symlink_metadata(dir.join(name)).is_ok();
        if has(SINGLE) {
            return Self::of_files(dir, vec![SafetensorsFile::open(&dir.join(SINGLE))?]);
        }
        if has(INDEX) {
            return Self::open_shards(dir, &dir.join(INDEX), needed);
        }
        Err(Error::file(dir, format!("{SINGLE} or {INDEX} in the folder"), "neither"))
    }

    /// A checkpoint of one safetensors file that is in memory already; `name` is what messages call it.
    ///
    /// # Errors
    /// If the bytes are no safetensors file.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: SharedBytes) -> Result<Self> {
        let path = name.into();
        let file = SafetensorsFile::from_bytes(&path, bytes)?;
        Self::of_files(&path, vec![file])
    }

    fn open_shards(dir: &Path, index: &Path, needed: impl Fn(&str) -> bool) -> Result<Self> {
        let mut weight_map = read_weight_map(index)?;
        weight_map.retain(|(name, _)| needed(name));
        let mut shards: Vec<&str> = weight_map.iter().map(|(_, shard)| shard.as_str()).collect();
        shards.sort_unstable();
        shards.dedup();
        let files = shards.iter().map(|shard| SafetensorsFile::open(&dir.join(shard))).collect::<Result<Vec<_>>>()?;
        for (name, shard) in &weight_map {
            let file = &files[shards.binary_search(&shard.as_str()).expect("every shard is in the list")];
            if file.shape(name).is_none() {
                let expected = format!("the tensor `{}`, as {INDEX} says", one_line(name));
                return Err(Error::file(file.path(), expected, "no such tensor"));
            }
        }
        Self::of_files(dir, files)
    }

    fn of_files(path: &Path, files: Vec<SafetensorsFile>) -> Result<Self> {
        let mut file_of = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = file_of.insert(name.clone(), i) {
                    let found = format!("it in {} as well", Place(files[other].path()));
                    return Err(Error::file(file.path(), format!("`{}` in no other file", one_line(&name)), found));
                }
            }
        }
        Ok(Checkpoint { path: path.to_owned(), files, file_of })
    }

    /// The folder, or the name given to [`Checkpoint::from_bytes`].
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl WeightSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(&file) = self.file_of.get(name) else {
            let found = format!("no such tensor in {}", Place(&self.path));
            return Err(Error::weight(one_line(name), format!("shape {shape:?}"), found));
        };
        let file = &self.files[file];
        let tensor = file.real(name)?;
        if tensor.shape() != shape {
            let found = one_line(&format!("shape {:?}", tensor.shape())) + &format!(" in {}", Place(file.path()));
            return Err(Error::weight(one_line(name), format!("shape {shape:?}"), found));
        }
        check_finite(name, &tensor)?;
        Ok(tensor)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.files.iter().flat_map(SafetensorsFile::names).collect())
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.files[*self.file_of.get(name)?].shape(name).map(<[usize]>::to_vec)
    }
}

/// The index's pairs of tensor and shard.
fn read_weight_map(index: &Path) -> Result<Vec<(String, String)>> {
    let refuse = |expected: &str, found: String| Error::file(index, expected, found);
    let content = crate::json::read(index, crate::file::INDEX, "JSON")?;
    let Some(weight_map) = content.get("weight_map") else {
        return Err(refuse("an object with \"weight_map\"", "none".into()));
    };
    let Some(weight_map) = weight_map.as_object().filter(|map| !map.is_empty()) else {
        return Err(refuse("\"weight_map\" to be an object from tensors to files", one_line(weight_map)));
    };
    let shard_of = |(name, shard): (&String, &Value)| match shard.as_str() {
        // A shard lies in the folder itself: an index must not make us read files elsewhere.
        Some(shard) if is_plain_name(shard) => Ok((name.clone(), shard.to_owned())),
        _ => Err(refuse(&format!("the name of a file in the folder for `{}`", one_line(name)), one_line(shard))),
    };
    weight_map.iter().map(shard_of).collect()
}

/// Whether it is the name of something in a folder, and no way out of it.
pub fn is_plain_name(file: &str) -> bool {
    matches!(Path::new(file).components().collect::<Vec<_>>()[..], [Component::Normal(name)] if name == file)
}

/// Checks that no element of a weight is NaN or infinite.
///
/// It looks at nothing but exponents: an IEEE number is not finite if, and only if, all its exponent bits are set. So
/// it runs as fast as memory delivers, on all cores.
///
/// # Errors
/// Names the first such element (of the row-major order), its indices and its value.
pub fn check_finite(name: &str, tensor: &Tensor) -> Result<()> {
    let bytes = tensor.bytes();
    let first = match tensor.dtype() {
        Dtype::Bf16 => first_that(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Dtype::F16 => first_that(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Dtype::F32 => first_that(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::F64 => first_that(bytes, |b| u64::from_le_bytes(b) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000),
    };
    let Some(first) = first else { return Ok(()) };
    let mut value = [0f64];
    tensor.widen(first, &mut value);
    let mut indices = tensor.shape().to_vec();
    let mut rest = first;
    for index in indices.iter_mut().rev() {
        (rest, *index) = (rest / *index, rest % *index);
    }
    Err(Error::weight(one_line(name), "finite numbers only", format!("{} at {indices:?}", value[0])))
}

fn first_that<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    const BLOCK: usize = 1 << 14;
    let (elements, _) = bytes.as_chunks();
    // Within a block there is no early exit, so that the compiler can test many elements with one instruction.
    let block = elements.par_chunks(BLOCK).position_first(|block| block.iter().fold(false, |any, &b| any | is(b)))?;
    elements.iter().skip(block * BLOCK).position(|&b| is(b)).map(|i| block * BLOCK + i)
}

#[cfg(test)]
mod tests;
