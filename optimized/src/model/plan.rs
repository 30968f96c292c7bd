//! How much device memory a model needs, known before any is taken.
//!
//! | part | bytes |
//! |---|---|
//! | weights | every tensor of the checkpoint, in the type of the computation |
//! | cache | layers x pages x page size x (c + r) numbers |
//! | workspace | the tensors of one forward pass that live at the same time, where they are the most |
//!
//! The workspace follows the code, function by function, and every function below names the one that it follows; a test
//! compares it with what passes really take. Sizes are those of the tensors. A driver hands out memory in larger pieces
//! (of 2 MiB), and keeps some for itself. [`RankPlan`] is the same for a rank of several.

mod rank;

use std::sync::Arc;

use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::{DeepseekV2Config, Dialect};

use super::{Products, Settings};
use crate::operators::mla_decode;
use crate::{Device, Element, Error, Result};
pub use rank::{PassSize, RankPlan};

/// A cache, as [`LatentCache::new`](super::cache::LatentCache::new) makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each of them.
    pub tokens: usize,
    /// Tokens of a page.
    pub page_size: usize,
}

/// A forward pass over the sequences of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// New tokens of each sequence (S).
    pub new: usize,
    /// Tokens of the longest sequence, with the new ones (T).
    pub keys: usize,
    /// How attention is computed.
    pub form: AttentionForm,
    /// Whether there is a mask beyond the causal rule, for example for padding: it is a tensor \[B,S,T\].
    pub masked: bool,
    /// Positions of each sequence for which there are logits. (A classifier scores all of them.)
    pub logits: usize,
}

/// Bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Of all weights, the head's included.
    pub weights: usize,
    /// Of the cache.
    pub cache: usize,
    /// Of what one pass needs besides.
    pub workspace: usize,
}

impl MemoryPlan {
    /// What a model needs with a cache, and with the largest of some passes.
    ///
    /// # Errors
    /// If the config is impossible, or the pages are empty.
    pub fn new(
        config: &DeepseekV2Config,
        dialect: Dialect,
        head: Head,
        settings: Settings,
        cache: CacheSize,
        passes: &[Pass],
    ) -> Result<Self> {
        config.validate(dialect)?;
        if cache.page_size == 0 {
            return Err(Error::operand("MemoryPlan::new", "page_size", "at least 1", cache.page_size));
        }
        let experts_per_token = rank::experts_per_token(config, dialect)?;
        let workspace = |pass: &Pass| {
            let of_pass = Workspace { config, dialect, head, settings, cache, pass, experts_per_token };
            of_pass.size(of_pass.experts()).total()
        };
        Ok(MemoryPlan {
            weights: weights(config, dialect, Some(head), settings.element),
            cache: cache_bytes(config, settings.element, cache),
            workspace: passes.iter().map(workspace).max().unwrap_or(0),
        })
    }

    /// All together.
    pub fn total(&self) -> usize {
        sum([self.weights, self.cache, self.workspace])
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [("weights", self.weights), ("cache", self.cache), ("workspace", self.workspace)];
        for (name, bytes) in parts {
            writeln!(f, "{name:<9} {bytes:>16} bytes")?;
        }
        write!(f, "{:<9} {:>16} bytes", "in all", self.total())
    }
}

/// Refuses what the device has no room for, before anything is taken.
pub(super) fn check(operator: &'static str, device: &Arc<dyn Device>, needed: usize) -> Result<()> {
    let (free, _) = device.memory()?;
    if needed > free {
        let (expected, found) = (format!("{needed} bytes"), format!("{free} free"));
        return Err(Error::operand(operator, "device memory", expected, found));
    }
    Ok(())
}

/// Bytes of the weights of `model.*`, and of a head if there is one.
pub(super) fn weights(config: &DeepseekV2Config, dialect: Dialect, head: Option<Head>, element: Element) -> usize {
    let shapes = config.weight_shapes(head.unwrap_or(Head::CausalLm), dialect);
    let wanted = shapes.iter().filter(|(name, _)| head.is_some() || name.starts_with("model."));
    // A query without a bias beside a latent with one has zeros: one product makes both.
    let zeros = match config.q_lora_rank {
        None if config.attention_bias => {
            let query = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim);
            bytes(element, &[config.num_hidden_layers, query])
        }
        _ => 0,
    };
    sum(wanted.map(|(_, shape)| bytes(element, shape)).chain([zeros]))
}

