//! config.json: what kind of DeepSeek-V2 this is.
//!
//! Fields carry Hugging Face's names and, where config.json leaves them out, the defaults of Transformers 5.23, in
//! every [`Dialect`]. The paper's symbols, and the letters used in this crate's formulas:
//!
//! | field | paper | letter | meaning |
//! |---|---|---|---|
//! | `vocab_size` | | V | rows of the embedding and of `lm_head` |
//! | `hidden_size` | d | D | width of the residual stream |
//! | `num_hidden_layers` | l | L | layers |
//! | `num_attention_heads` | n_h | H | attention heads |
//! | `q_lora_rank` | d'_c | | width of the compressed query; null: the query is not compressed |
//! | `kv_lora_rank` | d_c | c | width of the compressed keys and values, the latent that is cached |
//! | `qk_nope_head_dim` | d_h | n | a head's query and key without position |
//! | `qk_rope_head_dim` | d_h^R | r | a head's query with position, and the one key that all heads share; cached |
//! | `v_head_dim` | d_h | v | a head's value |
//! | `intermediate_size` | | I | width of a dense layer's MLP |
//! | `moe_intermediate_size` | | | width of one routed expert; the shared experts are one MLP of `n_shared_experts` times this |
//! | `n_routed_experts` | N_r | E | routed experts |
//! | `n_shared_experts` | N_s | | shared experts |
//! | `num_experts_per_tok` | K_r | k | routed experts that a token visits |
//! | `n_group`, `topk_group` | D, M | | groups of experts (the paper's devices), and how many of them a token may visit |
//! | `routed_scaling_factor` | | | factor on the routed experts' weights |
//! | `first_k_dense_replace` | | | layers from this one on are MoE layers |
//! | `rms_norm_eps` | | ε | of the layer norms; the norms of the two latents always have 1e-6 |
//!
//! # Reading
//!
//! [`DeepseekV2Config::from_file`] and [`DeepseekV2Config::from_json_str`] check all that does not depend on the
//! dialect: types, sizes, the rotary embedding, the activation. [`DeepseekV2Config::validate`] checks all of it again
//! and the rest; loading a model calls it. An error names the field, what it may be and what it is.
//!
//! Unknown keys are kept in [`DeepseekV2Config::extra`] and written back by [`DeepseekV2Config::to_json`]; so is the
//! layout of the rotary parameters, old or new. **Trap:** Transformers' base class reads some that are no keys of this
//! model. A top-level `original_max_position_embeddings` overrules YaRN's, here too; `tie_last_hidden_states: false` leaves
//! the last hidden state as it is before the norm, here too; those that would make another model of it are refused
//! (`sliding_window`, `attention_chunk_size`, `layer_types`, `kv_sharing_modes`, `is_causal`, `per_layer_config`). All
//! others have no effect, and [`DeepseekV2Config::notes`] names those that suggest another model than this one.
//!
//! # Stricter and milder than Transformers
//!
//! Refused here, accepted there: a `num_key_value_heads` other than the number of heads (there it fails later or
//! computes nonsense); groups that hold fewer than k experts between them (there, masked experts are selected with
//! weight 0); `q_lora_rank` 0 (two empty matrices); a `problem_type` that does not exist; a key that is there twice (there, the last one counts); and whatever there fails only in the forward pass or
//! while the model is built: k null, an unknown `topk_method`, `rope_type` or `hidden_act`.
//!
//! Accepted here, refused there: an integer for a number (`"routed_scaling_factor": 16`). DeepSeek's code and
//! Transformers up to 5.3 take it as well.

mod base_class;
mod default;
mod notes;
mod presets;
mod read;
mod rope_parameters;
mod rope_type;
mod validate;
mod weight_shapes;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use presets::PRESETS;
pub use rope_parameters::RopeParameters;
pub use rope_type::RopeType;
pub use validate::TopkMethod;
pub use weight_shapes::Head;

use crate::{Activation, Dialect, Error, Result};

