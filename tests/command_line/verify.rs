//! `dsv2 verify`: the table, its last line, the report.

use std::fs;
use std::path::Path;

use dsv2::golden::GoldenCases;
use serde_json::Value;

use crate::process::{O_PROJ, dsv2, edit, names, run, scale};

/// The last line, which sums everything up, without its time.
fn totals(stdout: &str) -> String {
    let line = stdout.trim_end().lines().last().unwrap();
    let (what, time) = line.rsplit_once(" in ").unwrap();
    assert!(time.strip_suffix(" s").unwrap().parse::<f64>().is_ok(), "{line}");
    what.to_owned()
}

#[test]
fn without_a_command_every_case_is_verified_on_every_backend() {
    let ran = run(&mut dsv2::<&str>([]));
    let cases = GoldenCases::embedded().names().len();
    // The reference in two types and the kernels in two; where there is a GPU there are two more.
    let runs = (if dsv2::backend::OnDevice::gpu().is_ok() { 6 } else { 4 }) * cases;
    assert_eq!(ran.stderr.lines().count(), runs, "a line of progress for each run: {}", ran.stderr);
    let stdout = ran.passes();
    let totals = totals(&stdout);
    // A mask with an entry for each head is the reference's alone.
    let not_run = runs / cases - 2;
    let start = format!("{runs} runs of {cases} cases: {} pass, 0 fail, {not_run} not run; ", runs - not_run);
    assert!(totals.starts_with(&start), "{totals}");
}

#[test]
fn verify_prints_a_table_and_one_line_of_totals() {
    let mut stdout = String::new();
    for backend in ["reference", "emulated"] {
        stdout += &run(&mut dsv2(["verify", "--case", "v2*", "--backend", backend])).passes();
    }
    let table = stdout.lines().filter(|line| !line.is_empty() && !line.contains(" runs of "));
    // which stage is the worst, and by how much, is for the machine's arithmetic to say
    let masked: Vec<String> = table.map(mask).collect();
    let totals = totals(&stdout);
    insta::assert_snapshot!(format!("{}\n\n{totals} in # s", masked.join("\n")));
}

/// A row of the table with one space between its columns, and what differs from machine to machine masked.
fn mask(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [case, backend, dtype, stages, _stage, metric, error, budget, verdict] = words[..] else { return "─".into() };
    if case == "case" {
        return words.join(" ");
    }
    assert!(["l2", "row", "max", "gain"].contains(&metric), "{line}");
    assert!(error.parse::<f64>().unwrap() <= budget.parse::<f64>().unwrap(), "{line}");
    format!("{case} {backend} {dtype} {stages} STAGE METRIC # # {verdict}")
}

#[test]
fn verify_runs_in_the_type_and_the_form_of_attention_asked_for() {
    let args = ["verify", "--case", "v2", "--dtype", "bf16", "--backend", "reference"];
    let stdout = run(&mut dsv2(args)).passes();
    let row = stdout.lines().nth(2).unwrap();
    assert!(row.split_whitespace().take(3).eq(["v2", "reference", "bf16"]), "{stdout}");
    let stages = |stdout: &str| totals(stdout).rsplit_once("; ").unwrap().1.to_owned();
    let expanded = stages(&stdout);
    assert!(totals(&stdout).starts_with("1 runs of 1 cases: 1 pass"), "{stdout}");

    let args = ["verify", "--case", "v2", "--dtype", "bf16", "--attention", "absorbed", "--backend", "reference"];
    let absorbed = stages(&run(&mut dsv2(args)).passes());
    let count = |stages: &str| stages.split(' ').next().unwrap().parse::<usize>().unwrap();
    // `kv_b_proj` of three layers
    assert_eq!(count(&absorbed) + 3, count(&expanded));
}

