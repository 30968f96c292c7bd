//! Which stages a stage is computed from.
//!
//! To judge a stage by itself, the reference is given the candidate's own inputs of it. This table says which those are,
//! so that a report can name them, and can say what a dump that lacks some of them leaves open. It is no second
//! description of the model that could be wrong unnoticed: a test holds it against the reference, stage by stage.

use std::collections::BTreeSet;

use dsv2_reference::DeepseekV2Config;

use super::Stage;

/// What is known of one kind of stage.
struct Flow {
    kind: &'static str,
    /// The kinds that it is computed from, where a model has them; `*` is the same layer, [`RESIDUAL`] the stream before it.
    inputs: &'static [&'static str],
    /// The number of products that one of its numbers is the sum of; three products in a row count thrice.
    terms: fn(&DeepseekV2Config) -> usize,
}

/// The residual stream that enters a layer (or the last norm): the layer before, or the embedding.
const RESIDUAL: &str = "residual";

const fn flow(kind: &'static str, inputs: &'static [&'static str], terms: fn(&DeepseekV2Config) -> usize) -> Flow {
    Flow { kind, inputs, terms }
}

/// A stage that is not a sum.
const fn one(_: &DeepseekV2Config) -> usize {
    1
}

const Q: [&str; 2] = ["model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.q_b_proj"];
const IN: &str = "model.layers.*.input_layernorm";
const POST: &str = "model.layers.*.post_attention_layernorm";
const KV_A: &str = "model.layers.*.self_attn.kv_a_proj_with_mqa";
const KV_B: &str = "model.layers.*.self_attn.kv_b_proj";
const O: &str = "model.layers.*.self_attn.o_proj";
const COS: &str = "model.rotary_emb.cos";
const SIN: &str = "model.rotary_emb.sin";

/// Every kind of stage, in forward order.
const FLOWS: [Flow; 35] = [
    flow("model.embed_tokens", &[], one),
    flow(COS, &[], one),
    flow(SIN, &[], one),
    flow(IN, &[RESIDUAL], |c| c.hidden_size),
    flow("model.layers.*.self_attn.q_proj", &[IN], |c| c.hidden_size),
    flow("model.layers.*.self_attn.q_a_proj", &[IN], |c| c.hidden_size),
    flow("model.layers.*.self_attn.q_a_layernorm", &["model.layers.*.self_attn.q_a_proj"], q_rank),
    flow("model.layers.*.self_attn.q_b_proj", &["model.layers.*.self_attn.q_a_layernorm"], q_rank),
    flow(KV_A, &[IN], |c| c.hidden_size),
    flow("model.layers.*.self_attn.kv_a_layernorm", &[KV_A], |c| c.kv_lora_rank),
    flow("model.layers.*.self_attn.q_pe", &[Q[0], Q[1], COS, SIN], one),
    flow("model.layers.*.self_attn.k_pe", &[KV_A, COS, SIN], one),
    flow("past_key_values.*.compressed_kv", &["model.layers.*.self_attn.kv_a_layernorm"], one),
    flow("past_key_values.*.k_pe", &["model.layers.*.self_attn.k_pe"], one),
    flow(KV_B, &["past_key_values.*.compressed_kv", "model.layers.*.self_attn.kv_a_layernorm"], |c| c.kv_lora_rank),
    flow(
        "model.layers.*.self_attn.attn_scores",
        &[Q[0], Q[1], "model.layers.*.self_attn.q_pe", KV_B, "past_key_values.*.k_pe", "model.layers.*.self_attn.k_pe"],
        |c| c.qk_head_dim(),
    ),
    flow("model.layers.*.self_attn.attn_weights", &["model.layers.*.self_attn.attn_scores"], one),
    flow("model.layers.*.self_attn.attn_output", &["model.layers.*.self_attn.attn_weights", KV_B], one),
    flow(O, &["model.layers.*.self_attn.attn_output"], |c| c.num_attention_heads * c.v_head_dim),
    flow(POST, &[RESIDUAL, O], |c| c.hidden_size),
    flow("model.layers.*.mlp.gate_proj", &[POST], |c| c.hidden_size),
    flow("model.layers.*.mlp.up_proj", &[POST], |c| c.hidden_size),
    flow("model.layers.*.mlp.down_proj", &["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"], |c| {
        c.intermediate_size
    }),
    flow("model.layers.*.mlp.gate.router_logits", &[POST], |c| c.hidden_size),
    flow("model.layers.*.mlp.gate.topk_indices", &["model.layers.*.mlp.gate.router_logits"], one),
    flow(
        "model.layers.*.mlp.gate.topk_weights",
        &["model.layers.*.mlp.gate.router_logits", "model.layers.*.mlp.gate.topk_indices"],
        |c| c.num_experts(),
    ),
    flow(
        "model.layers.*.mlp.experts",
        &[POST, "model.layers.*.mlp.gate.topk_indices", "model.layers.*.mlp.gate.topk_weights"],
        |c| 3 * c.hidden_size.max(c.moe_intermediate_size),
    ),
    flow("model.layers.*.mlp.shared_experts", &[POST], |c| 3 * c.hidden_size.max(c.shared_width())),
    flow("model.layers.*.mlp", &["model.layers.*.mlp.experts", "model.layers.*.mlp.shared_experts"], one),
    flow("model.layers.*", &[RESIDUAL, O, "model.layers.*.mlp.down_proj", "model.layers.*.mlp"], one),
    flow("model.norm", &[RESIDUAL], |c| c.hidden_size),
    flow("lm_head", &["model.norm"], |c| c.hidden_size),
    flow("score", &["model.norm"], |c| c.hidden_size),
    flow("pooled_logits", &["score"], one),
    flow("loss", &["lm_head", "pooled_logits"], |c| c.vocab_size),
];

fn q_rank(config: &DeepseekV2Config) -> usize {
    config.q_lora_rank.unwrap_or(1)
}

/// The stages that `name` is computed from directly, of those for which `exists` holds; in forward order.
pub fn inputs(name: &str, config: &DeepseekV2Config, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let Some((stage, flow)) = find(name) else { return Vec::new() };
    let named = flow.inputs.iter().map(|&input| match (input, stage.layer) {
        (RESIDUAL, Some(0)) => "model.embed_tokens".to_owned(),
        (RESIDUAL, Some(layer)) => format!("model.layers.{}", layer - 1),
        (RESIDUAL, None) => format!("model.layers.{}", config.num_hidden_layers.saturating_sub(1)),
        (_, Some(layer)) => input.replacen('*', &layer.to_string(), 1),
        (_, None) => input.to_owned(),
    });
    let mut inputs: Vec<String> = named.filter(|input| exists(input)).collect();
    // what is cached is read from the cache
    if let Some(layer) = stage.layer {
        for (cached, new) in [("compressed_kv", "kv_a_layernorm"), ("k_pe", "k_pe")] {
            let cached = format!("past_key_values.{layer}.{cached}");
            let new = format!("model.layers.{layer}.self_attn.{new}");
            if inputs.contains(&cached) {
                inputs.retain(|input| *input != new);
            }
        }
    }
    inputs
}

/// Whether the stage is a copy of its one input, so that not a bit of it may differ: a lookup, or what is put into the cache.
pub fn is_copy(name: &str) -> bool {
    name == "model.embed_tokens" || name.starts_with("past_key_values.")
}

/// How many products a number of the stage is the sum of.
pub fn terms(name: &str, config: &DeepseekV2Config) -> usize {
    find(name).map_or(1, |(_, flow)| (flow.terms)(config))
}

/// From which stages the reference computes `name` if it is given those for which `held` holds: its inputs, and for those
/// that are not held theirs, and so on. `exists` tells the stages of the model.
pub fn sources(
    name: &str,
    config: &DeepseekV2Config,
    exists: impl Fn(&str) -> bool,
    held: impl Fn(&str) -> bool,
) -> Sources {
    let mut sources = Sources::default();
    let mut open = inputs(name, config, &exists);
    while let Some(input) = open.pop() {
        if held(&input) {
            sources.held.insert(input);
        } else if sources.not_held.insert(input.clone()) {
            open.extend(inputs(&input, config, &exists));
        }
    }
    sources
}

/// See [`sources`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The stages that are given.
    pub held: BTreeSet<String>,
    /// Those between them and the stage, which the reference computes.
    pub not_held: BTreeSet<String>,
}

