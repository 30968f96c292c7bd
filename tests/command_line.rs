//! The command line, as a process: what it prints, what it writes, how it ends.

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{Room, Tensors, dsv2, edit, names, read, run};
use dsv2::golden::Suite;
use dsv2::values::Values;
use dsv2_reference::Dtype;
use dsv2_reference::weights::safetensors_file::SafetensorsFile;
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis};
use serde_json::Value;

const O_PROJ: &str = "model.layers.1.self_attn.o_proj";

/// The last line, which sums everything up, without its time.
fn totals(stdout: &str) -> String {
    let line = stdout.trim_end().lines().last().unwrap();
    let (what, time) = line.rsplit_once(" in ").unwrap();
    assert!(time.strip_suffix(" s").unwrap().parse::<f64>().is_ok(), "{line}");
    what.to_owned()
}

/// Scales a stage.
fn scale(values: &mut Values, factor: f64) {
    let Values::Real(_, a) = values else { panic!("{} are no real numbers", values.describe()) };
    *a *= factor;
}

/// The stages, rounded to another type.
fn rounded(stages: &Tensors, dtype: Dtype) -> Tensors {
    let rounded = |values: &Values| match values {
        Values::Real(_, a) => Values::Real(dtype, a.clone()),
        other => other.clone(),
    };
    stages.iter().map(|(name, values)| (name.clone(), rounded(values))).collect()
}

/// The types in which a file holds its tensors.
fn types(path: &Path) -> IndexMap<String, String> {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.data(&name).unwrap().type_name())).collect()
}

// verify

