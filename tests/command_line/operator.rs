//! `dsv2 operator`.

use std::path::Path;

use dsv2_operators::contract::flashinfer;
use dsv2_operators::tensor::to_safetensors;
use dsv2_operators::{ElementType, Operator, Plain, Tensor};

use crate::process::{dsv2, run};

/// What a plain implementation returns for each workload, under the names that the inputs have.
fn run_kernel(operator: &str, inputs: &Path, outputs: &Path) {
    std::fs::create_dir(outputs).unwrap();
    let operator = Operator::named(operator).unwrap();
    for workload in &operator.contract.workloads {
        let stem = flashinfer::file_stem(workload);
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
    let (contract, axes, _) = flashinfer::recognise(&definition, contracts).unwrap();
    assert_eq!((contract.name.as_str(), axes["hidden_size"]), ("rmsnorm", 2048));

    run_kernel("rmsnorm", &inputs, &outputs);
    let all = run(&mut dsv2(["operator", "check", "rmsnorm", outputs_])).passes();
    assert!(all.contains("11 passed, 0 failed, 0 not judged"), "{all}");

    // another workload's output has the wrong shape
    std::fs::copy(outputs.join("deepseek_v2.safetensors"), outputs.join("deepseek_v2_lite.safetensors")).unwrap();
    let one = ["operator", "check", "rmsnorm", outputs_, "--workload", "DeepSeek-V2-Lite", "--json"];
    let report: serde_json::Value = serde_json::from_str(&run(&mut dsv2(one)).fails()).unwrap();
    assert_eq!(report["workloads"][0]["outputs"][0]["disposition"], "wrong-shape");

    std::fs::remove_file(outputs.join("deepseek_v2_lite.safetensors")).unwrap();
    let missing = run(&mut dsv2(["operator", "check", "rmsnorm", outputs_])).fails();
    assert!(missing.contains("10 passed, 0 failed, 1 not judged"), "{missing}");
}

#[test]
fn rows_alone_are_written_and_their_bits_compared_and_asked_for_they_must_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (inputs, outputs) = (path("in"), path("out"));
    run(&mut dsv2(["operator", "inputs", "silu_and_mul", &inputs, "--rows"])).passes();
    std::fs::create_dir(&outputs).unwrap();
    let operator = Operator::named("silu_and_mul").unwrap();
    for entry in std::fs::read_dir(&inputs).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(stem) = file.strip_suffix(".safetensors") else { continue };
        let (stem, row) = stem.split_once(".row_").map_or((stem, None), |(stem, row)| (stem, Some(row)));
        let mut workloads = operator.contract.workloads.iter();
        let workload = workloads.find(|workload| flashinfer::file_stem(workload) == stem).unwrap();
        let all = operator.inputs(workload).unwrap();
        let given = row.map_or(all.clone(), |row| operator.contract.alone(&all, row.parse().unwrap()));
        assert_eq!(std::fs::read(Path::new(&inputs).join(&file)).unwrap(), to_safetensors(&given));
        let returned = to_safetensors(&operator.plain(&given, Plain::Fp32).unwrap());
        std::fs::write(Path::new(&outputs).join(&file), returned).unwrap();
    }
    let check = ["operator", "check", "silu_and_mul", &outputs, "--batch-invariant"];
    let said = run(&mut dsv2(check)).passes();
    assert!(said.contains("batch-invariant: yes (5 workloads, experts of DeepSeek-V2 the first)"), "{said}");

    // what another row returned
    let file = |row: &str| Path::new(&outputs).join(format!("many_tokens.row_{row}.safetensors"));
    std::fs::copy(file("0"), file("150")).unwrap();
    let said = run(&mut dsv2(check)).fails();
    assert!(said.contains("batch-invariant: no; first in \"many tokens\", row 150: output [0, 0] is "), "{said}");
    let measured = run(&mut dsv2(&check[..4])).passes();
    assert!(measured.contains("batch-invariant: no"), "{measured}");
    for row in ["0", "150", "299"] {
        std::fs::remove_file(file(row)).unwrap();
    }
    assert!(run(&mut dsv2(check)).refused().contains("such as many_tokens.row_0.safetensors, found none"));
}

