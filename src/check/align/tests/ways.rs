//! Ways to write a dump: one line for each.

use dsv2_reference::stage::{Layout, Stage, sibling};
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};

use crate::case::Case;
use crate::check::align::pairs::OTHER_ORDER;
use crate::values::Values;

pub type Stages = IndexMap<String, Values>;

/// A way to write a dump.
pub struct Way {
    /// Its name, for messages.
    pub what: &'static str,
    /// The golden case.
    pub case: &'static str,
    /// What is done to the dump.
    pub turn: fn(&mut Stages, &Case),
    /// What must be said of it.
    pub says: &'static [&'static str],
    /// Stages that are found if they are a tenth too large.
    pub found: &'static [&'static str],
}

pub const MLP_2: &str = "model.layers.2.mlp";
pub const EXPERTS_2: &str = "model.layers.2.mlp.experts";
pub const WEIGHTS_2: &str = "model.layers.2.mlp.gate.topk_weights";
pub const O_PROJ_2: &str = "model.layers.2.self_attn.o_proj";
const GATE_0: &str = "model.layers.0.mlp.gate_proj";
const LAYERS: &[usize] = &[0, 1, 2];

/// All of them.
pub const WAYS: &[Way] = &[
    Way { what: "as it is", case: "v2", turn: |_, _| {}, says: &[], found: &[O_PROJ_2, EXPERTS_2] },
    Way {
        what: "de-interleaved rotary queries and keys",
        case: "v2",
        turn: |stages, _| ending(stages, "_pe", halves_of_pairs),
        says: &["de-interleaved halves (even numbers first, as in DeepSeek's own code)"],
        found: &["model.layers.2.self_attn.q_pe", "model.layers.1.self_attn.k_pe", O_PROJ_2],
    },
    Way {
        what: "a flattened batch, experts with it, heads behind the tokens",
        case: "v2",
        turn: |stages, _| {
            each(stages, |stage, a| {
                let shape = a.shape();
                match stage.layout {
                    Layout::Tokens => Some(reshaped(a, &[shape[0] * shape[1], shape[2]])),
                    Layout::Flat => Some(reshaped(a, &[2, shape[0] / 2, shape[1]])),
                    Layout::Heads => Some(permuted(a, &[0, 2, 1, 3])),
                    _ => None,
                }
            });
        },
        says: &[
            "the batch flattened, [B·S, ..]",
            "heads behind the tokens, [B, S, H, ..]",
            "axes of length 1 more or less",
            "the batch kept apart, [B, S, ..]",
        ],
        found: &["model.layers.2.self_attn.q_pe", O_PROJ_2, EXPERTS_2],
    },
    Way {
        what: "the sequence before the batch",
        case: "v2",
        turn: sequence_first,
        says: &["the sequence before the batch, [S, B, ..]"],
        found: &[O_PROJ_2, EXPERTS_2, WEIGHTS_2, "lm_head"],
    },
    Way {
        what: "the sequence before the batch, queries with it",
        case: "v2",
        turn: |stages, case| {
            sequence_first(stages, case);
            each(stages, |stage, a| (stage.layout == Layout::Heads).then(|| permuted(a, &[2, 0, 1, 3])));
        },
        says: &["the sequence before the batch, [S, B, ..]"],
        found: &["model.layers.2.self_attn.q_pe", O_PROJ_2],
    },
    Way {
        what: "heads before the batch, scores with heads folded into it",
        case: "v2",
        turn: |stages, _| {
            each(stages, |stage, a| match (stage.layout, a.shape()) {
                (Layout::Heads, &[batch, heads, length, width]) => {
                    Some(reshaped(&permuted(a, &[1, 0, 2, 3]), &[heads, batch * length, width]))
                }
                (Layout::Scores | Layout::Weights, &[batch, heads, length, keys]) => {
                    Some(reshaped(a, &[batch * heads, length, keys]))
                }
                _ => None,
            });
        },
        says: &[
            "heads before the batch, [H, B·S, ..]",
            "heads behind the tokens, [B, S, H, ..]",
            "heads folded into the batch, [B·H, S, ..]",
        ],
        found: &["model.layers.2.self_attn.q_pe", "model.layers.1.self_attn.attn_scores", O_PROJ_2],
    },
    Way {
        what: "heads as an axis of projections and of the output",
        case: "v2",
        turn: |stages, case| {
            let heads = case.config.num_attention_heads;
            let split = |a: &ArrayD<f64>| reshaped(a, &[a.shape()[0], a.shape()[1], heads, a.shape()[2] / heads]);
            ending(stages, ".q_b_proj", split);
            ending(stages, ".attn_output", |a| permuted(&split(a), &[0, 2, 1, 3]));
        },
        says: &["heads as an axis, [B, S, H, ..]", "heads as an axis, [B, H, S, ..]"],
        found: &["model.layers.2.self_attn.q_b_proj", "model.layers.1.self_attn.attn_output"],
    },
    Way {
        what: "fused gate and up",
        case: "v2-lite",
        turn: |stages, _| {
            let [gate, up] = ["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"];
            fused(stages, &[0], [gate, up], "model.layers.*.mlp.gate_up_proj");
        },
        says: &["mlp.gate_proj and mlp.up_proj, fused"],
        found: &[GATE_0],
    },
    Way {
        what: "fused up and gate",
        case: "v2-lite",
        turn: |stages, _| {
            let [gate, up] = ["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"];
            fused(stages, &[0], [up, gate], "model.layers.*.mlp.up_gate_proj");
        },
        says: &["mlp.up_proj and mlp.gate_proj, fused"],
        found: &[GATE_0],
    },
    Way {
        what: "fused, the other way round than the name says",
        case: "v2-lite",
        turn: |stages, _| {
            let [gate, up] = ["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"];
            fused(stages, &[0], [up, gate], "model.layers.*.mlp.gate_up_proj");
        },
        says: &["mlp.gate_proj and mlp.up_proj, fused", OTHER_ORDER],
        found: &[O_PROJ_2],
    },
    Way {
        what: "fused projections to the latents",
        case: "v2",
        turn: |stages, _| {
            let [q, kv] = ["model.layers.*.self_attn.q_a_proj", "model.layers.*.self_attn.kv_a_proj_with_mqa"];
            fused(stages, LAYERS, [q, kv], "model.layers.*.self_attn.fused_qkv_a_proj");
        },
        says: &["self_attn.q_a_proj and self_attn.kv_a_proj_with_mqa, fused"],
        found: &["model.layers.1.self_attn.q_a_proj", "model.layers.2.self_attn.kv_a_proj_with_mqa"],
    },
    Way {
        what: "latent and key in one cache",
        case: "v2",
        turn: |stages, _| {
            let [latent, key] = ["past_key_values.*.compressed_kv", "past_key_values.*.k_pe"];
            fused(stages, LAYERS, [latent, key], "past_key_values.*");
        },
        says: &["cached latent and rotary key in one tensor"],
        found: &["past_key_values.1.compressed_kv", "past_key_values.2.k_pe"],
    },
    Way {
        what: "key and latent in one cache",
        case: "v2",
        turn: |stages, _| {
            let [latent, key] = ["past_key_values.*.compressed_kv", "past_key_values.*.k_pe"];
            fused(stages, LAYERS, [key, latent], "past_key_values.*");
        },
        says: &["cached latent and rotary key in one tensor", OTHER_ORDER],
        found: &[O_PROJ_2],
    },
    Way {
        what: "the factor after the sum",
        case: "v2",
        turn: after_the_sum,
        says: &["routed_scaling_factor is applied after the sum over experts"],
        found: &[WEIGHTS_2, EXPERTS_2, MLP_2, O_PROJ_2],
    },
    Way {
        what: "the factor after the sum, without the outputs of the MLPs",
        case: "v2",
        turn: |stages, case| {
            after_the_sum(stages, case);
            without(stages, &[".mlp", ".shared_experts"]);
        },
        says: &["routed_scaling_factor is applied after the sum over experts"],
        found: &[WEIGHTS_2, EXPERTS_2, "model.layers.2"],
    },
    Way {
        what: "the factor after the sum, without weights",
        case: "v2",
        turn: |stages, case| {
            after_the_sum(stages, case);
            without(stages, &[".topk_weights"]);
        },
        says: &["routed_scaling_factor is applied after the sum over experts"],
        found: &[EXPERTS_2, MLP_2],
    },
    Way {
        what: "the factor in the sum",
        case: "v2",
        turn: |stages, case| ending(stages, ".topk_weights", |a| a / case.config.routed_scaling_factor),
        says: &["routed_scaling_factor is applied in the sum over experts, not to the weights"],
        found: &[WEIGHTS_2, EXPERTS_2, MLP_2],
    },
    Way {
        what: "renormalised weights, and the product ends right",
        case: "v2",
        turn: |stages, _| weights_times(stages, false, |sum| 1.0 / sum),
        says: &["the weights are divided by their sum, which is applied in the sum over experts"],
        // a common factor of the weights of a token is lost in their sum
        found: &[EXPERTS_2, MLP_2],
    },
    Way {
        what: "renormalised weights, and the sum is applied last",
        case: "v2",
        turn: |stages, _| weights_times(stages, true, |sum| 1.0 / sum),
        says: &["the weights are divided by their sum, which is applied after the sum over experts"],
        // a common factor of the weights of a token is lost in their sum
        found: &[EXPERTS_2, MLP_2],
    },
    Way {
        what: "the shared experts inside",
        case: "v2",
        turn: shared_inside,
        says: &["the shared experts are among the experts"],
        found: &[WEIGHTS_2, O_PROJ_2],
    },
    Way {
        what: "the shared experts inside, and no mlp",
        case: "v2-lite",
        turn: |stages, case| {
            shared_inside(stages, case);
            without(stages, &[".1.mlp", ".2.mlp"]);
        },
        says: &["the shared experts are among the experts"],
        found: &[WEIGHTS_2, O_PROJ_2],
    },
    Way {
        what: "shared experts as last experts, the factor after the sum",
        case: "v2",
        turn: |stages, case| {
            let factor = case.config.routed_scaling_factor;
            shared_inside(stages, case);
            after_the_sum(stages, case);
            shared_columns(stages, case, 1.0 / factor);
        },
        says: &[
            "shared experts as the last experts, of weight 1",
            "the shared experts are among the experts, and routed_scaling_factor is applied after the sum",
        ],
        found: &[O_PROJ_2],
    },
    Way {
        what: "shared experts as last experts",
        case: "v2-lite",
        turn: |stages, case| {
            shared_inside(stages, case);
            shared_columns(stages, case, 1.0);
        },
        says: &["shared experts as the last experts, of weight 1", "the shared experts are among the experts"],
        found: &[O_PROJ_2],
    },
    Way {
        what: "a weight for every expert",
        case: "v2",
        turn: dense,
        says: &["a weight for every expert, [B·S, E]"],
        found: &[WEIGHTS_2, EXPERTS_2],
    },
    Way {
        what: "a weight for every expert, and no choice",
        case: "v2",
        turn: |stages, case| {
            dense(stages, case);
            without(stages, &[".topk_indices"]);
        },
        says: &["a weight for every expert, [B·S, E]; topk_indices are those that have one"],
        found: &[WEIGHTS_2, EXPERTS_2],
    },
    Way {
        what: "a weight for every expert, all of which are chosen",
        case: "all-experts",
        turn: dense,
        says: &["a weight for every expert, [B·S, E]"],
        found: &["model.layers.1.mlp", "model.layers.1.self_attn.o_proj"],
    },
    Way {
        what: "wrapped by a compiler and by PEFT",
        case: "v2",
        turn: |stages, _| renamed(stages, |name| format!("base_model.model._orig_mod.{name}")),
        says: &["names with `base_model`, `_orig_mod`, `model` in them"],
        found: &[O_PROJ_2, "lm_head"],
    },
    Way {
        what: "outputs of modules",
        case: "v2",
        turn: |stages, _| {
            renamed(stages, |name| match Stage::parse(name).map(|stage| stage.kind) {
                Some("model.layers.*.self_attn.o_proj") => name.replace(".o_proj", ""),
                Some("model.layers.*.mlp.down_proj") => name.replace(".down_proj", ""),
                Some("model.layers.*.mlp.gate.router_logits") => name.replace(".router_logits", ""),
                _ => name.to_owned(),
            });
        },
        says: &["the output of self_attn.o_proj", "the output of mlp.down_proj", "mlp.gate.router_logits"],
        found: &[O_PROJ_2, "model.layers.0.mlp.down_proj", "model.layers.1.mlp.gate.router_logits"],
    },
];

