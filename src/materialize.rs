//! `dsv2 materialize`: a golden case as a complete Hugging Face folder, for a program in any language.
//!
//! | file | content |
//! |---|---|
//! | `config.json`, `model.safetensors` (or shards and their index) | the model |
//! | `inputs.safetensors` | what goes in, in the form that `dsv2 trace --inputs` reads |
//! | `expected.safetensors` | every stage that Transformers computed |
//! | `case.json` | what the case is, and how far off each stage may be |

use std::fs;
use std::path::Path;

use dsv2_reference::Dtype;
use dsv2_reference::weights::checkpoint::{Entry, write_checkpoint};
use dsv2_reference::weights::safetensors_file::write_safetensors;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::golden::{GoldenCase, Weights};
use crate::output;
use crate::values::{self, Values};

/// Writes the folder `dir`, whole or not at all.
///
/// # Errors
/// If there is something at `dir` already (other than an empty folder), or it cannot be written.
pub fn materialize(golden: &GoldenCase, dir: &Path) -> Result<()> {
    output::write_folder(dir, |new| {
        write_model(golden, new)?;
        write_inputs(golden, &new.join("inputs.safetensors"))?;
        for file in ["expected.safetensors", "case.json"] {
            output::write_file(&new.join(file), &golden.folder.read(file)?)?;
        }
        Ok(())
    })
}

fn write_model(golden: &GoldenCase, dir: &Path) -> Result<()> {
    match &golden.file.weights {
        Weights::Generated { .. } => {
            let case = &golden.case;
            let shapes = case.config.weight_shapes(case.head, case.dialect);
            let entry = |(name, shape)| Entry { name, dtype: Dtype::Bf16, shape };
            let entries: Vec<Entry> = shapes.into_iter().map(entry).collect();
            let config = with_use_cache(golden.file.config.clone(), golden);
            write_checkpoint(dir, &config, &entries, |entry| case.weights.tensor(&entry.name, &entry.shape), None)?;
        }
        Weights::Checkpoint { path } => {
            let (checkpoint, _holder) = golden.folder.on_disk(path)?;
            for entry in fs::read_dir(&checkpoint).map_err(Error::io(&checkpoint, "read"))? {
                let from = entry.map_err(Error::io(&checkpoint, "read"))?.path();
                let to = dir.join(from.file_name().unwrap_or_default());
                fs::copy(&from, &to).map_err(Error::io(&to, "write"))?;
            }
            let config = with_use_cache(golden.file.config.clone(), golden);
            if config != golden.file.config {
                output::write_file(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
            }
        }
    }
    Ok(())
}

/// The config itself, if it says whether there is a cache as the case does. The folder then says all.
fn with_use_cache(mut config: Value, golden: &GoldenCase) -> Value {
    let stated = config.get("use_cache").and_then(Value::as_bool).unwrap_or(true);
    if let (true, Some(object)) = (stated != golden.case.use_cache, config.as_object_mut()) {
        object.insert("use_cache".into(), golden.case.use_cache.into());
    }
    config
}

/// The inputs, and with them `logits_to_keep` where case.json has it as a number.
fn write_inputs(golden: &GoldenCase, path: &Path) -> Result<()> {
    let bytes = golden.folder.read("inputs.safetensors")?;
    let Some(k) = golden.file.options.logits_to_keep else { return output::write_file(path, &bytes) };
    let mut tensors = values::parse(path, bytes)?;
    tensors.push(("logits_to_keep".into(), Values::Index(ndarray::arr0(k).into_dyn())));
    let tensors: Vec<_> = tensors.iter().map(|(name, values)| (name.clone(), values.into())).collect();
    Ok(write_safetensors(path, &tensors)?)
}
