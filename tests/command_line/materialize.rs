//! `dsv2 materialize`: a golden case as a Hugging Face folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dsv2::golden::GoldenCases;
use serde_json::Value;

use crate::process::{dsv2, names, read, run};

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
        assert_eq!(names(&dir), ["case", "model"]);
        // engines take every safetensors file beside config.json for weights
        assert_eq!(names(&dir.join("case")), ["case.json", "expected.safetensors", "inputs.safetensors"]);
        assert_eq!(names(&dir.join("model")), [&["config.json"], model].concat());
        let config: Value = serde_json::from_slice(&fs::read(dir.join("model/config.json")).unwrap()).unwrap();
        assert_eq!(config["model_type"], "deepseek_v2");
    }
    assert_eq!(names(room.path()), ["checkpoint-sharded", "classify-single-label", "v2"]);
}

#[test]
fn ids_only_is_the_same_computation_or_a_refusal() {
    let room = tempfile::tempdir().unwrap();
    let mut refused = Vec::new();
    for name in GoldenCases::embedded().names() {
        let dir = room.path().join(name);
        let ran = run(dsv2(["materialize", name, "--ids-only"]).arg(&dir));
        if ran.code == Some(2) {
            assert!(!dir.exists());
            refused.push(ran.refused());
            continue;
        }
        ran.passes();
        let (inputs, expected) = (dir.join("case/inputs.safetensors"), dir.join("case/expected.safetensors"));
        assert_eq!(read(&inputs).keys().collect::<Vec<_>>(), ["input_ids"]);
        let file: Value = serde_json::from_slice(&fs::read(dir.join("case/case.json")).unwrap()).unwrap();
        let names = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&file["inputs"]), BTreeSet::from(["input_ids".to_owned()]));
        assert_eq!(names(&file["stages"]), read(&expected).keys().cloned().collect());
        if ["labels", "labels-num-items", "classify-multi-label"].contains(&name.as_str()) || name.starts_with("real-")
        {
            let mut check = dsv2(["check", "--dtype", "f32", "--candidate"]);
            check.arg(&expected).arg("--model").arg(dir.join("model")).arg("--inputs").arg(&inputs);
            if let Some(chunks) = file["options"]["chunks"].as_array() {
                check.arg("--chunks").arg(chunks.iter().map(Value::to_string).collect::<Vec<_>>().join(","));
            }
            run(&mut check).passes();
        }
    }
    insta::assert_snapshot!(refused.join("\n").replace(
        "dsv2: --ids-only: expected a case that its token ids determine: a mask of ones, positions from 0, all logits, found ",
        ""
    ));
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
    let line = materialize("v2", &dir.join("model/config.json")).refused();
    assert!(line.contains("config.json"), "{line}");
    let line = materialize("v2", &room.path().join("no/such/place")).refused();
    assert!(line.contains("no/such/place: cannot write"), "{line}");
    assert_eq!(names(&dir), before);
    assert_eq!(names(room.path()), ["model"]);
}
