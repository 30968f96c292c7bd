//! `dsv2 materialize`: a golden case as a Hugging Face folder.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::process::{dsv2, names, run};

#[test]
fn materialize_writes_a_complete_folder() {
    let room = tempfile::tempdir().unwrap();
    for (case, model) in [
        ("v2", &["model.safetensors"][..]),
        ("classify-single-label", &["model.safetensors"]),
        (
            "checkpoint-sharded",
            &[
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
                "model.safetensors.index.json",
            ],
        ),
    ] {
        let dir = room.path().join(case);
        let stdout = run(dsv2(["materialize", case]).arg(&dir)).passes();
        assert!(stdout.starts_with(&format!("{}: ", dir.display())) && stdout.lines().count() == 1, "{stdout}");
        let mut files = [&["case.json", "config.json", "expected.safetensors", "inputs.safetensors"], model].concat();
        files.sort_unstable();
        assert_eq!(names(&dir), files);
        let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["model_type"], "deepseek_v2");
    }
    assert_eq!(names(room.path()), ["checkpoint-sharded", "classify-single-label", "v2"]);
}

#[test]
fn materialize_overwrites_nothing() {
    let room = tempfile::tempdir().unwrap();
    let dir = room.path().join("model");
    fs::create_dir(&dir).unwrap();
    let materialize = |case: &str, dir: &Path| run(dsv2(["materialize", case]).arg(dir));
    let line = materialize("no such case", &dir).refused();
    assert!(line.ends_with("expected the name of a golden case, found \"no such case\""), "{line}");
    materialize("one-token", &dir).passes();
    let before = names(&dir);
    let line = materialize("v2", &dir).refused();
    assert!(line.ends_with("expected no folder, or an empty one, found a folder with something in it"), "{line}");
    let line = materialize("v2", &dir.join("config.json")).refused();
    assert!(line.contains("config.json"), "{line}");
    let line = materialize("v2", &room.path().join("no/such/place")).refused();
    assert!(line.contains("no/such/place: cannot write"), "{line}");
    assert_eq!(names(&dir), before);
    assert_eq!(names(room.path()), ["model"]);
}