/// The configuration of a DeepSeek-V2 model. [`Default`] is Transformers' default configuration, which leaves
/// `num_experts_per_tok` open and therefore does not pass [`DeepseekV2Config::validate`].
///
/// Fields may be set freely: whoever uses a configuration validates it first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeepseekV2Config {
    /// Always `deepseek_v2`.
    pub model_type: String,
    /// V: rows of the embedding and of `lm_head`.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// Width of a dense layer's MLP.
    pub intermediate_size: usize,
    /// Width of one routed expert.
    pub moe_intermediate_size: usize,
    /// L: layers.
    pub num_hidden_layers: usize,
    /// H: attention heads.
    pub num_attention_heads: usize,
    /// Nothing depends on it: with MLA every head has its own keys and values. `None` or H.
    pub num_key_value_heads: Option<usize>,
    /// The activation of every MLP and expert; [`DeepseekV2Config::activation`] is its function.
    pub hidden_act: String,
    /// The context length. No limit at run time: the dynamic rope type and YaRN's defaults use it.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights. No effect here.
    pub initializer_range: f64,
    /// ε of the layer norms and the final norm. The norms of the latents (`q_a_layernorm`, `kv_a_layernorm`) do not use
    /// it: theirs is always 1e-6.
    pub rms_norm_eps: f64,
    /// Whether generation caches by default. No effect here: a cache is used where one is given.
    pub use_cache: bool,
    /// The padding token. The sequence classifier looks for it; the embedding does not treat it specially.
    pub pad_token_id: Option<i64>,
    /// For generation only.
    pub bos_token_id: Option<i64>,
    /// For generation only.
    pub eos_token_id: Option<EosTokenId>,
    /// No effect.
    pub pretraining_tp: Option<i64>,
    /// Is `lm_head` the embedding?
    pub tie_word_embeddings: bool,
    /// θ in the old layout. [`DeepseekV2Config::rope`] reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// The rotary embedding in the old layout, as written. [`DeepseekV2Config::rope`] reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Map<String, Value>>,
    /// The rotary embedding in the new layout, as written. [`DeepseekV2Config::rope`] reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Map<String, Value>>,
    /// Do `q_a_proj`, `kv_a_proj_with_mqa` and `o_proj` have a bias? The other projections never do.
    pub attention_bias: bool,
    /// For training only: no effect here.
    pub attention_dropout: Option<f64>,
    /// Do dense MLPs and shared experts have biases? Routed experts and the router never do.
    pub mlp_bias: bool,
    /// Layers from this one on are MoE layers. Zero and less: all of them; L and more: none.
    pub first_k_dense_replace: i64,
    /// Every how many layers there is an MoE layer; a [`Dialect`] may ignore it. `None`: config.json has no integer there
    /// (what it has is in `extra`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe_layer_freq: Option<i64>,
    /// c: width of the latent of keys and values.
    pub kv_lora_rank: usize,
    /// Width of the latent of queries. `None` (an explicit null): `q_proj` alone; a missing key is 1536.
    pub q_lora_rank: Option<usize>,
    /// n: the part of a head's query and key that is not rotated.
    pub qk_nope_head_dim: usize,
    /// r: the part of a head's query and key that is rotated. Even.
    pub qk_rope_head_dim: usize,
    /// v: a head's value.
    pub v_head_dim: usize,
    /// E: routed experts. `None`: no MoE layer at all, where the [`Dialect`] has that. Also called `num_experts`.
    pub n_routed_experts: Option<usize>,
    /// Shared experts; together they are one MLP. 0: none.
    pub n_shared_experts: Option<usize>,
    /// k: routed experts of a token. 0: none.
    pub num_experts_per_tok: Option<usize>,
    /// `greedy` or `group_limited_greedy`; [`DeepseekV2Config::topk_method`] reads it, where a layer has a router.
    pub topk_method: Option<String>,
    /// Groups of routed experts, for `group_limited_greedy`.
    pub n_group: Option<usize>,
    /// Groups that a token may visit, for `group_limited_greedy`.
    pub topk_group: Option<usize>,
    /// Factor on the selected experts' weights.
    pub routed_scaling_factor: f64,
    /// Divide the selected experts' weights by their sum? A [`Dialect`] may ignore it.
    #[serde(deserialize_with = "read::null_is_default")]
    pub norm_topk_prob: bool,
    /// How router logits become scores: `softmax`. A [`Dialect`] may ignore it. What config.json has there, if it is no
    /// text, is in `extra`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scoring_func: Option<String>,
    /// Return the router logits by default? No effect here: the caller of the forward pass decides.
    pub output_router_logits: bool,
    /// Labels of the sequence classifier, if `id2label` does not say or is overruled. [`DeepseekV2Config::num_labels`]
    /// is the number that holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_labels: Option<usize>,
    /// The labels' names, by index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id2label: Option<Map<String, Value>>,
    /// The sequence classifier's loss: `regression`, `single_label_classification` or `multi_label_classification`;
    /// inferred from the labels if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem_type: Option<String>,
    /// Every other key of config.json, kept for writing back.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
    /// Was `vocab_size` left out? Its default is not the same in all versions of Transformers.
    #[serde(skip)]
    pub vocab_size_by_default: bool,
}

