//! What a forward pass must read and compute at least, from the config alone.
//!
//! ```text
//! weights of a step   attention, dense and shared MLPs, routers, head, and every routed expert that a token was sent to
//! cache of a step     (c + r) numbers for each layer and cached token
//! flops of a token    2 for each weight that it meets (k routed experts in each MoE layer)
//! flops of a pair     of a new and a cached token, in each layer: absorbed 2 H (2c + r), expanded 2 H (n + r + v)
//! ```
//!
//! Norms, rotations, softmax and the embedding's row are left out: less than a hundredth.

use dsv2_reference::config::Head;
use dsv2_reference::{AttentionForm, DeepseekV2Config, Dialect};

/// Bytes of a stored weight: bf16.
const STORED: f64 = 2.0;

/// Numbers of a model. Those of weights are in all layers together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub layers: f64,
    /// The projections of attention without `kv_b_proj`, and that.
    pub projections: f64,
    pub kv_b: f64,
    /// What every token meets in feed-forward networks: dense and shared ones, routers.
    pub feed_forward: f64,
    /// One routed expert.
    pub expert: f64,
    /// Routed experts of a layer, and how many of them a token visits.
    pub routed: f64,
    pub chosen: f64,
    /// Layers that have experts.
    pub moe_layers: f64,
    /// The head; the embedding has as many.
    pub head: f64,
    /// Numbers that a layer caches of a token: c + r.
    pub cached: f64,
    /// Operations of a pair of a new and a cached token in a layer, in both forms.
    pub absorbed_pair: f64,
    pub expanded_pair: f64,
}

impl Work {
    /// Of a model with a language-modelling head.
    pub fn new(config: &DeepseekV2Config) -> Self {
        let mut shapes = config.weight_shapes(Head::CausalLm, Dialect::Hf);
        shapes.retain(|(name, _)| !name.contains("norm"));
        let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
            let wanted = shapes.iter().filter(|(name, _)| wanted(name));
            wanted.map(|(_, shape)| shape.iter().product::<usize>() as f64).sum()
        };
        let is_kv_b = |name: &str| name.ends_with("kv_b_proj.weight");
        let is_moe = |layer: &usize| config.is_moe_layer(*layer, Dialect::Hf);
        let [heads, c, n, r, v] = [
            config.num_attention_heads,
            config.kv_lora_rank,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        ]
        .map(|size| size as f64);
        Work {
            layers: config.num_hidden_layers as f64,
            projections: sum(&|name| name.contains(".self_attn.") && !is_kv_b(name)),
            kv_b: sum(&is_kv_b),
            feed_forward: sum(&|name| name.contains(".mlp.") && !name.contains(".mlp.experts.")),
            expert: 3.0 * config.hidden_size as f64 * config.moe_intermediate_size as f64,
            routed: config.num_experts() as f64,
            chosen: config.num_experts_per_tok.unwrap_or(0) as f64,
            moe_layers: (0..config.num_hidden_layers).filter(is_moe).count() as f64,
            head: sum(&|name| name == "lm_head.weight"),
            cached: c + r,
            absorbed_pair: 2.0 * heads * (2.0 * c + r),
            expanded_pair: 2.0 * heads * (n + r + v),
        }
    }

    /// Routed experts that a token visits, in all layers.
    pub fn visits(&self) -> f64 {
        self.moe_layers * self.chosen
    }

    /// Numbers that all layers cache of a token.
    pub fn cached_in_all(&self) -> f64 {
        self.layers * self.cached
    }

    /// Bytes that a step of the absorbed form reads. `experts`: how many different ones, in all layers together; `tokens`: of
    /// all sequences; `number`: bytes of a cached number, and of one of `kv_b_proj`, which the reference widens once.
    pub fn step_bytes(&self, experts: f64, tokens: f64, number: f64) -> f64 {
        let stored = self.projections + self.feed_forward + self.head + experts * self.expert;
        STORED * stored + number * (self.kv_b + tokens * self.cached_in_all())
    }

    /// Operations of a token, without attention to others and without the head.
    fn token(&self) -> f64 {
        2.0 * (self.projections + self.kv_b + self.feed_forward + self.visits() * self.expert)
    }

    /// Operations of a prompt of so many tokens: each is expanded once, attends to itself and those before it, and the last
    /// one gets logits.
    pub fn prefill_flops(&self, tokens: f64) -> f64 {
        tokens * self.token() + 2.0 * self.head + self.expanded_pair * self.layers * tokens * (tokens + 1.0) / 2.0
    }

    /// Operations of one more token of each of `batch` sequences, which attends to `keys` tokens.
    pub fn step_flops(&self, form: AttentionForm, batch: f64, keys: f64) -> f64 {
        // The expanded form expands all keys, and the new token is one of them.
        let alone = match form {
            AttentionForm::Absorbed => self.token(),
            AttentionForm::Expanded => self.token() - 2.0 * self.kv_b,
        };
        batch * (alone + 2.0 * self.head + keys * self.key_flops(form))
    }

    /// Operations that one more cached token costs each new one.
    pub fn key_flops(&self, form: AttentionForm) -> f64 {
        match form {
            AttentionForm::Absorbed => self.layers * self.absorbed_pair,
            AttentionForm::Expanded => 2.0 * self.kv_b + self.layers * self.expanded_pair,
        }
    }
}