// What a rearrangement is made of.

fn each(stages: &mut Stages, change: impl Fn(&Stage, &ArrayD<f64>) -> Option<ArrayD<f64>>) {
    for (name, values) in stages.iter_mut() {
        let (Values::Real(_, a), Some(stage)) = (values, Stage::parse(name)) else { continue };
        if let Some(changed) = change(&stage, a) {
            *a = changed;
        }
    }
}

pub fn ending(stages: &mut Stages, end: &str, change: impl Fn(&ArrayD<f64>) -> ArrayD<f64>) {
    for (name, values) in stages.iter_mut().filter(|(name, _)| name.ends_with(end)) {
        let Values::Real(_, a) = values else { panic!("{name}") };
        *a = change(a);
    }
}

fn renamed(stages: &mut Stages, rename: impl Fn(&str) -> String) {
    *stages = stages.drain(..).map(|(name, values)| (rename(&name), values)).collect();
}

fn real<'a>(stages: &'a Stages, name: &str) -> &'a ArrayD<f64> {
    stages[name].real().unwrap()
}

/// Puts stages beside each other, in one tensor of another name.
fn fused(stages: &mut Stages, layers: &[usize], parts: [&str; 2], whole: &str) {
    for layer in layers {
        let of = |name: &str| dsv2_reference::stage::name(name, *layer);
        let Values::Real(dtype, a) = stages.shift_remove(&of(parts[0])).unwrap() else { panic!() };
        let Values::Real(_, b) = stages.shift_remove(&of(parts[1])).unwrap() else { panic!() };
        let both = concatenate(Axis(a.ndim() - 1), &[a.view(), b.view()]).unwrap();
        stages.insert(of(whole), Values::Real(dtype, both));
    }
}

