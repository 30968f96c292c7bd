//! Any config.json, index and shard as a checkpoint folder: opened, held against each other and, where they fit, run.
//!
//! The input is config.json, a NUL, the index, a NUL, and the shard without its length prefix (a header, a NUL, the
//! tensors). An empty config.json or shard is that of the good model; without an index the shard is all there is.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::case::Case;
use dsv2_fuzz::files::{split, with_length_prefix};
use dsv2_fuzz::memory::bounded;
use dsv2_fuzz::{check_message, model};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::{AttentionForm, DeepseekV2Config, Dialect, NoTap};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

/// A config may ask for many weights, the list of which is long, and for any number of heads.
const EXPERTS_TO_LIST: usize = 500;

fuzz_target!(|bytes: &[u8]| {
    let (config, rest) = split(bytes);
    let (index, shard) = split(rest);
    let config = if config.is_empty() { model::CONFIG } else { config };
    let shard = if shard.is_empty() { model::WEIGHTS.to_vec() } else { with_length_prefix(shard) };
    let folder = FOLDER.path();
    let put = |name: &str, content: &[u8]| fs::write(folder.join(name), content).expect("a file is written");
    put("config.json", config);
    put("inputs.safetensors", model::INPUTS);
    for file in ["model.safetensors", "model.safetensors.index.json"] {
        let _ = fs::remove_file(folder.join(file));
    }
    if index.is_empty() {
        put("model.safetensors", &shard);
    } else {
        put("model.safetensors.index.json", index);
        put("shard.safetensors", &shard);
    }

    let length = config.len() + index.len() + shard.len();
    match bounded(length, 4, || Checkpoint::open(folder)) {
        Err(error) => check_message(&error),
        Ok(checkpoint) => {
            for name in checkpoint.names().expect("a list") {
                let shape = checkpoint.shape(&name).expect("a tensor that is there");
                if let Err(error) = checkpoint.tensor(&name, &shape) {
                    check_message(&error);
                }
            }
        }
    }
    run(folder);
});

fn run(folder: &Path) {
    let few = |config: &DeepseekV2Config| config.num_hidden_layers * config.num_experts().max(1) <= EXPERTS_TO_LIST;
    if DeepseekV2Config::from_file(&folder.join("config.json")).is_ok_and(|config| !few(&config)) {
        return;
    }
    for dialect in Dialect::ALL {
        match Case::open(folder, &folder.join("inputs.safetensors"), dialect, None) {
            Err(error) => check_message(&error),
            Ok(case) => {
                for attention in [AttentionForm::Expanded, AttentionForm::Absorbed] {
                    let settings = Settings { precision: Precision::F32, attention, ..Settings::default() };
                    if let Err(error) = Reference.run(&case, &settings, &mut NoTap) {
                        check_message(&error);
                    }
                }
            }
        }
    }
}
