//! A random model that is possible, and inputs for it.

use std::sync::Arc;

use dsv2::Result;
use dsv2::case::Case;
use dsv2::inputs::{AttentionMask, Inputs, Labels, LogitsToKeep, Tokens};
use dsv2::taps::PartialSums;
use dsv2_reference::config::Head;
use dsv2_reference::model::loss::IGNORE_INDEX;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{Activation, DeepseekV2Config, Dialect};
use dsv2_testing::hot_weights;
use fastrand::Rng;
use half::bf16;
use ndarray::{Array1, Array2, Array3, Array4, ArrayD};
use serde_json::{Value, json};

/// Sizes, each of which is degenerate or moderate.
struct Sizes {
    /// How often a size is degenerate: all of them, most, few or none.
    degenerate: f64,
}

impl Sizes {
    fn any(&self, rng: &mut Rng) -> usize {
        if rng.f64() < self.degenerate { rng.usize(1..=5) } else { rng.usize(6..=32) }
    }

    /// One of those that cost most.
    fn few(&self, rng: &mut Rng) -> usize {
        if rng.f64() < self.degenerate { rng.usize(1..=5) } else { rng.usize(2..=8) }
    }
}

/// Makes a case. The same random numbers make the same one.
///
/// # Errors
/// If it is no possible case, which is a fault of this function.
pub fn case(rng: &mut Rng) -> Result<Case> {
    let sizes = Sizes { degenerate: pick(rng, &[1.0, 0.8, 0.5, 0.0]) };
    let dialect = pick(rng, &Dialect::ALL);
    let head = pick(rng, &[Head::CausalLm, Head::CausalLm, Head::CausalLm, Head::SequenceClassification]);
    let config = config(&sizes, dialect, rng)?;
    let use_cache = rng.f64() < 0.8;
    let inputs = inputs(&sizes, &config, head, use_cache, rng);
    let whole = !use_cache || inputs.labels.is_some() || inputs.logits_to_keep.is_some() || rng.f64() < 0.8;
    let chunks = if whole || head != Head::CausalLm { vec![inputs.length()] } else { pieces(inputs.length(), rng) };
    let weights = Arc::new(weights(rng));
    Case { config, head, dialect, weights, inputs, use_cache, chunks, part: None, partial_sums: PartialSums::default() }
        .checked()
}

/// One of several.
pub fn pick<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

fn config(sizes: &Sizes, dialect: Dialect, rng: &mut Rng) -> Result<DeepseekV2Config> {
    let heads = sizes.few(rng);
    let (group, groups) = (sizes.few(rng), rng.usize(1..=3));
    let topk_group = rng.usize(1..=groups);
    let most = (group * topk_group).min(8);
    let layers = if rng.f64() < 0.2 { rng.usize(1..=5) } else { rng.usize(1..=2) };
    let vocab = sizes.any(rng);
    let r = 2 * sizes.few(rng);
    let config = json!({
        "vocab_size": vocab,
        "hidden_size": heads * if heads > 5 { rng.usize(1..=4) } else { sizes.any(rng) },
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": sizes.any(rng),
        "moe_intermediate_size": sizes.any(rng),
        "q_lora_rank": if rng.bool() { json!(sizes.any(rng)) } else { Value::Null },
        "kv_lora_rank": sizes.any(rng),
        "qk_nope_head_dim": sizes.any(rng),
        "qk_rope_head_dim": r,
        "v_head_dim": sizes.any(rng),
        "n_routed_experts": groups * group,
        "n_group": groups,
        "topk_group": topk_group,
        "topk_method": pick(rng, &["greedy", "group_limited_greedy"]),
        "num_experts_per_tok": rng.usize(1..=most),
        "n_shared_experts": rng.usize(0..=2),
        "first_k_dense_replace": rng.usize(0..=2),
        "routed_scaling_factor": pick(rng, &[1.0, 2.5, 16.0]),
        "norm_topk_prob": rng.bool(),
        "attention_bias": rng.f64() < 0.3,
        "mlp_bias": dialect.is_transformers() && rng.f64() < 0.3,
        "tie_word_embeddings": rng.f64() < 0.3,
        "hidden_act": if rng.bool() { "silu" } else { activation(rng) },
        "rms_norm_eps": pick(rng, &[1e-6, 1e-5, 1e-3]),
        "max_position_embeddings": pick(rng, &[4, 4096]),
        "rope_theta": pick(rng, &[10000.0, 100.0]),
        "rope_scaling": rope_scaling(r, rng),
        "num_labels": sizes.few(rng).max(2),
        "pad_token_id": 0,
    });
    let config = DeepseekV2Config::from_value(config)?;
    config.validate(dialect)?;
    Ok(config)
}

fn activation(rng: &mut Rng) -> &'static str {
    let names: Vec<_> = Activation::names().collect();
    pick(rng, &names)
}

fn rope_scaling(r: usize, rng: &mut Rng) -> Value {
    match rng.usize(..5) {
        0 => Value::Null,
        1 => json!({"type": "linear", "factor": 2.5}),
        // its exponent is r/(r - 2)
        2 if r > 2 => json!({"type": "dynamic", "factor": 2.0}),
        3 => json!({"type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "mscale": 0.707,
                    "mscale_all_dim": 0.707}),
        _ => json!({"type": "yarn", "factor": 3, "original_max_position_embeddings": 8, "mscale": 1.0}),
    }
}

