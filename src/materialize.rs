//! `dsv2 materialize`: a golden case as a complete Hugging Face folder, and beside it what goes in and what must come out,
//! for a program in any language.
//!
//! | file | content |
//! |---|---|
//! | `model/config.json`, `model/model.safetensors` (or shards and their index) | the model |
//! | `case/inputs.safetensors` | what goes in, in the form that `dsv2 trace --inputs` reads |
//! | `case/expected.safetensors` | every stage that Transformers computed |
//! | `case/case.json` | what the case is, and how far off each stage may be |
//!
//! **Trap.** Engines (vLLM among them) take every `*.safetensors` file of a model's folder for weights, so nothing else may
//! lie there.

mod ids_only;

use std::fs;
use std::path::Path;

use dsv2_foreign::Text;
use dsv2_reference::Dtype;
use dsv2_reference::file;
use dsv2_reference::weights::checkpoint::{Entry, write_checkpoint};
use dsv2_reference::weights::safetensors_file::write_safetensors;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::golden::{GoldenCase, Weights};
use crate::output;
use crate::values::Values;

/// What is given of a case's inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Feed {
    /// All of them.
    #[default]
    Whole,
    /// Token ids alone: many engines take nothing else.
    IdsOnly,
}

/// Writes the folder `dir`, whole or not at all.
///
/// # Errors
/// If there is something at `dir` already (other than an empty folder), or it cannot be written. With [`Feed::IdsOnly`] also
/// if the case is another computation without its other inputs.
pub fn materialize(golden: &GoldenCase, dir: &Path, feed: Feed) -> Result<()> {
    if feed == Feed::IdsOnly {
        ids_only::check(golden)?;
    }
    output::write_folder(dir, |new| {
        let (model, case) = (new.join("model"), new.join("case"));
        for folder in [&model, &case] {
            fs::create_dir(folder).map_err(Error::io(folder, "write"))?;
        }
        write_model(golden, &model)?;
        match feed {
            Feed::Whole => {
                write_inputs(golden, &case.join("inputs.safetensors"))?;
                for file in ["expected.safetensors", "case.json"] {
                    golden.folder.copy(file, &case.join(file))?;
                }
                Ok(())
            }
            Feed::IdsOnly => ids_only::write(golden, &case),
        }
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
                file::copy(&from, &to, &to)?;
            }
            let config = with_use_cache(golden.file.config.clone(), golden);
            if config != golden.file.config {
                let text = Text::json(&format!("{config:#}\n"));
                output::write_file(&dir.join("config.json"), text.as_str().as_bytes())?;
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
    let Some(k) = golden.file.options.logits_to_keep else { return golden.folder.copy("inputs.safetensors", path) };
    let mut tensors = golden.folder.tensors("inputs.safetensors")?;
    tensors.push(("logits_to_keep".into(), Values::Index(ndarray::arr0(k).into_dyn())));
    let tensors: Vec<_> = tensors.iter().map(|(name, values)| (name.clone(), values.into())).collect();
    Ok(write_safetensors(path, &tensors)?)
}
