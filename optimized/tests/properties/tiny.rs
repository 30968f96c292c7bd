//! Tiny models of every kind, with sizes that no kernel is made for.

use std::sync::Arc;

use dsv2_optimized::model::Settings;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::{Device, Element, Emulated, Library, Variant};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::{GeneratedWeights, splitmix64};
use dsv2_reference::{Activation, AttentionForm, DeepseekV2Config, Dialect};
use dsv2_testing::hot_weights;
use ndarray::Array2;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A model, and how it is computed.
#[derive(Debug, Clone)]
pub struct Tiny {
    pub config: DeepseekV2Config,
    pub dialect: Dialect,
    pub variant: Variant,
    pub form: AttentionForm,
    /// Of weights and tokens.
    pub seed: u64,
}

const VOCAB: u64 = 23;

/// Context length of a config whose rope type is `dynamic`: shorter than the longest sequences here, so that it grows.
const CONTEXT: usize = 6;

/// Small models of all kinds.
pub fn tiny() -> impl Strategy<Value = Tiny> {
    // A norm over one number keeps its sign alone: no error in it would be small. So ranks begin with 2.
    let attention = (1..=9_usize, prop::option::of(2..=9_usize), 2..=20_usize, 1..=9_usize, 2..=4_usize, 1..=9_usize);
    let rest =
        (1..=2_usize, 0..=2_usize, 1..=13_usize, any::<[bool; 4]>(), prop::sample::select(activations()), 0..6_u8);
    let form = prop_oneof![Just(AttentionForm::Expanded), Just(AttentionForm::Absorbed)];
    let variant = prop_oneof![Just(Variant::Tuned), Just(Variant::Naive)];
    let dialect = prop::sample::select(&Dialect::ALL[..]);
    (attention, rest, experts(), (form, variant, dialect), 0..1000_u64).prop_map(
        |(attention, rest, experts, (form, variant, dialect), seed)| {
            let (heads, q_lora_rank, c, n, half_r, v) = attention;
            let (layers, wider, dense, [attention_bias, mlp_bias, tied, norm_topk_prob], activation, rope) = rest;
            let mut config = json!({
                "vocab_size": VOCAB, "num_hidden_layers": layers, "num_attention_heads": heads,
                "hidden_size": heads * (8_usize.div_ceil(heads) + wider), "intermediate_size": dense,
                "q_lora_rank": q_lora_rank, "kv_lora_rank": c, "qk_nope_head_dim": n, "qk_rope_head_dim": 2 * half_r,
                "v_head_dim": v, "attention_bias": attention_bias, "tie_word_embeddings": tied,
                "mlp_bias": mlp_bias && dialect.is_transformers(), "hidden_act": activation,
                "norm_topk_prob": norm_topk_prob, "max_position_embeddings": CONTEXT,
                "rope_scaling": rope_scaling(rope),
            });
            let fields = config.as_object_mut().expect("an object");
            fields.extend(experts.as_object().expect("an object").clone());
            if !dialect.allows_null_shared_experts() && fields["n_shared_experts"].is_null() {
                fields.insert("n_shared_experts".into(), 0.into());
            }
            let config = DeepseekV2Config::from_value(config).expect("a possible config");
            config.validate(dialect).expect("a possible config");
            Tiny { config, dialect, variant, form, seed }
        },
    )
}

/// The same without the rope type `dynamic`, whose angles depend on how the tokens came.
pub fn steady() -> impl Strategy<Value = Tiny> {
    tiny().prop_map(|mut tiny| {
        tiny.config.max_position_embeddings = 4096;
        tiny
    })
}

/// The same with an MoE layer first.
pub fn with_experts() -> impl Strategy<Value = Tiny> {
    tiny().prop_map(|mut tiny| {
        tiny.config.first_k_dense_replace = 0;
        tiny
    })
}

fn activations() -> Vec<&'static str> {
    Activation::names().collect()
}

/// The config's fields of the mixture of experts, or of dense layers alone.
fn experts() -> impl Strategy<Value = Value> {
    let groups = (1..=3_usize, 1..=4_usize, 1..=3_usize, 0..=4_usize, any::<bool>());
    let scale = prop::sample::select(vec![1.0, 2.5, 16.0]);
    let shared = prop_oneof![Just(None), Just(Some(0_usize)), Just(Some(1)), Just(Some(2))];
    (groups, 0..=2_i64, 1..=9_usize, shared, scale).prop_map(
        |((n_group, size, topk_group, k, greedy), first, width, shared, scale)| {
            let topk_group = topk_group.min(n_group);
            json!({
                "n_routed_experts": n_group * size, "n_group": n_group, "topk_group": topk_group,
                "topk_method": if greedy { "greedy" } else { "group_limited_greedy" },
                "num_experts_per_tok": k.min(size * topk_group), "first_k_dense_replace": first,
                "moe_intermediate_size": width, "n_shared_experts": shared, "routed_scaling_factor": scale,
            })
        },
    )
}

fn rope_scaling(kind: u8) -> Value {
    match kind {
        0 | 1 => Value::Null,
        2 => json!({"type": "linear", "factor": 2.5}),
        3 => json!({"type": "dynamic", "factor": 2.0}),
        4 => json!({"type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "mscale": 0.707,
                    "mscale_all_dim": 0.707}),
        _ => json!({"type": "yarn", "factor": 3, "original_max_position_embeddings": 8, "mscale": 1.0}),
    }
}

impl Tiny {
    /// Weights that make attention and router decided, so that a mistake in them shows.
    pub fn weights(&self) -> GeneratedWeights {
        hot_weights(self.seed)
    }

    /// Tokens \[B,S\]; those of a sequence begin alike for every S.
    pub fn ids(&self, batch: usize, length: usize) -> Array2<i64> {
        Array2::from_shape_fn((batch, length), |(b, s)| self.token(1000 * b + s))
    }

    /// One of many.
    pub fn token(&self, number: usize) -> i64 {
        (splitmix64(self.seed + number as u64) % VOCAB) as i64
    }

    /// Another token.
    pub fn other(token: i64) -> i64 {
        (token + 7) % VOCAB as i64
    }

    pub fn on(&self, device: &Arc<dyn Device>) -> CausalLm {
        self.with_weights(device, &self.weights())
    }

    pub fn with_weights(&self, device: &Arc<dyn Device>, weights: &dyn WeightSource) -> CausalLm {
        let settings = Settings::new(Element::F32, self.variant);
        CausalLm::load(&self.config, self.dialect, weights, device, settings, &mut |_| ()).expect("a possible model")
    }
}

/// The kernels as they are.
pub fn right() -> Arc<dyn Device> {
    Emulated::new(Library::embedded())
}

/// The kernels with one of `kernels/mutants.toml` among them.
pub fn wrong(module: &str, mutant: &str) -> Arc<dyn Device> {
    let ptx = crate::support::mutants::all().remove(mutant).expect("a mutant");
    Emulated::new(Library::embedded().with(module, ptx))
}