/// The token, or the tokens, that end a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "an integer, a list of integers or null")]
pub enum EosTokenId {
    /// One token.
    One(i64),
    /// Any of several.
    Many(Vec<i64>),
}

impl DeepseekV2Config {
    /// The activation that `hidden_act` names.
    ///
    /// # Errors
    ///
    /// There is none of that name without learned parameters.
    pub fn activation(&self) -> Result<Activation> {
        self.hidden_act.parse().map_err(|_| {
            let known = Activation::names().collect::<Vec<_>>().join(", ");
            Error::config("hidden_act", format!("one of {known}"), format!("{:?}", self.hidden_act))
        })
    }

    /// Labels of the sequence classifier: an explicit `num_labels`, else the length of `id2label`, else 2.
    pub fn num_labels(&self) -> usize {
        self.num_labels.or(self.id2label.as_ref().map(Map::len)).unwrap_or(2)
    }

    /// The tokens that end a text; none, one or several.
    pub fn eos_token_ids(&self) -> &[i64] {
        match &self.eos_token_id {
            None => &[],
            Some(EosTokenId::One(id)) => std::slice::from_ref(id),
            Some(EosTokenId::Many(ids)) => ids,
        }
    }

    /// n + r: a head's query and key.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// r: what Transformers' rotary code takes for the head dimension. `head_dim` in config.json is overwritten by it.
    pub fn head_dim(&self) -> usize {
        self.qk_rope_head_dim
    }

    /// Width of the shared experts' MLP: `moe_intermediate_size` for each of them. 0 without any.
    pub fn shared_width(&self) -> usize {
        self.moe_intermediate_size * self.n_shared_experts.unwrap_or(0)
    }

    /// E: routed experts of an MoE layer. 0 where `n_routed_experts` is null.
    pub fn num_experts(&self) -> usize {
        self.n_routed_experts.unwrap_or(0)
    }

    /// Does this layer have experts (or else one dense MLP)?
    pub fn is_moe_layer(&self, layer: usize, dialect: Dialect) -> bool {
        let late_enough = self.first_k_dense_replace <= layer as i64;
        let beat = self.moe_layer_freq.unwrap_or(1);
        let on_beat = !dialect.honours_moe_layer_freq() || (layer as i64).checked_rem(beat) == Some(0);
        self.n_routed_experts.is_some() && late_enough && on_beat
    }

    /// Does any layer have experts?
    pub fn has_moe_layers(&self, dialect: Dialect) -> bool {
        (0..self.num_hidden_layers).any(|layer| self.is_moe_layer(layer, dialect))
    }

    /// (c + r) L: what a token leaves in the cache, in elements. Ordinary attention would leave 2 H n L.
    pub fn kv_cache_elements_per_token(&self) -> usize {
        (self.kv_lora_rank + self.qk_rope_head_dim) * self.num_hidden_layers
    }
}

#[cfg(test)]
mod tests;
