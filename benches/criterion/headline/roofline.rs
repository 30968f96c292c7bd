//! The least time of a decode step on a node: each part takes as long as its bytes or its operations, whichever is longer;
//! the parts follow one another.
//!
//! ```text
//! step = sum over parts of max(bytes / (bytes per second), weight flops / F_weights + attention flops / F_attention)
//! ```

use crate::work::Work;

/// A node of eight H800 of 80 GB as NVIDIA specifies it, without sparsity.
const GPUS: f64 = 8.0;
const NODE_MEMORY: f64 = GPUS * 80e9;
/// Bytes that the node reads from its memories in a second.
const NODE_READS: f64 = GPUS * 3.35e12;
/// Operations that it does in a second.
const NODE_BF16: f64 = GPUS * 989e12;
const NODE_FP8: f64 = GPUS * 1979e12;

/// Bytes of a number.
#[derive(Clone, Copy)]
pub struct Precision {
    weight: f64,
    cache: f64,
}

pub const BF16: Precision = Precision { weight: 2.0, cache: 2.0 };
pub const FP8: Precision = Precision { weight: 1.0, cache: 1.0 };
pub const FP8_WEIGHTS: Precision = Precision { weight: 1.0, cache: 2.0 };
/// What the paper deploys: fp8 weights, a cache of 6 bits.
pub const DEPLOYED: Precision = Precision { weight: 1.0, cache: 0.75 };

impl Work {
    /// DeepSeek 67B, a dense model with GQA.
    pub fn deepseek_67b() -> Self {
        let (layers, hidden, heads, groups, head) = (95.0, 8192.0, 64.0, 8.0, 128.0);
        Work {
            layers,
            projections: layers * 2.0 * hidden * (heads + groups) * head,
            feed_forward: layers * 3.0 * hidden * 22016.0,
            head: hidden * 102_400.0,
            cached: 2.0 * groups * head,
            absorbed_pair: 4.0 * heads * head,
            ..Work::default()
        }
    }

    /// Weights of attention in all layers.
    fn attention_weights(&self) -> f64 {
        self.projections + self.kv_b
    }

    /// Weights of the feed-forward networks in all layers, of so many routed experts in each.
    fn feed_forward_weights(&self, experts: f64) -> f64 {
        self.feed_forward + self.moe_layers * experts * self.expert
    }

    /// All weights, the embedding too; norms are left out.
    fn weights(&self) -> f64 {
        self.attention_weights() + self.feed_forward_weights(self.routed) + 2.0 * self.head
    }

    /// How many of a layer's experts some tokens use that choose independently: E (1 - (1 - k/E)^B).
    fn distinct_experts(&self, batch: f64) -> f64 {
        let Work { routed, chosen, .. } = *self;
        if routed == 0.0 { 0.0 } else { routed * (1.0 - (1.0 - chosen / routed).powf(batch)) }
    }

    /// How many sequences of such a length have room beside the weights.
    fn room(&self, precision: Precision, context: f64) -> f64 {
        let left = NODE_MEMORY - self.weights() * precision.weight;
        (left / (context * self.cached_in_all() * precision.cache)).max(0.0).floor()
    }
}

/// A part of a decode step.
#[derive(Clone, Copy, Default)]
pub struct Part {
    /// Bytes of weights read.
    pub weights: f64,
    /// Bytes of the cache read.
    pub cached: f64,
    /// Operations with weights; a multiplication with addition is two.
    pub weight_flops: f64,
    /// Operations with cached numbers.
    pub attention_flops: f64,
}

impl Part {
    /// Seconds in which its bytes can be read.
    pub fn reading(&self) -> f64 {
        (self.weights + self.cached) / NODE_READS
    }

    /// Seconds in which its operations can be done: weights of a byte are multiplied in fp8, wider ones in bf16; attention is
    /// in bf16 however the cache is kept.
    pub fn computing(&self, precision: Precision) -> f64 {
        let of_weights = if precision.weight <= 1.0 { NODE_FP8 } else { NODE_BF16 };
        self.weight_flops / of_weights + self.attention_flops / NODE_BF16
    }
}

/// A step of a model on the node that adds a token to each of some sequences of one length.
pub struct Estimate {
    precision: Precision,
    pub batch: f64,
    /// Different routed experts that a layer uses.
    pub experts: f64,
    /// Projections, feed-forward network, attention, head.
    pub parts: [Part; 4],
}

impl Estimate {
    /// At the batch that fits.
    pub fn new(model: &Work, precision: Precision, context: f64) -> Self {
        Estimate::at(model, precision, context, model.room(precision, context))
    }

    /// At a given batch.
    pub fn at(model: &Work, precision: Precision, context: f64, batch: f64) -> Self {
        let of_weights =
            |read, met| Part { weights: precision.weight * read, weight_flops: 2.0 * batch * met, ..Part::default() };
        let (experts, tokens) = (model.distinct_experts(batch), batch * context);
        let attention = Part {
            cached: precision.cache * tokens * model.cached_in_all(),
            attention_flops: tokens * model.layers * model.absorbed_pair,
            ..Part::default()
        };
        let parts = [
            of_weights(model.attention_weights(), model.attention_weights()),
            of_weights(model.feed_forward_weights(experts), model.feed_forward_weights(model.chosen)),
            attention,
            of_weights(model.head, model.head),
        ];
        Estimate { precision, batch, experts, parts }
    }

    /// Seconds of a step.
    pub fn step(&self) -> f64 {
        self.parts.iter().map(|part| part.reading().max(part.computing(self.precision))).sum()
    }

    pub fn tokens_per_second(&self) -> f64 {
        self.batch / self.step()
    }

    /// Of all parts.
    pub fn sum(&self, of: impl Fn(&Part) -> f64) -> f64 {
        self.parts.iter().map(of).sum()
    }
}