#[test]
fn workloads_of_flashinfer_bench_are_read_from_a_trace_set_and_judged() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    run(&mut dsv2(["operator", "inputs", "rmsnorm", &text("ours"), "--workload", "odd sizes"])).passes();
    for kind in ["definitions/rmsnorm", "workloads/rmsnorm", "blob"] {
        std::fs::create_dir_all(at(kind)).unwrap();
    }
    std::fs::copy(at("ours/rmsnorm_h131_float32.json"), at("definitions/rmsnorm/rmsnorm_h131_float32.json")).unwrap();
    std::fs::copy(at("ours/odd_sizes.safetensors"), at("blob/w.safetensors")).unwrap();
    let line = |uuid: &str, hidden: &str| {
        let weight = r#"{"type":"safetensors","path":"blob/w.safetensors","tensor_key":"weight"}"#;
        format!(
            r#"{{"definition":"rmsnorm_h131_float32","workload":{{"uuid":"{uuid}","axes":{{"batch_size":4}},"inputs":{{"hidden_states":{hidden},"weight":{weight}}}}},"solution":null,"evaluation":null}}"#
        )
    };
    let lines = at("workloads/rmsnorm/rmsnorm_h131_float32.jsonl");
    let lines_ = lines.to_str().unwrap();
    let random = r#"{"type":"random"}"#;
    std::fs::write(&lines, format!("{}\n{}\n", line("c0ffee-1", random), line("c0ffee-2", random))).unwrap();
    run(&mut dsv2(["operator", "inputs", "rmsnorm", &text("in"), "--workloads", lines_])).passes();
    let operator = Operator::named("rmsnorm").unwrap();
    std::fs::create_dir(at("out")).unwrap();
    for stem in ["c0ffee_1", "c0ffee_2"] {
        let file = format!("{stem}.safetensors");
        let given = dsv2::values::read(&at("in").join(&file)).unwrap();
        let real = |(name, values): (String, dsv2::values::Values)| {
            (name, Tensor::real(ElementType::Float32, values.real().unwrap().clone()))
        };
        let given: dsv2_operators::Tensors = given.into_iter().map(real).collect();
        assert_eq!(given["hidden_states"].shape(), [4, 131]);
        std::fs::write(at("out").join(&file), to_safetensors(&operator.plain(&given, Plain::Fp32).unwrap())).unwrap();
    }
    let check = ["operator", "check", "rmsnorm", &text("out"), "--workloads", lines_];
    assert!(run(&mut dsv2(check)).passes().contains("2 passed, 0 failed, 0 not judged"));
    std::fs::copy(at("out/c0ffee_1.safetensors"), at("out/c0ffee_2.safetensors")).unwrap();
    assert!(run(&mut dsv2(check)).fails().contains("1 passed, 1 failed"));

    let refused = |hidden: &str| {
        std::fs::write(&lines, line("x", hidden)).unwrap();
        run(&mut dsv2(check)).refused()
    };
    let stored = |path: &str, key: &str| format!(r#"{{"type":"safetensors","path":"{path}","tensor_key":"{key}"}}"#);
    for (hidden, expected) in [
        (r#"{"type":"scalar","value":1}"#.to_owned(), "expected a tensor [batch_size, hidden_size], found 1"),
        (
            r#"{"type":"zeros"}"#.to_owned(),
            "expected a workload of FlashInfer-Bench (line 1), found unknown variant `zeros`",
        ),
        (stored("blob/none.safetensors", "weight"), "expected blob/none.safetensors beside it or from a folder above"),
        (stored("../../w.safetensors", "weight"), "expected names of files in its folder or below one above"),
        (stored("blob/w.safetensors", "none"), "expected a tensor `none`, found none"),
        (stored("blob/w.safetensors", "weight"), "expected [batch_size = 4, hidden_size = 131], found [131]"),
    ] {
        let said = refused(&hidden);
        assert!(said.contains(expected), "{said}");
    }
    let other = ["operator", "check", "gemm", &text("out"), "--workloads", lines_];
    assert!(run(&mut dsv2(other)).refused().contains("expected a definition of gemm, found rmsnorm"));
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
fn without_a_subcommand_they_are_listed() {
    let said = run(&mut dsv2(["operator"])).passes();
    assert!(["list", "inputs", "check"].iter().all(|name| said.contains(&format!("\n  {name} "))), "{said}");
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
