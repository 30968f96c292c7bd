//! `dsv2 operator`.

use std::path::Path;

use dsv2_operators::tensor::to_safetensors;
use dsv2_operators::{Operator, Plain};

use crate::process::{dsv2, run};

/// What a plain implementation returns for each workload, under the names that the inputs have.
fn run_kernel(operator: &str, inputs: &Path, outputs: &Path) {
    std::fs::create_dir(outputs).unwrap();
    let operator = Operator::named(operator).unwrap();
    for workload in &operator.contract.workloads {
        let stem = dsv2_operators::contract::flashinfer::file_stem(workload);
        let file = format!("{stem}.safetensors");
        let written = std::fs::read(inputs.join(&file)).unwrap();
        let made = operator.inputs(workload).unwrap();
        assert_eq!(written, to_safetensors(&made));
        std::fs::write(outputs.join(&file), to_safetensors(&operator.plain(&made, Plain::Fp32).unwrap())).unwrap();
    }
}

#[test]
fn a_kernel_is_judged_from_files_and_a_missing_or_foreign_output_is_no_pass() {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, outputs) = (folder.path().join("in"), folder.path().join("out"));
    let [inputs_, outputs_] = [&inputs, &outputs].map(|path| path.to_str().unwrap());
    run(&mut dsv2(["operator", "inputs", "rmsnorm", inputs_])).passes();
    let workloads = std::fs::read_to_string(inputs.join("rmsnorm_h512.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(workloads.lines().next().unwrap()).unwrap();
    assert_eq!(line["workload"]["axes"]["batch_size"], 3);
    let definition = std::fs::read_to_string(inputs.join("rmsnorm_h2048.json")).unwrap();
    let contracts = Operator::all().iter().map(|operator| &operator.contract);
    let (contract, axes, _) = dsv2_operators::contract::flashinfer::recognise(&definition, contracts).unwrap();
    assert_eq!((contract.name.as_str(), axes["hidden_size"]), ("rmsnorm", 2048));

    run_kernel("rmsnorm", &inputs, &outputs);
    let all = run(&mut dsv2(["operator", "check", "rmsnorm", outputs_])).passes();
    assert!(all.contains("9 passed, 0 failed, 0 not judged"), "{all}");

    // another workload's output has the wrong shape
    std::fs::copy(outputs.join("deepseek_v2.safetensors"), outputs.join("deepseek_v2_lite.safetensors")).unwrap();
    let one = ["operator", "check", "rmsnorm", outputs_, "--workload", "DeepSeek-V2-Lite", "--json"];
    let report: serde_json::Value = serde_json::from_str(&run(&mut dsv2(one)).fails()).unwrap();
    assert_eq!(report["workloads"][0]["outputs"][0]["disposition"], "wrong-shape");

    std::fs::remove_file(outputs.join("deepseek_v2_lite.safetensors")).unwrap();
    let missing = run(&mut dsv2(["operator", "check", "rmsnorm", outputs_])).fails();
    assert!(missing.contains("8 passed, 0 failed, 1 not judged"), "{missing}");
}

#[test]
fn the_list_names_every_workload_for_people_and_for_programs() {
    let text = run(&mut dsv2(["operator", "list"])).passes();
    let json: serde_json::Value =
        serde_json::from_str(&run(&mut dsv2(["operator", "list", "--json"])).passes()).unwrap();
    let operators = json["operators"].as_array().unwrap();
    assert_eq!(operators.len(), Operator::all().len());
    for operator in operators {
        assert!(text.contains(operator["name"].as_str().unwrap()));
        let workloads = operator["workloads"].as_object().unwrap();
        let files: std::collections::BTreeSet<_> =
            workloads.values().map(|workload| workload["file"].as_str().unwrap()).collect();
        assert_eq!(files.len(), workloads.len(), "a file for each");
    }
}

#[test]
fn what_cannot_be_judged_is_refused_in_one_line() {
    let refused = |args: &[&str]| run(&mut dsv2(args)).refused();
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    assert!(
        refused(&["operator", "check", "rms", empty]).starts_with("dsv2: operator `rms`: expected one of rmsnorm, ")
    );
    assert!(
        refused(&["operator", "check", "rmsnorm", empty]).ends_with("expected outputs of rmsnorm (output), found none")
    );
    let file = folder.path().join("x.safetensors");
    std::fs::write(&file, b"no tensors").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        refused(&["operator", "check", "rmsnorm", file]),
        "dsv2: --workload: expected the workload that this one file belongs to, found none"
    );
    assert!(refused(&["operator", "check", "rmsnorm", file, "--workload", "DeepSeek-V2"]).contains("x.safetensors"));
    assert!(refused(&["operator", "inputs", "rmsnorm", empty]).contains("expected no folder, or an empty one"));
}
