//! The two models in numbers: weights, cache and operations of a decode step, at full width and at ours.
//!
//! A width divided by s leaves all that matters in proportion, if the batch is divided by s too:
//!
//! ```text
//! weights           1/s^2    of every matrix both sides are widths (or heads times a head's own width, which stays)
//! cache per token   1/s      KV heads, latent and rotary key are widths
//! batch             1/s      what a memory of 1/s^2 holds beside the weights, at the same context
//! cache in all      1/s^2    as the weights
//! ```

/// By what the widths are divided for measuring. Both models' widths can be; the experts' number and choice stay.
pub const SCALE: usize = 4;

/// What attention is made of.
#[derive(Clone, Copy, Debug)]
pub enum Attention {
    /// GQA: each key-value head serves `heads / kv_heads` query heads of `head` numbers.
    Grouped { kv_heads: usize, head: usize },
    /// MLA: `q_rank` and c are the latents, n and v a head's key and value, r the rotary key that all heads share.
    Latent { q_rank: usize, c: usize, n: usize, r: usize, v: usize },
}

/// What the feed-forward network is made of.
#[derive(Clone, Copy, Debug)]
pub enum FeedForward {
    /// A gated MLP.
    Dense { width: usize },
    /// `chosen` of `routed` experts for a token and `shared` ones; the first `dense_layers` are MLPs of `dense_width`.
    Experts { routed: usize, chosen: usize, shared: usize, width: usize, dense_layers: usize, dense_width: usize },
}

/// A model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub vocabulary: usize,
    pub attention: Attention,
    pub feed_forward: FeedForward,
}

/// DeepSeek 67B: the dense model that the paper compares with.
pub const DENSE: Shape = Shape {
    name: "deepseek-67b",
    layers: 95,
    hidden: 8192,
    heads: 64,
    vocabulary: 102400,
    attention: Attention::Grouped { kv_heads: 8, head: 128 },
    feed_forward: FeedForward::Dense { width: 22016 },
};

/// DeepSeek-V2.
pub const V2: Shape = Shape {
    name: "deepseek-v2",
    layers: 60,
    hidden: 5120,
    heads: 128,
    vocabulary: 102400,
    attention: Attention::Latent { q_rank: 1536, c: 512, n: 128, r: 64, v: 128 },
    feed_forward: FeedForward::Experts {
        routed: 160,
        chosen: 6,
        shared: 2,
        width: 1536,
        dense_layers: 1,
        dense_width: 12288,
    },
};

/// Bytes of a number.
#[derive(Clone, Copy, Debug)]
pub struct Precision {
    pub weight: f64,
    pub cache: f64,
}

/// A part of a decode step: what it reads, in numbers, and what it computes.
#[derive(Clone, Copy, Debug)]
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

impl Part {
    /// Bytes read.
    pub fn bytes(&self, precision: Precision) -> f64 {
        self.weights * precision.weight + self.cached * precision.cache
    }
}

impl Shape {
    /// The model that is measured: widths and heads divided, the layers all alike.
    pub fn scaled(self) -> Shape {
        let narrow = |width: usize| width / SCALE;
        Shape {
            hidden: narrow(self.hidden),
            heads: narrow(self.heads),
            vocabulary: narrow(self.vocabulary),
            attention: match self.attention {
                Attention::Grouped { kv_heads, head } => Attention::Grouped { kv_heads: narrow(kv_heads), head },
                Attention::Latent { q_rank, c, n, r, v } => {
                    Attention::Latent { q_rank: narrow(q_rank), c: narrow(c), n, r: narrow(r), v }
                }
            },
            feed_forward: match self.feed_forward {
                FeedForward::Dense { width } => FeedForward::Dense { width: narrow(width) },
                FeedForward::Experts { routed, chosen, shared, width, dense_width, .. } => FeedForward::Experts {
                    routed,
                    chosen,
                    shared,
                    width: narrow(width),
                    dense_layers: 0,
                    dense_width: narrow(dense_width),
                },
            },
            ..self
        }
    }

    /// Weights of a layer's attention.
    pub fn attention_weights(&self) -> f64 {
        let (d, heads) = (self.hidden, self.heads);
        let weights = match self.attention {
            Attention::Grouped { kv_heads, head } => 2 * d * heads * head + 2 * d * kv_heads * head,
            Attention::Latent { q_rank, c, n, r, v } => {
                d * q_rank + q_rank * heads * (n + r) + d * (c + r) + c * heads * (n + v) + heads * v * d
            }
        };
        weights as f64
    }

