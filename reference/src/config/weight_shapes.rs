//! What the configuration implies about the weights: their names, their shapes, their number.

use std::fmt;
use std::str::FromStr;

use super::DeepseekV2Config;
use crate::stage::layer_path;
use crate::{Dialect, Error};

/// What stands on top of the transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Head {
    /// `lm_head`: a logit for each token of the vocabulary.
    CausalLm,
    /// `score`: a logit for each label.
    SequenceClassification,
    /// Nothing: the hidden states after the last norm.
    Bare,
}

impl Head {
    /// Hugging Face's class, as it stands in config.json's `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Head::CausalLm => "DeepseekV2ForCausalLM",
            Head::SequenceClassification => "DeepseekV2ForSequenceClassification",
            Head::Bare => "DeepseekV2Model",
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.architecture())
    }
}

impl FromStr for Head {
    type Err = Error;

    /// Reads an [`Head::architecture`].
    fn from_str(text: &str) -> Result<Self, Error> {
        let known = [Head::CausalLm, Head::SequenceClassification, Head::Bare];
        known.into_iter().find(|head| head.architecture() == text).ok_or_else(|| {
            Error::config("architectures", known.map(Head::architecture).join(", "), format!("{text:?}"))
        })
    }
}

impl DeepseekV2Config {
    /// The checkpoint's tensors: Hugging Face's names, with their shapes, in the order of the forward pass. A linear
    /// layer's weight is [out, in]. Routed experts appear one by one (`experts.7.up_proj.weight`), as checkpoints store
    /// them.
    ///
    /// Not in the list: `lm_head.weight` where `tie_word_embeddings` makes it the embedding; a shared expert where
    /// `n_shared_experts` is null. With `n_shared_experts` 0 its tensors are listed, with a side of length 0, because
    /// Transformers stores them so.
    pub fn weight_shapes(&self, head: Head, dialect: Dialect) -> Vec<(String, Vec<usize>)> {
        let mut list = WeightList::default();
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        list.add("model.embed_tokens.weight", &[self.vocab_size, hidden]);
        for layer in 0..self.num_hidden_layers {
            let layer_name = layer_path(layer);
            list.add(format!("{layer_name}.input_layernorm.weight"), &[hidden]);

            let attention = format!("{layer_name}.self_attn");
            match self.q_lora_rank {
                None => list.linear(format!("{attention}.q_proj"), heads * self.qk_head_dim(), hidden, false),
                Some(rank) => {
                    list.linear(format!("{attention}.q_a_proj"), rank, hidden, self.attention_bias);
                    list.add(format!("{attention}.q_a_layernorm.weight"), &[rank]);
                    list.linear(format!("{attention}.q_b_proj"), heads * self.qk_head_dim(), rank, false);
                }
            }
            let latent = self.kv_lora_rank;
            let compressed = latent + self.qk_rope_head_dim;
            list.linear(format!("{attention}.kv_a_proj_with_mqa"), compressed, hidden, self.attention_bias);
            list.add(format!("{attention}.kv_a_layernorm.weight"), &[latent]);
            let expanded = heads * (self.qk_nope_head_dim + self.v_head_dim);
            list.linear(format!("{attention}.kv_b_proj"), expanded, latent, false);
            list.linear(format!("{attention}.o_proj"), hidden, heads * self.v_head_dim, self.attention_bias);

            list.add(format!("{layer_name}.post_attention_layernorm.weight"), &[hidden]);
            let mlp = format!("{layer_name}.mlp");
            if !self.is_moe_layer(layer, dialect) {
                list.mlp(&mlp, hidden, self.intermediate_size, self.mlp_bias);
                continue;
            }
            let experts = self.num_experts();
            list.add(format!("{mlp}.gate.weight"), &[experts, hidden]);
            for expert in 0..experts {
                list.mlp(&format!("{mlp}.experts.{expert}"), hidden, self.moe_intermediate_size, false);
            }
            if self.n_shared_experts.is_some() {
                list.mlp(&format!("{mlp}.shared_experts"), hidden, self.shared_width(), self.mlp_bias);
            }
        }
        list.add("model.norm.weight", &[hidden]);
        match head {
            Head::CausalLm if self.tie_word_embeddings => {}
            Head::Bare => {}
            Head::CausalLm => list.add("lm_head.weight", &[self.vocab_size, hidden]),
            Head::SequenceClassification => list.add("score.weight", &[self.num_labels(), hidden]),
        }
        list.0
    }

    /// Parameters of the causal language model (of the default dialect): the sum over
    /// [`DeepseekV2Config::weight_shapes`].
    pub fn parameter_count(&self) -> u64 {
        let count = |shape: &[usize]| shape.iter().fold(1_u64, |product, side| product.saturating_mul(*side as u64));
        let shapes = self.weight_shapes(Head::CausalLm, Dialect::Hf);
        shapes.iter().fold(0, |sum, (_, shape)| sum.saturating_add(count(shape)))
    }

    /// Parameters that one token meets: all but the routed experts that its router did not select, in each MoE layer.
    pub fn active_parameter_count(&self) -> u64 {
        let layers = (0..self.num_hidden_layers).filter(|layer| self.is_moe_layer(*layer, Dialect::Hf)).count() as u64;
        let idle = self.num_experts().saturating_sub(self.num_experts_per_tok.unwrap_or(0)) as u64;
        let expert = (self.hidden_size as u64).saturating_mul(self.moe_intermediate_size as u64).saturating_mul(3);
        self.parameter_count().saturating_sub(layers.saturating_mul(idle).saturating_mul(expert))
    }
}

/// The list in the making.
#[derive(Default)]
struct WeightList(Vec<(String, Vec<usize>)>);

impl WeightList {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    /// The weight [out, in] and perhaps the bias [out] of a linear layer.
    fn linear(&mut self, name: String, out: usize, inner: usize, bias: bool) {
        self.add(format!("{name}.weight"), &[out, inner]);
        if bias {
            self.add(format!("{name}.bias"), &[out]);
        }
    }

    /// The three linear layers of a gated MLP.
    fn mlp(&mut self, name: &str, hidden: usize, width: usize, bias: bool) {
        self.linear(format!("{name}.gate_proj"), width, hidden, bias);
        self.linear(format!("{name}.up_proj"), width, hidden, bias);
        self.linear(format!("{name}.down_proj"), hidden, width, bias);
    }
}
