use dsv2_reference::tap::NoTap;
use ndarray::{ArrayD, concatenate};

use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::golden::GoldenCases;

/// Names of `v2` under which a tensor may come a second time, and the stages that it holds then.
const TWICE: &[(&str, &[&str])] = &[
    ("module.lm_head", &["lm_head"]),
    ("model.model.layers.1", &["model.layers.1"]),
    ("_orig_mod.layers.1", &["model.layers.1"]),
    ("base_model.model.model.layers.1.self_attn.o_proj", &["model.layers.1.self_attn.o_proj"]),
    ("model.layers.1.self_attn", &["model.layers.1.self_attn.o_proj"]),
    ("model.layers.1.self_attn.mla_attn", &["model.layers.1.self_attn.o_proj"]),
    ("model.layers.0.mlp", &["model.layers.0.mlp.down_proj"]),
    ("model.layers.1.mlp.gate", &["model.layers.1.mlp.gate.router_logits"]),
    ("model.layers.0.mlp.gate_up_proj", &["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]),
    ("model.layers.0.mlp.gate_up_proj", &["model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"]),
    ("past_key_values.1.latent", &["past_key_values.1.compressed_kv", "past_key_values.1.k_pe"]),
    ("past_key_values.1", &["past_key_values.1.k_pe", "past_key_values.1.compressed_kv"]),
    (
        "model.layers.1.self_attn.qkv_a_proj",
        &["model.layers.1.self_attn.q_a_proj", "model.layers.1.self_attn.kv_a_proj_with_mqa"],
    ),
];

fn named_with(second: &str, holds: &[&str], change: f64) -> (Trace, Result<Named>) {
    let case = GoldenCases::embedded().load("v2").unwrap().case;
    let trace = Reference.run(&case, &Settings::default(), &mut NoTap).unwrap();
    let parts: Vec<ArrayD<f64>> = holds.iter().map(|stage| trace.get(stage).unwrap().real().unwrap().clone()).collect();
    let parts: Vec<_> =
        parts.iter().map(|part| part.view().into_shape_with_order((22, part.len() / 22)).unwrap()).collect();
    let mut whole = concatenate(Axis(1), &parts).unwrap().into_dyn();
    *whole.iter_mut().last().unwrap() += change;
    let dump = trace.clone().with(second, Values::Real(dsv2_reference::Dtype::F64, whole));
    let named = named(&dump, &case.config, case.dialect);
    (trace, named)
}

#[test]
fn a_stage_that_comes_twice_alike_is_one_stage() {
    for (second, holds) in TWICE {
        let (trace, named) = named_with(second, holds, 0.0);
        let named = named.unwrap().trace;
        let (have, want): (Vec<_>, Vec<_>) = (named.iter().collect(), trace.iter().collect());
        assert_eq!(have, want, "{second}");
    }
}

#[test]
fn a_stage_that_comes_twice_and_differs_is_refused_by_both_names() {
    for (second, holds) in TWICE {
        let message = named_with(second, holds, 1.0).1.err().expect(second).to_string();
        assert!(message.contains(&format!("`{second}`")) && message.contains("which differ"), "{message}");
        assert!(holds.iter().any(|stage| message.contains(&format!("`{stage}`"))), "{message}");
    }
}