pub fn permuted(a: &ArrayD<f64>, order: &[usize]) -> ArrayD<f64> {
    a.view().permuted_axes(IxDyn(order)).as_standard_layout().into_owned()
}

fn reshaped(a: &ArrayD<f64>, shape: &[usize]) -> ArrayD<f64> {
    a.to_shape(shape).unwrap().into_owned()
}

pub fn halves_of_pairs(a: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(a.ndim() - 1);
    let (even, odd) = (a.slice_axis(last, Slice::new(0, None, 2)), a.slice_axis(last, Slice::new(1, None, 2)));
    concatenate(last, &[even, odd]).unwrap()
}

/// The sequence before the batch, in all that belongs to tokens.
pub fn sequence_first(stages: &mut Stages, case: &Case) {
    let (batch, length) = (case.inputs.batch(), case.inputs.length());
    let flat = |width: usize| [batch, length, width];
    for (name, values) in stages.iter_mut() {
        let Some(stage) = Stage::parse(name) else { continue };
        match (stage.layout, values) {
            (Layout::Tokens | Layout::Keys | Layout::Logits, Values::Real(_, a)) => *a = permuted(a, &[1, 0, 2]),
            (Layout::Flat, Values::Real(_, a)) => {
                let (tokens, width) = (a.shape()[0], a.shape()[1]);
                *a = reshaped(&permuted(&reshaped(a, &flat(width)), &[1, 0, 2]), &[tokens, width]);
            }
            (Layout::Flat, Values::Index(a)) => {
                let (tokens, width) = (a.shape()[0], a.shape()[1]);
                let apart = a.to_shape(flat(width)).unwrap().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
                *a = apart.into_shape_with_order((tokens, width)).unwrap().into_dyn();
            }
            _ => {}
        }
    }
}