#[test]
fn verify_writes_a_report() {
    let room = tempfile::tempdir().unwrap();
    let report = room.path().join("a/report");
    run(dsv2(["verify", "--case", "one-token", "--backend", "reference", "--report"]).arg(&report)).passes();
    assert_eq!(names(&report), ["junit.xml", "report.html", "report.json"]);
    let report: Value = serde_json::from_slice(&fs::read(report.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["verdict"], "pass");
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for (run, dtype) in runs.iter().zip(["f64", "f32"]) {
        assert_eq!(
            (&run["case"], &run["dtype"], &run["conclusion"]),
            (&"one-token".into(), &dtype.into(), &"pass".into())
        );
        assert!(run["stages"].as_array().unwrap().iter().all(|stage| stage["disposition"] == "pass"), "{run}");
    }
}

#[test]
fn a_tampered_golden_case_fails_and_says_where() {
    let room = tempfile::tempdir().unwrap();
    let case = room.path().join("one-token");
    fs::create_dir(&case).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases/one-token");
    for name in names(&golden) {
        fs::copy(golden.join(&name), case.join(&name)).unwrap();
    }
    let verify = || run(dsv2(["verify", "--backend", "reference", "--golden"]).arg(room.path()));
    verify().passes();

    edit(&case.join("expected.safetensors"), |stages| scale(&mut stages[O_PROJ], 1.01));
    let stdout = verify().fails();
    assert!(totals(&stdout).starts_with("2 runs of 1 cases: 0 pass, 2 fail, 0 not run; "), "{stdout}");
    for dtype in ["f64", "f32"] {
        let start = format!(
            "FAIL one-token reference {dtype}: first wrong stage {O_PROJ}: l2 propagated error 9.9e-3, budget "
        );
        assert!(stdout.lines().any(|line| line.starts_with(&start)), "{stdout}");
    }

    // what contradicts case.json is no failure of the model
    edit(&case.join("expected.safetensors"), |stages| drop(stages.shift_remove(O_PROJ)));
    let line = verify().refused();
    assert!(line.starts_with("dsv2: golden case `one-token`: ") && line.contains(O_PROJ), "{line}");
}

#[test]
fn kernels_are_verified_under_the_race_detector() {
    let stdout = run(&mut dsv2(["verify", "--races", "--case", "one-token"])).passes();
    assert!(totals(&stdout).starts_with("2 runs of 1 cases: 2 pass, 0 fail, 0 not run; "), "{stdout}");
}

#[test]
fn kernels_are_verified_with_tensor_cores_that_add_up_in_other_ways() {
    for sums in ["aligned-8-2", "aligned-16-2"] {
        let stdout = run(&mut dsv2(["verify", "--sums", sums, "--case", "one-token"])).passes();
        assert!(totals(&stdout).starts_with("2 runs of 1 cases: 2 pass, 0 fail, 0 not run; "), "{stdout}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_refusal_and_no_pass() {
    let Err(reason) = dsv2::backend::OnDevice::gpu() else { return };
    let line = run(&mut dsv2(["verify", "--backend", "cuda"])).refused();
    assert!(line.contains("--backend: expected a CUDA device, found") && line.contains(&reason), "{line}");
}

#[test]
fn what_does_not_fit_into_memory_is_refused_before_any_case_runs() {
    let verify =
        |limit: &str| run(dsv2(["verify", "--case", "v2*", "--backend", "emulated", "--memory-limit"]).arg(limit));
    let line = verify("1MB").refused();
    assert!(line.starts_with("dsv2: memory: expected about ") && line.ends_with("(--case)"), "{line}");
    assert!(line.contains(" MB that is free, found 1.0 MB; fewer or smaller cases take less"), "{line}");
    verify("300MB").passes();
    assert!(verify("much").refused().contains("'--memory-limit <SIZE>': expected a size above 0"));
}

#[test]
fn mutants_that_do_not_fit_into_memory_are_refused_before_any_is_planted() {
    let mutants = |limit: &str| {
        let args = ["mutants", "--case", "v2", "--mutant", "resid_no_attention", "--dtype", "f32", "--memory-limit"];
        run(dsv2(args).arg(limit))
    };
    let line = mutants("1MB").refused();
    assert!(line.starts_with("dsv2: memory: expected about ") && line.ends_with("(--case)"), "{line}");
    let asked_for = line.strip_prefix("dsv2: memory: expected about ").unwrap().split(" that").next().unwrap();
    mutants(asked_for).passes();
    assert!(mutants("much").refused().contains("'--memory-limit <SIZE>': expected a size above 0"));
}

/// Before a model of that size is made: the number of any size may be damaged.
#[test]
fn a_size_in_case_json_that_cannot_be_right_is_refused_before_any_weight_is_made() {
    let room = tempfile::tempdir().unwrap();
    let (good, case) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases/v2"), room.path().join("v2"));
    fs::create_dir(&case).unwrap();
    for name in ["inputs.safetensors", "expected.safetensors"] {
        fs::copy(good.join(name), case.join(name)).unwrap();
    }
    let text = fs::read(good.join("case.json")).unwrap();
    for (key, value, words) in [
        (
            "vocab_size",
            20_000,
            "a config of a model whose `lm_head` is as expected, found of shape [2, 11, 20000], and [2, 11, 112]",
        ),
        ("n_routed_experts", 600, "`model.layers.1.mlp.gate.router_logits` is as expected, found of shape [22, 600]"),
        ("num_hidden_layers", 2, "`model.layers.2.input_layernorm` is as expected, found none"),
        ("moe_intermediate_size", 1 << 20, "expected a model of at most 16777216 generated weights, found "),
        ("intermediate_size", 1 << 29, "expected "),
    ] {
        let mut file: Value = serde_json::from_slice(&text).unwrap();
        file["config"][key] = value.into();
        fs::write(case.join("case.json"), file.to_string()).unwrap();
        for command in ["verify", "mutants", "materialize v2 nowhere"] {
            let mut command = dsv2(
                command.split(' ').map(|word| if word == "nowhere" { room.path().join(word) } else { word.into() }),
            );
            let line = run(command.arg("--golden").arg(room.path())).refused();
            assert!(line.starts_with("dsv2: golden case `v2`: ") && line.contains(words), "{key}: {line}");
        }
    }
}
