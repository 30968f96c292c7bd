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
//! What [`Checkpoint::tensor`](WeightSource::tensor) returns has been checked for type and shape. That each element is a
//! number shows when it is read ([`crate::weights::finite`]).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use dsv2_foreign::Place;
use serde_json::Value;

use crate::error::one_line;
use crate::file::what_is;
use crate::weights::WeightSource;
use crate::weights::finite::Watch;
use crate::weights::safetensors_file::{FileDtype, SafetensorsFile};
use crate::weights::tensor::SharedBytes;
use crate::{Error, Result, Tensor};

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
    watch: Arc<Watch>,
    /// That there is an index beside the one file that was opened.
    beside: Option<String>,
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
            let beside = has(INDEX)
                .then(|| format!("{SINGLE} was read, as Transformers does; {INDEX} is there, too, and was not"));
            let checkpoint = Self::of_files(dir, vec![SafetensorsFile::open(&dir.join(SINGLE))?])?;
            return Ok(Checkpoint { beside, ..checkpoint });
        }
        if has(INDEX) {
            return Self::open_shards(dir, &dir.join(INDEX), needed);
        }
        Err(Error::file(dir, format!("{SINGLE} or {INDEX} in the folder"), other_weights(dir)))
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
        Ok(Checkpoint { path: path.to_owned(), files, file_of, watch: Arc::default(), beside: None })
    }

    /// The type of a tensor, at no cost; `None` if there is none.
    pub(crate) fn file_dtype(&self, name: &str) -> Option<FileDtype> {
        Some(self.files[*self.file_of.get(name)?].raw(name)?.dtype)
    }

    /// The file that has a tensor.
    pub(crate) fn file_of(&self, name: &str) -> Option<&SafetensorsFile> {
        Some(&self.files[*self.file_of.get(name)?])
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
        Ok(tensor.watched(self.watch.over(name)))
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.files.iter().flat_map(SafetensorsFile::names).collect())
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.files[*self.file_of.get(name)?].shape(name).map(<[usize]>::to_vec)
    }

    fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }

    fn notes(&self) -> Vec<String> {
        self.beside.clone().into_iter().collect()
    }
}

/// What lies in a folder in which there are no weights that can be read.
fn other_weights(dir: &Path) -> String {
    let ends = |name: &str, end: &str| name.to_ascii_lowercase().ends_with(end);
    let mut names: Vec<String> = fs::read_dir(dir)
        .map(|files| files.flatten().map(|file| file.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort_unstable();
    let first = |end: &str| names.iter().find(|name| ends(name, end)).map(one_line);
    if let Some(name) = first(".gguf") {
        return format!("{name}, which is GGUF: {}", crate::weights::quantization::INSTEAD);
    }
    match first(".bin").or_else(|| first(".pt")).or_else(|| first(".safetensors")) {
        Some(name) => format!("neither, but {name}"),
        None => "neither".into(),
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

#[cfg(test)]
mod tests;
