//! `dsv2 trace`: the stages of a forward pass, in a file.

use std::path::Path;

use dsv2_reference::weights::safetensors_file::SafetensorsFile;
use indexmap::IndexMap;

use crate::process::{Room, names, read, run};

/// The types in which a file holds its tensors.
fn types(path: &Path) -> IndexMap<String, String> {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.raw(&name).unwrap().dtype.to_string())).collect()
}

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