fn find(name: &str) -> Option<(Stage, &'static Flow)> {
    let stage = Stage::parse(name)?;
    Some((stage, FLOWS.iter().find(|flow| flow.kind == stage.kind)?))
}

#[cfg(test)]
mod tests {
    use dsv2_reference::tap::NoTap;

    use super::*;
    use crate::backend::{Backend, Reference, Settings};
    use crate::golden::Suite;
    use crate::trace::Trace;
    use crate::values::Values;

    /// Runs the reference under a teacher.
    fn taught(case: &crate::case::Case, teacher: &Trace) -> Trace {
        let settings = Settings { teacher: Some(teacher), ..Settings::default() };
        Reference.run(case, &settings, &mut NoTap).unwrap()
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
        for case in ["v2", "v2-lite", "no-cache", "labels", "classify-single-label"] {
            let case = Suite::embedded().load(case).unwrap().case;
            let trace = Reference.run(&case, &Settings::default(), &mut NoTap).unwrap();
            let exists = |name: &str| trace.get(name).is_some();
            for (stage, _) in trace.iter() {
                let other = taught(&case, &changed(&trace, stage, case.config.num_experts() as i64));
                let affected: Vec<&str> = other
                    .iter()
                    .filter(|(name, values)| trace.get(name) != Some(values))
                    .map(|(name, _)| name)
                    .collect();
                let listed = |name: &&str| inputs(name, &case.config, exists).iter().any(|input| input == stage);
                let expected: Vec<&str> = trace.iter().map(|(name, _)| name).filter(listed).collect();
                assert_eq!(affected, expected, "what is computed from {stage}");
            }
        }
    }

    #[test]
    fn sources_go_back_to_what_is_held() {
        let case = Suite::embedded().load("v2-lite").unwrap().case;
        let trace = Reference.run(&case, &Settings::default(), &mut NoTap).unwrap();
        let exists = |name: &str| trace.get(name).is_some();
        let held = |name: &str| ["model.layers.0.self_attn.attn_output", "model.embed_tokens"].contains(&name);
        let sources = sources("model.layers.0.mlp.down_proj", &case.config, exists, held);
        assert_eq!(Vec::from_iter(sources.held), ["model.embed_tokens", "model.layers.0.self_attn.attn_output"]);
        let not_held = ["mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm", "self_attn.o_proj"];
        assert_eq!(Vec::from_iter(sources.not_held), not_held.map(|leaf| format!("model.layers.0.{leaf}")));
    }
}