pub fn after_the_sum(stages: &mut Stages, case: &Case) {
    let factor = case.config.routed_scaling_factor;
    ending(stages, ".topk_weights", |a| a / factor);
    ending(stages, ".mlp.experts", |a| a / factor);
}

fn weights_times(stages: &mut Stages, with_experts: bool, by: impl Fn(f64) -> f64) {
    let names: Vec<String> = stages.keys().filter(|name| name.ends_with(".topk_weights")).cloned().collect();
    for name in names {
        let sums = real(stages, &name).sum_axis(Axis(1));
        let experts = name.replace(".gate.topk_weights", ".experts");
        for stage in [Some(name), with_experts.then_some(experts)].into_iter().flatten() {
            let Values::Real(_, a) = &mut stages[&stage] else { panic!() };
            a.lanes_mut(Axis(1)).into_iter().zip(&sums).for_each(|(mut row, sum)| row *= by(*sum));
        }
    }
}

fn shared_inside(stages: &mut Stages, _: &Case) {
    let names: Vec<String> = stages.keys().filter(|name| name.ends_with(".mlp.experts")).cloned().collect();
    for name in names {
        let mlp = name.replace(".experts", "");
        let (rows, whole) = (real(stages, &name).shape().to_vec(), real(stages, &mlp).clone());
        let Values::Real(_, a) = &mut stages[&name] else { panic!() };
        *a = reshaped(&whole, &rows);
    }
}

