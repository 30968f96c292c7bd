//! Writing a checkpoint folder.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dsv2_foreign::Text;
use serde_json::{Value, json};

use super::{INDEX, SINGLE};
use crate::file::unfinished::Unfinished;
use crate::file::what_is;
use crate::weights::safetensors_file::{FileWriter, cannot};
use crate::{Dtype, Error, Result, Tensor};

/// What a checkpoint's index and headers must know of a tensor before its first byte is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.size() as u64, |size, &n| size.saturating_mul(n as u64))
    }
}

/// Writes the checkpoint folder `dir`: config.json, and the tensors that `make` delivers, one for each entry.
///
/// They go into one file `model.safetensors`. If they are larger together than `max_shard_bytes`, they go into shards
/// of at most that size, each filled before the next is begun (a tensor larger than that gets its own), and an index
/// is written. Within a file wider types come first, so that each element lies at a multiple of its size: PyTorch
/// cannot load it otherwise. The tensor of one call of `make` is dropped before the next, so that a checkpoint may be
/// much larger than memory.
///
/// Everything is written into a hidden folder beside `dir`, which gets the name `dir` at the end. So there is never
/// half a checkpoint under that name.
///
/// ```
/// # use dsv2_reference::{Dtype, Tensor, weights::checkpoint::{Checkpoint, Entry, write_checkpoint}};
/// # let folder = tempfile::tempdir()?;
/// # let dir = &folder.path().join("tiny");
/// let norm = Entry { name: "model.norm.weight".into(), dtype: Dtype::Bf16, shape: vec![4] };
/// let make = |entry: &Entry| Ok(Tensor::from_values(entry.dtype, &entry.shape, [1.0; 4]));
/// write_checkpoint(dir, &serde_json::json!({"hidden_size": 4}), &[norm], make, None)?;
/// let checkpoint = Checkpoint::open(dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If `dir` is neither absent nor an empty folder, if two entries have the same name, if `make` fails or its tensor is
/// not what the entry says, or if something cannot be written. Then nothing is left of what was written.
pub fn write_checkpoint(
    dir: &Path,
    config: &Value,
    entries: &[Entry],
    mut make: impl FnMut(&Entry) -> Result<Tensor>,
    max_shard_bytes: Option<u64>,
) -> Result<()> {
    refuse_occupied(dir)?;
    let unfinished = Unfinished::folder(dir)?;
    let write_json = |name: &str, content: &Value| {
        // what a config says is somebody's, and a terminal obeys some of it
        let text = Text::json(&format!("{content:#}\n"));
        let written = fs::write(unfinished.path().join(name), text.as_str());
        written.map_err(|source| cannot("write", &dir.join(name), source))
    };
    write_json("config.json", config)?;

    let shards = split(entries, max_shard_bytes.unwrap_or(u64::MAX));
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file_name = match shards.len() {
            1 => SINGLE.to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let header = shard.iter().map(|entry| (entry.name.as_str(), entry.dtype, entry.shape.as_slice()));
        let mut file = FileWriter::create(&unfinished.path().join(&file_name), &dir.join(&file_name), header)?;
        for entry in shard {
            let tensor = make(entry)?;
            if (tensor.dtype(), tensor.shape()) != (entry.dtype, &entry.shape) {
                let expected = format!("{:?} of shape {:?}", entry.dtype, entry.shape);
                let found = format!("{:?} of shape {:?}", tensor.dtype(), tensor.shape());
                return Err(Error::weight(&entry.name, expected, found));
            }
            file.append(&tensor.bytes())?;
            if weight_map.insert(&entry.name, file_name.clone()).is_some() {
                return Err(Error::weight(&entry.name, "a tensor of this name only once", "another"));
            }
        }
        file.finish()?;
    }
    if shards.len() > 1 {
        let total_size: u64 = entries.iter().map(Entry::bytes).sum();
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        write_json(INDEX, &index)?;
    }
    if dir.exists() {
        // Empty, as `refuse_occupied` has seen; not all systems rename onto a folder.
        fs::remove_dir(dir).map_err(|source| cannot("replace", dir, source))?;
    }
    unfinished.finish()
}

/// Shards of at most `max` bytes each, wider types first.
fn split(entries: &[Entry], max: u64) -> Vec<Vec<&Entry>> {
    let mut shards = vec![Vec::<&Entry>::new()];
    let mut held = 0u64;
    for entry in entries {
        let (shard, size) = (shards.last_mut().expect("there is always one"), entry.bytes());
        if shard.is_empty() || held.saturating_add(size) <= max {
            shard.push(entry);
            held = held.saturating_add(size);
        } else {
            shards.push(vec![entry]);
            held = size;
        }
    }
    for shard in &mut shards {
        shard.sort_by_key(|entry| Reverse(entry.dtype.size()));
    }
    shards
}

fn refuse_occupied(dir: &Path) -> Result<()> {
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(Error::file(dir, "no such path or an empty folder", what_is(&found))),
        Ok(_) => match fs::read_dir(dir).map(|mut content| content.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::file(dir, "no such path or an empty folder", "a folder with files in it")),
            Err(source) => Err(cannot("read", dir, source)),
        },
        Err(_) => Ok(()),
    }
}