/// Bytes of a cache with all its pages. The size of a page is not zero.
pub(super) fn cache_bytes(config: &DeepseekV2Config, element: Element, cache: CacheSize) -> usize {
    let CacheSize { batch, tokens, page_size } = cache;
    let width = config.kv_lora_rank + config.qk_rope_head_dim;
    bytes(element, &[config.num_hidden_layers, batch, tokens.div_ceil(page_size), page_size, width])
}

/// Sizes may come from anywhere: what does not fit a number is more than any device has.
fn bytes(element: Element, shape: &[usize]) -> usize {
    shape.iter().fold(element.bytes(), |product, size| product.saturating_mul(*size))
}

fn sum(parts: impl IntoIterator<Item = usize>) -> usize {
    parts.into_iter().fold(0, usize::saturating_add)
}

/// The tensors of a pass.
struct Workspace<'a> {
    config: &'a DeepseekV2Config,
    dialect: Dialect,
    head: Head,
    settings: Settings,
    cache: CacheSize,
    pass: &'a Pass,
    experts_per_token: usize,
}

impl Workspace<'_> {
    /// `CausalLm::forward` and `SequenceClassifier::forward`: first the layers, then the head. So much a layer of experts takes.
    fn size(&self, of_experts: usize) -> PassSize {
        let (attention, feed_forward) = (self.attention(), self.feed_forward(of_experts));
        PassSize { throughout: self.throughout(), attention, feed_forward, head: self.head(), sent: 0 }
    }

    /// Numbers of the type of the computation.
    fn real(&self, shape: &[usize]) -> usize {
        bytes(self.settings.element, shape)
    }

    /// N = B S
    fn rows(&self) -> usize {
        self.cache.batch.saturating_mul(self.pass.new)
    }

    /// Pages of the longest sequence.
    fn columns(&self) -> usize {
        self.pass.keys.div_ceil(self.cache.page_size)
    }

    /// `Model::forward_layers`, from the embedding to the last norm: the residual stream and its norm, the rotary tables,
    /// the places in the cache, the mask.
    fn throughout(&self) -> usize {
        let Pass { new, keys, masked, .. } = *self.pass;
        let (rows, batch) = (self.rows(), self.cache.batch);
        sum([
            self.real(&[rows, 2 * self.config.hidden_size]),
            wide(&[rows, self.config.qk_rope_head_dim]),
            wide(&[rows]),
            wide(&[batch, self.columns()]),
            wide(&[batch]),
            if masked { wide(&[batch, new, keys]) } else { 0 },
        ])
    }

    /// The output of a layer's attention and the feed-forward network that takes most. What comes before the layers (tokens,
    /// positions, frequencies) is always less.
    fn feed_forward(&self, of_experts: usize) -> usize {
        let output = self.real(&[self.rows(), self.config.hidden_size]);
        let is_moe = |layer| self.config.is_moe_layer(layer, self.dialect);
        let of_layer = |layer| if is_moe(layer) { of_experts } else { self.dense() };
        sum([output, (0..self.config.num_hidden_layers).map(of_layer).max().unwrap_or(0)])
    }

    /// `Attention::forward`.
    fn attention(&self) -> usize {
        let &DeepseekV2Config { num_attention_heads: heads, v_head_dim: value, hidden_size, .. } = self.config;
        let &DeepseekV2Config { kv_lora_rank: latent, qk_rope_head_dim: rope, .. } = self.config;
        let rows = self.rows();
        let query = self.real(&[rows, heads, self.config.qk_head_dim()]);
        let attended = match self.pass.form {
            AttentionForm::Expanded => self.expanded(),
            AttentionForm::Absorbed => self.absorbed(),
        };
        let output = self.real(&[rows, hidden_size]);
        let after_query = sum([self.real(&[rows, heads, value]), attended.max(output)]);
        // What is made of the input in one product: the query and the new latent, or the query's latent and the new one.
        match self.config.q_lora_rank {
            None => sum([query, self.real(&[rows, latent + rope]), after_query]),
            Some(rank) => sum([query, self.real(&[rows, 2 * rank + latent + rope]).max(after_query)]),
        }
    }

    /// `Attention::attend_expanded`: the cached latents of all sequences, keys and values of all heads.
    fn expanded(&self) -> usize {
        let &DeepseekV2Config { num_attention_heads: heads, v_head_dim: value, .. } = self.config;
        let &DeepseekV2Config { kv_lora_rank: latent, qk_rope_head_dim: rope, qk_nope_head_dim: nope, .. } =
            self.config;
        let cached = self.cache.batch.saturating_mul(self.pass.keys);
        let keys_and_values = self.real(&[cached, heads, nope + value]);
        sum([self.real(&[cached, latent + rope]), keys_and_values, wide(&[self.rows(), heads])])
    }

    /// `Attention::attend_absorbed`: queries and results in the latent space, and what the decode kernel's blocks leave for
    /// each other.
    fn absorbed(&self) -> usize {
        let &DeepseekV2Config { num_attention_heads: heads, kv_lora_rank: latent, .. } = self.config;
        let (batch, new) = (self.cache.batch, self.pass.new);
        let capacity = self.columns().saturating_mul(self.cache.page_size);
        // The kernel's own sum must not overflow; it is never more than this.
        let most = bytes(Element::F32, &[self.rows(), heads, capacity, latent + 6]);
        let shape = [batch, new, heads, latent];
        let scratch = match most {
            usize::MAX => usize::MAX,
            _ => {
                let rope = self.config.qk_rope_head_dim;
                let (numbers, counters) = mla_decode::shared(self.settings.variant, shape, rope, capacity);
                sum([wide(&[numbers]), wide(&[counters])])
            }
        };
        sum([self.real(&[self.rows(), heads, 2 * latent]), scratch, wide(&[self.rows(), heads])])
    }

    /// `Mlp::forward` of a dense layer.
    fn dense(&self) -> usize {
        self.real(&[self.rows(), 2 * self.config.intermediate_size + self.config.hidden_size])
    }

    /// `MixtureOfExperts::forward`: routing, a row for each token and expert, then the shared experts and the sum.
    fn experts(&self) -> usize {
        let &DeepseekV2Config { hidden_size, moe_intermediate_size: width, .. } = self.config;
        let (rows, experts, k) = (self.rows(), self.config.num_experts(), self.experts_per_token);
        let routing = sum([wide(&[rows, experts]), wide(&[experts + 1]), wide(&[rows, 4 * k])]);
        let pairs = self.real(&[rows, k, width + hidden_size]);
        let output = self.real(&[rows, hidden_size]);
        let rest = match self.config.n_shared_experts {
            None => output,
            Some(_) if !self.config.mlp_bias && self.settings.products == Products::Ours => {
                sum([output, output.max(self.real(&[rows, self.config.shared_width()]))])
            }
            Some(_) => sum([output, output.max(self.real(&[rows, 2 * self.config.shared_width()]))]),
        };
        sum([routing, pairs, rest])
    }

    /// What the heads take while the last hidden states are there, with labels and their losses.
    fn head(&self) -> usize {
        let (rows, batch) = (self.rows(), self.cache.batch);
        let hidden = self.real(&[rows, self.config.hidden_size]);
        match self.head {
            Head::CausalLm => {
                let kept = batch.saturating_mul(self.pass.logits);
                let picked = if self.pass.logits == self.pass.new { 0 } else { self.config.hidden_size };
                sum([hidden, self.real(&[kept, picked + self.config.vocab_size]), wide(&[kept, 2]), wide(&[1])])
            }
            Head::Bare => hidden,
            Head::SequenceClassification => {
                let labels = self.config.num_labels();
                let scores = sum([self.real(&[rows, labels]), self.real(&[batch, labels])]);
                sum([hidden, scores, wide(&[batch])])
            }
        }
    }
}

/// Numbers of four bytes.
fn wide(shape: &[usize]) -> usize {
    bytes(Element::F32, shape)
}
