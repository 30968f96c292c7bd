//! The golden cases are the files that their own records describe, and few enough to live in the repository.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn every_file_of_a_case_has_the_sha256_that_case_json_gives() {
    for case in cases() {
        let record: Value = serde_json::from_slice(&fs::read(case.join("case.json")).unwrap()).unwrap();
        let digests = record["provenance"]["sha256"].as_object().expect("digests");
        for file in files(&case).into_iter().filter(|file| !file.ends_with("case.json")) {
            let name = file.strip_prefix(&case).unwrap().to_str().unwrap().replace('\\', "/");
            let digest = Sha256::digest(fs::read(&file).unwrap());
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digests.get(&name).and_then(Value::as_str), Some(digest.as_str()), "{}/{name}", case.display());
        }
    }
}

#[test]
fn all_cases_together_are_below_20_megabytes() {
    let bytes: u64 = cases().iter().flat_map(|case| files(case)).map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes < 20_000_000, "{bytes} bytes");
}

#[test]
fn at_least_three_cases_are_checkpoint_folders_one_sharded_one_bf16_one_tied() {
    let folders: Vec<PathBuf> =
        cases().into_iter().map(|case| case.join("checkpoint")).filter(|f| f.is_dir()).collect();
    assert!(folders.len() >= 3);
    let config =
        |folder: &Path| -> Value { serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap() };
    assert!(folders.iter().any(|folder| folder.join("model.safetensors.index.json").exists()));
    assert!(folders.iter().any(|folder| config(folder)["torch_dtype"] == "bfloat16"));
    assert!(folders.iter().any(|folder| config(folder)["tie_word_embeddings"] == true));
}
