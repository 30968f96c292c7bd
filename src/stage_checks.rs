//! The table of stages, held against the reference and against the sources.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use dsv2_reference::stage::flow::{inputs, sources};
use dsv2_reference::stage::{Stage, table};
use dsv2_reference::tap::NoTap;

use crate::backend::{Backend, Reference, Settings};
use crate::case::Case;
use crate::golden::GoldenCases;
use crate::trace::Trace;
use crate::values::Values;

/// Golden cases that have every kind of stage among them.
const CASES: [&str; 5] = ["v2", "v2-lite", "no-cache", "labels", "classify-single-label"];

fn run(case: &Case, teacher: Option<&Trace>) -> Trace {
    Reference.run(case, &Settings { teacher, ..Settings::default() }, &mut NoTap).unwrap()
}

/// The trace with one stage changed: numbers by a thousandth, experts for their neighbours.
fn changed(trace: &Trace, stage: &str, experts: i64) -> Trace {
    let change = |(name, values): (&str, &Values)| {
        let values = match values {
            // other logits, other experts
            Values::Real(dtype, a) if name == stage && name.ends_with("router_logits") => Values::Real(*dtype, -a),
            Values::Real(dtype, a) if name == stage => Values::Real(*dtype, a.mapv(|x| 1.001 * x + 1e-3)),
            Values::Index(a) if name == stage => Values::Index(a.mapv(|e| (e + 1) % experts)),
            values => values.clone(),
        };
        (name.to_owned(), values)
    };
    trace.iter().map(change).collect()
}

#[test]
fn the_table_is_the_dataflow_of_the_reference() {
    for case in CASES {
        let case = GoldenCases::embedded().load(case).unwrap().case;
        let trace = run(&case, None);
        let exists = |name: &str| trace.get(name).is_some();
        for (stage, _) in trace.iter() {
            let other = run(&case, Some(&changed(&trace, stage, case.config.num_experts() as i64)));
            let affected: Vec<&str> =
                other.iter().filter(|(name, values)| trace.get(name) != Some(values)).map(|(name, _)| name).collect();
            let listed = |name: &&str| inputs(name, &case.config, exists).iter().any(|input| input == stage);
            let expected: Vec<&str> = trace.iter().map(|(name, _)| name).filter(listed).collect();
            assert_eq!(affected, expected, "what is computed from {stage}");
        }
    }
}

#[test]
fn the_shapes_are_those_of_the_reference() {
    let mut seen: Vec<&str> = Vec::new();
    for case in CASES {
        let case = GoldenCases::embedded().load(case).unwrap().case;
        let (c, inputs) = (&case.config, &case.inputs);
        let (b, s, h) = (inputs.batch(), inputs.length(), c.num_attention_heads);
        let (n, r, v) = (c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim);
        let sizes = HashMap::from([
            ("1", 1),
            ("B", b),
            ("S", s),
            ("T", s),
            ("kept", s),
            ("BS", b * s),
            ("D", c.hidden_size),
            ("H", h),
            ("r", r),
            ("r/2", r / 2),
            ("c", c.kv_lora_rank),
            ("c+r", c.kv_lora_rank + r),
            ("q", c.q_lora_rank.unwrap_or(0)),
            ("H(n+r)", h * (n + r)),
            ("H(n+v)", h * (n + v)),
            ("Hv", h * v),
            ("I", c.intermediate_size),
            ("E", c.num_experts()),
            ("k", c.experts_per_token().unwrap_or(0)),
            ("V", c.vocab_size),
            ("labels", c.num_labels()),
        ]);
        for (name, values) in run(&case, None).iter() {
            let row = Stage::parse(name).unwrap().row();
            let axes: Vec<&str> =
                row.shape.trim_matches(['[', ']']).split(',').filter(|axis| !axis.is_empty()).collect();
            assert_eq!(axes.len(), values.shape().len(), "{name} {}", row.shape);
            for (axis, &size) in axes.iter().zip(values.shape()) {
                let any_of = axis.split(" or ").any(|axis| sizes[axis] == size);
                assert!(any_of, "{name} {}: {:?}", row.shape, values.shape());
            }
            seen.push(row.kind);
        }
    }
    let unseen = table::STAGES.iter().map(|row| row.kind).filter(|kind| !seen.contains(kind));
    assert_eq!(Vec::from_iter(unseen), [""; 0]);
}

#[test]
fn sources_go_back_to_what_is_held() {
    let case = GoldenCases::embedded().load("v2-lite").unwrap().case;
    let trace = run(&case, None);
    let exists = |name: &str| trace.get(name).is_some();
    let held = |name: &str| ["model.layers.0.self_attn.attn_output", "model.embed_tokens"].contains(&name);
    let sources = sources("model.layers.0.mlp.down_proj", &case.config, exists, held);
    assert_eq!(Vec::from_iter(sources.held), ["model.embed_tokens", "model.layers.0.self_attn.attn_output"]);
    let not_held = ["mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm", "self_attn.o_proj"];
    assert_eq!(Vec::from_iter(sources.not_held), not_held.map(|leaf| format!("model.layers.0.{leaf}")));
}

/// Tests spell names out, so that they do not follow the table into an error.
fn is_for_tests(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_stem().is_some_and(|name| name == "tests" || name == "stage_checks")
}

fn sources_in(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_for_tests(&path) {
            found.push(path);
        }
    }
}

#[test]
fn no_name_of_a_layer_is_spelt_outside_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "reference/src", "optimized/src", "benches"] {
        let before = files.len();
        sources_in(&root.join(folder), &mut files);
        assert!(files.len() > before, "{folder} has no sources");
    }
    let tables = root.join("reference/src/stage");
    let mut spelt = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"));
        let code = code.filter(|line| !line.trim_start().starts_with("//"));
        let names = code.filter(|line| line.contains("\"model.layers")).count();
        if names > 0 {
            spelt.push((path.strip_prefix(root).unwrap().to_owned(), names, path.starts_with(&tables)));
        }
    }
    assert!(
        spelt.iter().any(|(_, names, of_table)| *of_table && *names > 20),
        "the table itself is not found: {spelt:?}"
    );
    spelt.retain(|(.., of_table)| !of_table);
    assert_eq!(spelt, [], "a name belongs into the table, a path is `stage::layer_path`'s");
}