#[test]
fn without_a_command_every_case_is_verified_on_every_backend() {
    let ran = run(&mut dsv2::<&str>([]));
    let cases = Suite::embedded().names().len();
    // The reference in two types and the kernels in two; where there is a GPU there are two more.
    let runs = (if dsv2::backend::OnDevice::gpu().is_ok() { 6 } else { 4 }) * cases;
    assert_eq!(ran.stderr.lines().count(), runs, "a line of progress for each run: {}", ran.stderr);
    let stdout = ran.passes();
    let totals = totals(&stdout);
    let start = format!("{runs} runs of {cases} cases: {runs} pass, 0 fail, 0 not run; ");
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

// materialize

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

// trace

#[test]
fn a_trace_of_a_materialised_case_is_what_transformers_computed() {
    for case in ["v2", "checkpoint-sharded", "classify-single-label", "inputs-embeds", "logits-to-keep-int", "no-cache"]
    {
        let room = Room::of(case);
        let traced = room.out("trace.safetensors");
        let stdout = run(&mut room.trace()).passes();
        let stages = read(&traced);
        assert_eq!(stdout, format!("{}: {} stages\n", traced.display(), stages.len()));
        let expected = room.expected();
        assert!(expected.keys().all(|name| stages.contains_key(name)), "{case}");
        assert_eq!(names(&room.path().join("out")), ["trace.safetensors"]);

        let mut check = room.check(&traced);
        let stdout = run(check.arg("--expected").arg(room.file("expected.safetensors"))).passes();
        assert!(
            stdout.trim_end().ends_with(&format!("pass: {} stages, as f32 computes them", expected.len())),
            "{stdout}"
        );
    }
}

#[test]
fn a_sequence_in_pieces_gives_the_same_bits() {
    for case in ["v2", "left-padding", "mask-4d-bias"] {
        let room = Room::of(case);
        run(&mut room.trace()).passes();
        let whole = read(&room.out("trace.safetensors"));
        run(room.trace().args(["--chunks", "7,1,3"])).passes();
        let pieces = read(&room.out("trace.safetensors"));
        assert_eq!(whole.keys().collect::<Vec<_>>(), pieces.keys().collect::<Vec<_>>());
        for (name, whole) in &whole {
            assert_eq!(whole.describe(), pieces[name].describe(), "{case}: {name}");
            if name.ends_with(".attn_scores") || name.ends_with(".attn_weights") {
                continue;
            }
            assert!(*whole == pieces[name], "{case}: {name}");
        }
    }
}

#[test]
fn masked_scores_of_a_sequence_in_pieces_are_minus_infinity() {
    let room = Room::of("v2");
    run(&mut room.trace()).passes();
    let whole = read(&room.out("trace.safetensors"));
    run(room.trace().args(["--chunks", "7,1,3"])).passes();
    let pieces = read(&room.out("trace.safetensors"));
    let mut masks = whole.iter().filter(|(name, _)| name.contains(".attn_")).peekable();
    assert!(masks.peek().is_some());
    for (name, whole) in masks {
        assert!(*whole == pieces[name], "{name}");
    }
}

#[test]
fn a_trace_holds_the_stages_asked_for() {
    let room = Room::of("v2");
    run(room.trace().args(["--stages", "model.layers.0.self_attn.q_*"])).passes();
    let mut held: Vec<_> = read(&room.out("trace.safetensors")).into_keys().collect();
    held.sort_unstable();
    let stages = ["q_a_layernorm", "q_a_proj", "q_b_proj", "q_pe"];
    assert_eq!(held, stages.map(|stage| format!("model.layers.0.self_attn.{stage}")));

    let line = run(room.trace().args(["--stages", "model.layers.9"])).refused();
    assert!(line.ends_with("--stages: expected a pattern that matches a stage, found \"model.layers.9\""), "{line}");
    let line = run(room.trace().args(["--stages", "["])).refused();
    assert!(line.contains("--stages: expected a pattern of *, ? and [..], found \"[\""), "{line}");
}

#[test]
fn absorbed_attention_expands_no_keys_and_passes_all_the_same() {
    let room = Room::of("v2");
    run(room.trace().args(["--attention", "absorbed"])).passes();
    let traced = room.out("trace.safetensors");
    let mut expected = room.expected();
    let stages = read(&traced);
    expected.retain(|name, _| !name.ends_with(".kv_b_proj"));
    assert!(stages.keys().all(|name| !name.ends_with(".kv_b_proj")));
    assert!(expected.keys().all(|name| stages.contains_key(name)));
    run(&mut room.check(&traced)).passes();
}

#[test]
fn a_bf16_trace_has_its_router_and_rotary_tables_in_f32_and_passes_as_bf16_only() {
    let room = Room::of("v2-lite");
    run(room.trace().args(["--dtype", "bf16"])).passes();
    let traced = room.out("trace.safetensors");
    for (name, dtype) in types(&traced) {
        let expected = match name.rsplit('.').next().unwrap() {
            "topk_indices" => "I64",
            "cos" | "sin" | "router_logits" | "topk_weights" => "F32",
            _ => "BF16",
        };
        assert_eq!(dtype, expected, "{name}");
    }
    for dtype in [&[][..], &["--dtype", "bf16"]] {
        let stdout = run(room.check(&traced).args(dtype)).passes();
        assert!(stdout.trim_end().ends_with("as bf16 computes them"), "{stdout}");
    }
    run(room.check(&traced).args(["--dtype", "f32"])).fails();
}

// check

/// The experts of one token of one layer of `v2`, and what to do with them.
fn with_experts(room: &Room, traced: &Path, change: impl Fn(&mut [i64])) -> PathBuf {
    let mut stages = read(traced);
    let Values::Index(experts) = &mut stages["model.layers.2.mlp.gate.topk_indices"] else { panic!("indices") };
    change(experts.as_slice_mut().unwrap());
    room.dump(&stages)
}

#[test]
fn a_near_tie_that_falls_the_other_way_in_bf16_is_followed_and_told() {
    let room = Room::of("v2");
    run(room.trace().args(["--dtype", "bf16"])).passes();
    let stdout = run(&mut room.check(&room.out("trace.safetensors"))).passes();
    let told =
        "near ties that fell the other way (tokens; allowed, and followed): model.layers.2.mlp.gate.topk_indices (1)";
    assert!(stdout.contains(told), "{stdout}");
}

#[test]
fn experts_that_no_rounding_explains_are_named() {
    let room = Room::of("v2");
    run(room.trace().args(["--dtype", "bf16"])).passes();
    let traced = room.out("trace.safetensors");
    let of_expert_0 = |experts: &mut [i64]| experts[..3].copy_from_slice(&[0, 1, 2]);
    let stdout = run(&mut room.check(&with_experts(&room, &traced, of_expert_0))).fails();
    assert!(
        stdout.contains("FAIL: first wrong stage model.layers.2.mlp.gate.topk_indices: token 0 goes to"),
        "{stdout}"
    );
    // nor are experts that do not exist, or one expert twice
    for experts in [[0, 1, 99], [5, 5, 5]] {
        let changed = with_experts(&room, &traced, |all| all[..3].copy_from_slice(&experts));
        let stdout = run(&mut room.check(&changed)).fails();
        assert!(stdout.contains("FAIL: first wrong stage model.layers.2.mlp.gate.topk_indices"), "{stdout}");
    }
}

#[test]
fn what_transformers_computed_is_the_model() {
    let room = Room::of("v2");
    let expected = room.file("expected.safetensors");
    let stdout = run(room.check(&expected).args(["--dtype", "f32"])).passes();
    let stages = room.expected().len();
    assert!(stdout.trim_end().ends_with(&format!("pass: {stages} stages, as f32 computes them")), "{stdout}");

    let report = room.out("report");
    run(room.check(&expected).arg("--report").arg(&report)).passes();
    assert_eq!(names(&report), ["junit.xml", "report.html", "report.json"]);
    let report: Value = serde_json::from_slice(&fs::read(report.join("report.json")).unwrap()).unwrap();
    assert_eq!((&report["verdict"], report["stages"].as_array().unwrap().len()), (&"pass".into(), stages));
}

#[test]
fn a_stage_that_is_one_percent_too_large_is_named() {
    let room = Room::of("v2");
    let mut stages = room.expected();
    scale(&mut stages[O_PROJ], 1.01);
    let candidate = room.dump(&stages);
    let stdout = run(&mut room.check(&candidate)).fails();
    let last = stdout.trim_end().lines().last().unwrap();
    assert!(last.starts_with(&format!("FAIL: first wrong stage {O_PROJ}: l2 local error 1.0e-2, budget ")), "{last}");
    // and the two stages that the dump has from the number as it was
    assert_eq!(stdout.matches("FAIL: over budget").count(), 3, "{stdout}");

    let stdout = run(room.check(&candidate).arg("--json")).fails();
    let verdict: Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!((&verdict["verdict"], &verdict["first_failing_stage"]), (&"fail".into(), &O_PROJ.into()));
    let judged = verdict["stages"].as_array().unwrap();
    assert_eq!(judged.len(), stages.len());
    for stage in judged {
        for key in ["stage", "disposition", "local", "propagated", "budget"] {
            assert!(stage.get(key).is_some(), "{key} of {stage}");
        }
        let wrong = [O_PROJ, "model.layers.1.post_attention_layernorm", "model.layers.1"];
        let wrong = wrong.iter().any(|name| stage["stage"] == *name);
        assert_eq!(stage["disposition"], if wrong { "over-budget" } else { "pass" }, "{stage}");
        if stage["stage"] == O_PROJ {
            assert!((stage["propagated"]["l2"].as_f64().unwrap() - 0.01).abs() < 1e-5, "{stage}");
        }
    }
}

#[test]
fn a_passing_verdict_names_no_stage() {
    let room = Room::of("one-token");
    let stdout = run(room.check(&room.file("expected.safetensors")).arg("--json")).passes();
    let verdict: Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!((&verdict["verdict"], &verdict["first_failing_stage"]), (&"pass".into(), &Value::Null));
}

#[test]
fn a_candidate_is_judged_by_the_stages_that_it_holds() {
    let room = Room::of("v2");
    let mut stages = room.expected();
    stages.retain(|name, _| ["model.norm", O_PROJ, "lm_head"].contains(&name.as_str()));
    let stdout = run(&mut room.check(&room.dump(&stages))).passes();
    assert!(stdout.trim_end().ends_with("pass: 3 stages, as f32 computes them"), "{stdout}");

    let lm_head = stages.shift_remove("lm_head").unwrap();
    stages.insert("logits".into(), lm_head);
    stages.insert("vision.tower".into(), stages[O_PROJ].clone());
    stages.insert("model.layers.9.mlp".into(), stages[O_PROJ].clone());
    let stdout = run(&mut room.check(&room.dump(&stages))).passes();
    assert!(stdout.trim_end().ends_with("pass: 3 stages, as f32 computes them"), "{stdout}");
    let unknown = stdout.lines().find(|line| line.starts_with("not looked at (no stage of this model): ")).unwrap();
    assert!(unknown.contains("vision.tower") && unknown.contains("model.layers.9.mlp"), "{unknown}");

    stages.retain(|name, _| name == "vision.tower");
    let line = run(&mut room.check(&room.dump(&stages))).refused();
    assert!(line.contains("--candidate: expected a tensor that is named as a stage"), "{line}");
}

#[test]
fn axes_of_one_do_not_matter_and_others_do() {
    let room = Room::of("v2");
    let mut stages = room.expected();
    let mut reshape = |name: &str, change: &dyn Fn(ArrayD<f64>) -> ArrayD<f64>| {
        let Values::Real(dtype, a) = stages[name].clone() else { panic!("{name}") };
        stages[name] = Values::Real(dtype, change(a));
    };
    reshape("model.norm", &|a| a.insert_axis(Axis(0)));
    reshape("model.layers.0.self_attn.k_pe", &|a| a.remove_axis(Axis(1)));
    reshape("model.rotary_emb.cos", &|a| a.insert_axis(Axis(3)));
    run(&mut room.check(&room.dump(&stages))).passes();

    let Values::Real(dtype, a) = stages["model.layers.2"].clone() else { panic!() };
    stages["model.layers.2"] = Values::Real(dtype, a.reversed_axes());
    let stdout = run(&mut room.check(&room.dump(&stages))).fails();
    let end = "FAIL: first wrong stage model.layers.2: shape [44, 11, 2] where [2, 11, 44] is expected";
    assert!(stdout.trim_end().ends_with(end), "{stdout}");
}

#[test]
fn a_candidate_may_be_of_any_real_type() {
    let room = Room::of("v2");
    let stages = room.expected();
    // The rotary tables are fp32 in every implementation.
    let rounded = |dtype| {
        let mut rounded = rounded(&stages, dtype);
        for table in ["model.rotary_emb.cos", "model.rotary_emb.sin"] {
            rounded[table] = stages[table].clone();
        }
        rounded
    };
    for (dtype, judged_as) in [(Dtype::Bf16, "bf16"), (Dtype::F16, "f16"), (Dtype::F64, "f32")] {
        let candidate = room.dump(&rounded(dtype));
        let stdout = run(&mut room.check(&candidate)).passes();
        assert!(stdout.trim_end().ends_with(&format!("as {judged_as} computes them")), "{stdout}");
    }
    // narrow storage is no excuse for a candidate that claims to compute in f32
    let candidate = room.dump(&rounded(Dtype::Bf16));
    run(room.check(&candidate).args(["--dtype", "f32"])).fails();
}

#[test]
fn nan_in_a_candidate_is_a_failure_of_the_candidate() {
    let room = Room::of("v2");
    let mut stages = room.expected();
    let Values::Real(_, a) = &mut stages[O_PROJ] else { panic!() };
    a[[1, 3, 5]] = f64::NAN;
    let stdout = run(&mut room.check(&room.dump(&stages))).fails();
    let start = format!("FAIL: first wrong stage {O_PROJ}: NaN at [1, 3, 5] where ");
    assert!(stdout.trim_end().lines().last().unwrap().starts_with(&start), "{stdout}");
}

#[test]
fn numbers_in_the_place_of_expert_indices_are_a_failure_of_the_candidate() {
    let room = Room::of("v2");
    let indices = "model.layers.1.mlp.gate.topk_indices";
    let mut stages = room.expected();
    stages[indices] = stages["model.layers.1.mlp.gate.topk_weights"].clone();
    let stdout = run(&mut room.check(&room.dump(&stages))).fails();
    assert!(stdout.contains(&format!("first wrong stage {indices}")), "{stdout}");
}

#[test]
fn a_packed_cache_is_judged_by_the_numbers_that_it_holds() {
    let room = Room::of("v2");
    let trace = room.out("trace.safetensors");
    for format in ["bf16", "int8", "fp8", "six-bit"] {
        run(room.trace().args(["--cache", format])).passes();
        run(room.check(&trace).args(["--cache", format])).passes();
        let stdout = run(&mut room.check(&trace)).fails();
        assert!(stdout.contains("first wrong stage past_key_values.0.compressed_kv"), "{format}: {stdout}");
        fs::remove_file(&trace).unwrap();
    }
    let config = room.file("config.json");
    let mut without: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    without["use_cache"] = false.into();
    fs::write(&config, without.to_string()).unwrap();
    let line = run(room.trace().args(["--cache", "fp8"])).refused();
    assert!(line.contains("--cache: expected plain where there is no cache (use_cache is false), found fp8"), "{line}");
}

// everything else

#[test]
fn what_the_latent_cache_saves() {
    insta::assert_snapshot!(run(&mut dsv2(["kv-cache"])).passes());
    let room = Room::of("v2");
    let stdout = run(dsv2(["kv-cache", "--memory", "0.5", "--model"]).arg(room.path().join("model"))).passes();
    assert!(stdout.contains("longest context in 0.5 GB"), "{stdout}");
    let json = run(&mut dsv2(["kv-cache", "--json", "--preset", "v2-lite", "--batch", "2"])).passes();
    let tables: Value = serde_json::from_str(&json).unwrap();
    let row = tables["tables"][0]["rows"].as_array().unwrap().iter().find(|row| row["attention"] == "mla").unwrap();
    assert_eq!((&row["format"], &row["bytes_per_token"]), (&"bf16".into(), &31_104.into()));
    assert_eq!(row["longest_context"], 160_751, "10^10 / 31104 / 2");
    let line = run(&mut dsv2(["kv-cache", "--preset", "v3"])).refused();
    assert!(line.contains("v3") && line.contains("v2-lite"), "{line}");
}

#[test]
fn benchmarks_are_reported_by_a_program_of_their_own() {
    for (command, now) in [("bench-report", "-- report FILE..."), ("bench-compare", "-- compare OLD NEW")] {
        for args in [&[][..], &["a.json", "b.json", "--all"], &["--help"]] {
            let line = run(dsv2([command]).args(args)).refused();
            let now = format!("`cargo run --release -p dsv2-bench-report {now}`");
            assert_eq!(line, format!("dsv2: {command} is another program now: {now}"));
        }
    }
}

#[test]
fn help_is_no_error() {
    let ran = run(&mut dsv2(["--help"]));
    assert_eq!(ran.stderr, "");
    let stdout = ran.passes();
    for command in ["verify", "trace", "check", "materialize", "mutants", "kv-cache"] {
        assert!(stdout.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {stdout}");
        let help = run(&mut dsv2([command, "--help"])).passes();
        assert!(help.contains(&format!("Usage: dsv2 {command}")), "{help}");
    }
    assert!(run(&mut dsv2(["--version"])).passes().starts_with("dsv2 "));
}

#[test]
fn what_there_is_not_is_refused_and_what_there_is_said() {
    for (args, says) in [
        (
            &["verify", "--backend", "tpu"][..],
            &["tpu", "--backend", "[possible values: reference, emulated, cuda]"][..],
        ),
        (&["verify", "--backend", "emulated", "--races"], &["--backend", "--races", "cannot be used with"]),
        (&["verify", "--case", "no-such-*"], &["--case", "expected a pattern that matches a golden case", "no-such-*"]),
        (&["verify", "--case", "["], &["--case", "expected a pattern of *, ? and [..]", "\"[\""]),
        (&["verify", "--dtype", "f8"], &["--dtype", "expected f64, f32, tf32, f16 or bf16", "f8"]),
        (&["verify", "--attention", "flash"], &["--attention", "flash", "expanded", "absorbed"]),
        (&["verify", "--golden", "no/such/folder"], &["no/such/folder", "cannot read"]),
        (&["trace"], &["--model <DIR>", "--inputs <FILE>", "--output <FILE>"]),
        (&["check", "--dialect", "v3"], &["--dialect", "expected hf, hf-pre-5.15 or deepseek", "v3"]),
        (&["trace", "--chunks", "7,0"], &["--chunks", "expected lengths from 1 up, such as 7,1,1", "7,0"]),
        (&["prove"], &["prove"]),
        (&["verify", "--proof"], &["--proof"]),
        (&["kv-cache", "--memory=-1"], &["--memory", "expected 0 to 9000000 (GB)", "-1"]),
        (&["kv-cache", "--memory", "NaN"], &["--memory", "expected 0 to 9000000 (GB)", "NaN"]),
        (&["kv-cache", "--batch", "0"], &["--batch", "expected one sequence or more", "0"]),
        (&["trace", "--cache", "fp4"], &["--cache", "plain", "six-bit", "fp4"]),
        (&["materialize", "v2"], &["<DIR>"]),
    ] {
        let line = run(&mut dsv2(args)).refused();
        assert!(says.iter().all(|word| line.contains(word)), "{args:?}: {line}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_refusal_and_no_pass() {
    let Err(reason) = dsv2::backend::OnDevice::gpu() else { return };
    let line = run(&mut dsv2(["verify", "--backend", "cuda"])).refused();
    assert!(line.contains("--backend: expected a CUDA device, found") && line.contains(&reason), "{line}");
}

#[test]
fn kernels_are_verified_under_the_race_detector() {
    let stdout = run(&mut dsv2(["verify", "--races", "--case", "one-token"])).passes();
    assert!(totals(&stdout).starts_with("2 runs of 1 cases: 2 pass, 0 fail, 0 not run; "), "{stdout}");
}

#[test]
fn a_reader_who_has_read_enough_is_no_fault() {
    for args in [&["kv-cache"][..], &["--help"], &["verify", "--case", "one-token"]] {
        let mut child = dsv2(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() && !stderr.contains("panicked"), "{args:?}: {status}: {stderr}");
    }
}