/// Weights that keep the spread of what passes through them, or the small ones that training begins with.
fn weights(rng: &mut Rng) -> GeneratedWeights {
    let seed = rng.u64(..);
    if rng.f64() < 0.8 {
        return hot_weights(seed);
    }
    serde_json::from_value(json!({"seed": seed, "rules": [
        {"suffix": "norm.weight", "mean": 1.0, "std": 0.0},
        {"suffix": "bias", "std": 0.02},
        {"suffix": "weight", "std": 0.02},
    ]}))
    .expect("rules")
}

fn inputs(sizes: &Sizes, config: &DeepseekV2Config, head: Head, use_cache: bool, rng: &mut Rng) -> Inputs {
    let (batch, length) =
        (sizes.few(rng).min(5), if rng.f64() < sizes.degenerate { rng.usize(1..=5) } else { rng.usize(6..=24) });
    let vocab = config.vocab_size as i64;
    let tokens = match head {
        Head::CausalLm if rng.f64() < 0.15 => {
            let number = |_| bf16::from_f32(3.0 * rng.f32() - 1.5).to_f32();
            Tokens::InputsEmbeds(Array3::from_shape_fn((batch, length, config.hidden_size), number))
        }
        _ => Tokens::InputIds(Array2::from_shape_fn((batch, length), |_| rng.i64(0..vocab))),
    };
    let mut inputs = Inputs::new(tokens);
    inputs.attention_mask = mask(batch, length, rng);
    inputs.position_ids = positions(batch, length, use_cache, rng);
    if rng.f64() < 0.3 {
        inputs.labels = Some(labels(config, head, &inputs, rng));
        inputs.num_items_in_batch = (head == Head::CausalLm && rng.f64() < 0.3).then(|| rng.i64(1..10));
    } else if head == Head::CausalLm && rng.f64() < 0.2 {
        inputs.logits_to_keep = Some(match rng.usize(..3) {
            0 => LogitsToKeep::Last(rng.i64(1..=length as i64)),
            1 => LogitsToKeep::Positions(vec![rng.i64(0..length as i64)]),
            _ => LogitsToKeep::Mask(Array2::from_shape_fn((batch, length), |(_, s)| s == 0 || rng.bool())),
        });
    }
    inputs
}

fn mask(batch: usize, length: usize, rng: &mut Rng) -> Option<AttentionMask> {
    // A token at least is real.
    let real: Vec<usize> = (0..batch).map(|_| rng.usize(1..=length)).collect();
    let padding = |attend: &mut dyn FnMut(usize, usize) -> bool| {
        Some(AttentionMask::Padding(Array2::from_shape_fn((batch, length), |(b, s)| attend(b, s))))
    };
    match rng.usize(..8) {
        0 => padding(&mut |b, s| s < real[b]),
        1 => padding(&mut |b, s| length - s <= real[b]),
        2 => padding(&mut |b, s| s + 1 == real[b] || rng.bool()),
        3 => {
            let lowest = pick(rng, &[f32::MIN, f32::NEG_INFINITY]);
            let added = |(_, _, q, k): (usize, usize, usize, usize)| if k > q { lowest } else { 0.0 };
            Some(AttentionMask::Additive(Array4::from_shape_fn((batch, 1, length, length), added)))
        }
        _ => None,
    }
}

fn positions(batch: usize, length: usize, use_cache: bool, rng: &mut Rng) -> Option<Array2<i64>> {
    match rng.usize(..6) {
        0 => {
            let starts: Vec<i64> = (0..batch).map(|_| rng.i64(0..300)).collect();
            Some(Array2::from_shape_fn((batch, length), |(b, s)| starts[b] + s as i64))
        }
        // several sequences in a row, which do not see each other where there is no cache
        1 if !use_cache => {
            let cut = rng.usize(1..=length) as i64;
            Some(Array2::from_shape_fn((1, length), |(_, s)| s as i64 % cut))
        }
        _ => None,
    }
}

fn labels(config: &DeepseekV2Config, head: Head, inputs: &Inputs, rng: &mut Rng) -> Labels {
    let (batch, length) = (inputs.batch(), inputs.length());
    let padding = match &inputs.attention_mask {
        Some(AttentionMask::Padding(attend)) => Some(attend),
        _ => None,
    };
    match head {
        // a model without a head is not among those drawn
        Head::CausalLm | Head::Bare => Labels::Ids(Array2::from_shape_fn((batch, length), |(b, s)| {
            // what stands on padding, or is predicted from it, is nobody's business
            let masked = padding.is_some_and(|attend| !attend[[b, s]] || (s > 0 && !attend[[b, s - 1]]));
            let label = rng.i64(0..config.vocab_size as i64);
            if masked { IGNORE_INDEX } else { label }
        })),
        Head::SequenceClassification if rng.bool() => {
            let classes = config.num_labels() as i64;
            Labels::Classes(Array1::from_shape_fn(batch, |_| rng.i64(0..classes)))
        }
        Head::SequenceClassification => {
            let shape = vec![batch, config.num_labels()];
            Labels::Targets(ArrayD::from_shape_fn(shape, |_| f32::from(u8::from(rng.bool()))))
        }
    }
}

fn pieces(length: usize, rng: &mut Rng) -> Vec<usize> {
    let mut pieces = Vec::new();
    let mut left = length;
    while left > 0 {
        let piece = rng.usize(1..=left);
        pieces.push(piece);
        left -= piece;
    }
    pieces
}
