//! `dsv2 check`: a dump is judged, and the verdict names the first wrong stage.

use std::fs;
use std::path::{Path, PathBuf};

use dsv2::trace::Trace;
use dsv2::values::Values;
use dsv2_reference::Dtype;
use ndarray::{ArrayD, Axis, array};
use serde_json::Value;

use crate::process::{O_PROJ, Room, Tensors, names, read, run, scale};

/// The stages, rounded to another type.
fn rounded(stages: &Tensors, dtype: Dtype) -> Tensors {
    let rounded = |values: &Values| match values {
        Values::Real(_, a) => Values::Real(dtype, a.clone()),
        other => other.clone(),
    };
    stages.iter().map(|(name, values)| (name.clone(), rounded(values))).collect()
}

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

#[test]
fn what_is_wrong_with_a_stage_is_said() {
    let room = Room::of("one-token");
    let stages = room.expected();
    let real = |shape: &[usize], x: f64| Values::Real(Dtype::F16, ArrayD::from_elem(shape, x));
    let indices = "model.layers.1.mlp.gate.topk_indices";
    for (name, values, words) in [
        ("lm_head", real(&[3], 0.0), "lm_head: shape [3] where [1, 1, 112] is expected"),
        ("lm_head", real(&[0], 0.0), "lm_head: shape [0] where [1, 1, 112] is expected"),
        (
            "lm_head",
            Values::Index(ArrayD::zeros(&[1, 1, 112][..])),
            "I64 [1, 1, 112] where F64 [1, 1, 112] is expected",
        ),
        ("lm_head", real(&[1, 1, 112], f64::INFINITY), "lm_head: inf at"),
        ("model.norm", real(&[1, 1, 44], f64::NAN), "model.norm: NaN at"),
        (indices, Values::Index(array![[i64::MIN, -1, i64::MAX]].into_dyn()), "topk_indices: token 0"),
    ] {
        let mut stages = stages.clone();
        stages.insert(name.into(), values);
        let stdout = run(&mut room.check(&room.dump(&stages))).fails();
        let last = stdout.trim_end().lines().last().unwrap();
        assert!(
            last.starts_with(&format!("FAIL: first wrong stage {name}")) && last.contains(words),
            "{words}: {last}"
        );
    }
}

#[test]
fn several_files_are_one_dump_and_those_of_ranks_need_a_rule() {
    let room = Room::of("v2-lite");
    let traced = room.out("trace.safetensors");
    run(&mut room.trace()).passes();
    let stages = read(&traced);
    let write = |name: &str, of: &dyn Fn(usize) -> bool| {
        let part = stages.iter().enumerate().filter(|(i, _)| of(*i));
        let part: Trace = part.map(|(_, (name, values))| (name.clone(), values.clone())).collect();
        part.write(&room.out(name)).unwrap();
        room.out(name)
    };
    let (even, odd) = (write("even", &|i| i % 2 == 0), write("odd", &|i| i % 2 == 1));
    let both = |first: &Path, second: &Path| {
        let mut check = room.check(first);
        check.arg("--candidate").arg(second);
        check
    };
    let whole = run(&mut room.check(&traced)).passes();
    assert_eq!(run(&mut both(&even, &odd)).passes(), whole);
    let refused = run(&mut both(&even, &even)).refused();
    assert!(
        refused.contains("`model.embed_tokens` in one file (or a rule for the ranks' files: --shards)"),
        "{refused}"
    );
    // All that v2-lite has is whole on each rank here.
    let told = run(both(&traced, &traced).args(["--shards", "transformers"])).passes();
    assert!(told.contains("whole on each of 2 ranks"), "{told}");
    run(both(&traced, &traced).args(["--shards", "tensor-parallel"])).refused();
}
