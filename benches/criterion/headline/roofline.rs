//! The least time of a decode step on a node: each part takes as long as its bytes or its operations, whichever is longer;
//! the parts follow one another.
//!
//! ```text
//! step = sum over parts of max(bytes / (bytes per second), weight flops / F_weights + attention flops / F_attention)
//! ```

use crate::work::Work;

/// A node of eight H800 as NVIDIA specifies it, without sparsity.
pub mod node {
    pub const GPUS: f64 = 8.0;
    /// Bytes per second that a GPU reads from its memory.
    pub const BYTES: f64 = 3.35e12;
    /// Operations per second in bf16 of a GPU.
    pub const BF16: f64 = 989e12;
    /// The same in fp8.
    pub const FP8: f64 = 1979e12;
    /// Bytes per second that a GPU sends: NVLink's 400 GB/s are of both directions.
    pub const LINK: f64 = 200e9;
}

/// The memory of eight GPUs of 80 GB.
pub const NODE_MEMORY: f64 = 640e9;

/// Groups of experts that a token of V2 may choose from.
const TOKEN_GROUPS: f64 = 3.0;

/// Bytes of a number.
#[derive(Clone, Copy, Debug)]
pub struct Precision {
    pub weight: f64,
    pub cache: f64,
}

pub const BF16: Precision = Precision { weight: 2.0, cache: 2.0 };
pub const FP8: Precision = Precision { weight: 1.0, cache: 1.0 };
pub const FP8_WEIGHTS: Precision = Precision { weight: 1.0, cache: 2.0 };
/// What the paper deploys: fp8 weights, a cache of 6 bits.
pub const DEPLOYED: Precision = Precision { weight: 1.0, cache: 0.75 };

/// A model in numbers.
pub struct Model {
    pub name: &'static str,
    pub heads: f64,
    pub work: Work,
}

/// A part of a decode step: what it reads, in numbers, and what it computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    /// Weights read.
    pub weights: f64,
    /// Cached numbers read.
    pub cached: f64,
    /// Operations with weights; a multiplication with addition is two.
    pub weight_flops: f64,
    /// Operations with cached numbers.
    pub attention_flops: f64,
}

impl Model {
    /// Weights of attention in all layers.
    fn projections(&self) -> f64 {
        self.work.projections + self.work.kv_b
    }

    /// Weights of the feed-forward networks in all layers, of so many routed experts in each.
    fn feed_forward(&self, experts: f64) -> f64 {
        self.work.feed_forward + self.work.moe_layers * experts * self.work.expert
    }

    /// All weights, the embedding too; norms are left out.
    pub fn weights(&self) -> f64 {
        self.projections() + self.feed_forward(self.work.routed) + 2.0 * self.work.head
    }

    /// Weights that a token is multiplied with.
    pub fn active_weights(&self) -> f64 {
        self.projections() + self.feed_forward(self.work.chosen) + self.work.head
    }

    /// How many of a layer's experts some tokens use that choose independently: E (1 - (1 - k/E)^B).
    pub fn distinct_experts(&self, batch: f64) -> f64 {
        let Work { routed, chosen, .. } = self.work;
        if routed == 0.0 { 0.0 } else { routed * (1.0 - (1.0 - chosen / routed).powf(batch)) }
    }

    /// Operations of all layers' attention for each token of context; MLA in its absorbed form.
    pub fn attention_flops(&self) -> f64 {
        self.work.layers * self.work.absorbed_pair
    }

    /// How many sequences of such a length have room beside the weights; not rounded.
    pub fn room(&self, precision: Precision, context: f64) -> f64 {
        let left = NODE_MEMORY - self.weights() * precision.weight;
        (left / (context * self.work.cached_in_all() * precision.cache)).max(0.0)
    }

    /// A step that adds a token to each of `batch` sequences of `context` tokens: the projections of attention, the
    /// feed-forward network, attention itself, the head.
    fn parts(&self, batch: f64, context: f64) -> [Part; 4] {
        let of_weights = |read, met| Part { weights: read, weight_flops: 2.0 * batch * met, ..Part::default() };
        let (distinct, tokens) = (self.distinct_experts(batch), batch * context);
        let attention = Part {
            cached: tokens * self.work.cached_in_all(),
            attention_flops: tokens * self.attention_flops(),
            ..Part::default()
        };
        [
            of_weights(self.projections(), self.projections()),
            of_weights(self.feed_forward(distinct), self.feed_forward(self.work.chosen)),
            attention,
            of_weights(self.work.head, self.work.head),
        ]
    }

    /// Seconds that the GPUs need to send each other activations in bf16, which the step leaves out.
    ///
    /// A dense model is split by heads and columns: two all-reduces in each layer, in a ring. Of the mixture of experts
    /// each GPU holds a group of experts, and has sequences of its own: a token goes to the groups that it may choose from,
    /// and back; 7 of 8 times that is another GPU.
    fn communication(&self, batch: f64) -> f64 {
        let Work { layers, moe_layers, hidden, routed, .. } = self.work;
        let (token, elsewhere) = (2.0 * hidden, (node::GPUS - 1.0) / node::GPUS);
        let sent = if routed == 0.0 {
            2.0 * 2.0 * elsewhere * batch * token * layers
        } else {
            2.0 * TOKEN_GROUPS * elsewhere * batch / node::GPUS * token * moe_layers
        };
        sent / node::LINK
    }
}

/// A model on the node, in sequences of one length.
pub struct Estimate {
    pub batch: f64,
    /// Projections, feed-forward network, attention, head.
    pub parts: [Part; 4],
    pub precision: Precision,
    /// Seconds, not counted in the step.
    pub communication: f64,
}

impl Estimate {
    /// At the batch that fits.
    pub fn new(model: &Model, precision: Precision, context: f64) -> Self {
        Estimate::at(model, precision, context, model.room(precision, context).floor())
    }

    /// At a given batch.
    pub fn at(model: &Model, precision: Precision, context: f64, batch: f64) -> Self {
        Estimate { batch, parts: model.parts(batch, context), precision, communication: model.communication(batch) }
    }

    /// Seconds in which a part's bytes can be read.
    pub fn reading(&self, part: &Part) -> f64 {
        let bytes = part.weights * self.precision.weight + part.cached * self.precision.cache;
        bytes / (node::GPUS * node::BYTES)
    }

    /// Seconds in which its operations can be done: weights of a byte are multiplied in fp8, wider ones in bf16; attention is
    /// in bf16 however the cache is kept.
    pub fn computing(&self, part: &Part) -> f64 {
        let weights = if self.precision.weight <= 1.0 { node::FP8 } else { node::BF16 };
        part.weight_flops / (node::GPUS * weights) + part.attention_flops / (node::GPUS * node::BF16)
    }

    /// Seconds of a step.
    pub fn step(&self) -> f64 {
        self.parts.iter().map(|part| self.reading(part).max(self.computing(part))).sum()
    }

    pub fn tokens_per_second(&self) -> f64 {
        self.batch / self.step()
    }

    /// Of all parts.
    pub fn sum(&self, of: impl Fn(&Part) -> f64) -> f64 {
        self.parts.iter().map(of).sum()
    }
}