    /// Weights of all layers' feed-forward networks that a step reads which uses `experts` routed experts in each.
    fn feed_forward_weights(&self, experts: f64) -> f64 {
        let mlp = |width: usize| (3 * self.hidden * width) as f64;
        match self.feed_forward {
            FeedForward::Dense { width } => self.layers as f64 * mlp(width),
            FeedForward::Experts { routed, shared, width, dense_layers, dense_width, .. } => {
                let router = (self.hidden * routed) as f64;
                let of_layer = router + (shared as f64 + experts) * mlp(width);
                (self.layers - dense_layers) as f64 * of_layer + dense_layers as f64 * mlp(dense_width)
            }
        }
    }

    /// How many of a layer's experts some tokens use that choose independently: E (1 - (1 - k/E)^B).
    pub fn distinct_experts(&self, batch: f64) -> f64 {
        match self.feed_forward {
            FeedForward::Dense { .. } => 0.0,
            FeedForward::Experts { routed, chosen, .. } => {
                let routed = routed as f64;
                routed * (1.0 - (1.0 - chosen as f64 / routed).powf(batch))
            }
        }
    }

    fn routed_and_chosen(&self) -> (f64, f64) {
        match self.feed_forward {
            FeedForward::Dense { .. } => (0.0, 0.0),
            FeedForward::Experts { routed, chosen, .. } => (routed as f64, chosen as f64),
        }
    }

    fn head_weights(&self) -> f64 {
        (self.hidden * self.vocabulary) as f64
    }

    /// All weights, the embedding too; norms are left out.
    pub fn weights(&self) -> f64 {
        let layers = self.layers as f64 * self.attention_weights();
        layers + self.feed_forward_weights(self.routed_and_chosen().0) + 2.0 * self.head_weights()
    }

    /// Weights that a token is multiplied with.
    pub fn active_weights(&self) -> f64 {
        let layers = self.layers as f64 * self.attention_weights();
        layers + self.feed_forward_weights(self.routed_and_chosen().1) + self.head_weights()
    }

    /// Numbers that are cached of a token in a layer.
    pub fn cached_in_layer(&self) -> f64 {
        match self.attention {
            Attention::Grouped { kv_heads, head } => (2 * kv_heads * head) as f64,
            Attention::Latent { c, r, .. } => (c + r) as f64,
        }
    }

    /// Numbers that are cached of a token.
    pub fn cached(&self) -> f64 {
        self.layers as f64 * self.cached_in_layer()
    }

    /// Operations of all layers' attention for each token of context; MLA in its absorbed form.
    pub fn attention_flops(&self) -> f64 {
        let of_layer = match self.attention {
            Attention::Grouped { head, .. } => 4 * self.heads * head,
            Attention::Latent { c, r, .. } => 2 * self.heads * (2 * c + r),
        };
        (self.layers * of_layer) as f64
    }

    /// How many sequences of such a length have room beside the weights; not rounded.
    pub fn room(&self, memory: f64, precision: Precision, context: f64) -> f64 {
        let left = memory - self.weights() * precision.weight;
        (left / (context * self.cached() * precision.cache)).max(0.0)
    }

    /// A step that adds a token to each of `batch` sequences of `context` tokens: the projections of attention, the
    /// feed-forward network, attention itself, the head.
    pub fn parts(&self, batch: f64, context: f64) -> [Part; 4] {
        let part = |weights, weight_flops| Part { weights, cached: 0.0, weight_flops, attention_flops: 0.0 };
        let projections = self.layers as f64 * self.attention_weights();
        let distinct = self.feed_forward_weights(self.distinct_experts(batch));
        let chosen = self.feed_forward_weights(self.routed_and_chosen().1);
        let tokens = batch * context;
        [
            part(projections, 2.0 * batch * projections),
            part(distinct, 2.0 * batch * chosen),
            Part {
                weights: 0.0,
                cached: tokens * self.cached(),
                weight_flops: 0.0,
                attention_flops: tokens * self.attention_flops(),
            },
            part(self.head_weights(), 2.0 * batch * self.head_weights()),
        ]
    }
}