/// Weights as [T,E].
fn dense(stages: &mut Stages, case: &Case) {
    let names: Vec<String> = stages.keys().filter(|name| name.ends_with(".topk_weights")).cloned().collect();
    for name in names {
        let chosen = stages[&sibling(&name, "topk_indices")].index().unwrap().clone();
        let Values::Real(_, weights) = &mut stages[&name] else { panic!() };
        let mut all = ArrayD::zeros(vec![weights.shape()[0], case.config.num_experts()]);
        for ((token, &weight), &expert) in weights.indexed_iter().zip(&chosen) {
            all[[token[0], expert as usize]] = weight;
        }
        *weights = all;
    }
}

/// Shared experts as experts of their own.
fn shared_columns(stages: &mut Stages, case: &Case, weight: f64) {
    for (name, values) in stages.iter_mut() {
        match values {
            Values::Index(a) if name.ends_with(".topk_indices") => {
                let id = ArrayD::from_elem(vec![a.shape()[0], 1], case.config.num_experts() as i64);
                *a = concatenate(Axis(1), &[a.view(), id.view()]).unwrap();
            }
            Values::Real(_, a) if name.ends_with(".topk_weights") => {
                let weight = ArrayD::from_elem(vec![a.shape()[0], 1], weight);
                *a = concatenate(Axis(1), &[a.view(), weight.view()]).unwrap();
            }
            _ => {}
        }
    }
}

fn without(stages: &mut Stages, ends: &[&str]) {
    stages.retain(|name, _| !ends.iter().any(|end| name.ends_with(end)));
}
