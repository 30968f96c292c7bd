//! The least time of a step: each part takes as long as its bytes or its operations, whichever is longer; the parts
//! follow one another.
//!
//! ```text
//! step = sum over parts of max(bytes / (bytes per second), weight flops / F_weights + attention flops / F_attention)
//! ```

use super::shapes::{Part, Precision, Shape};

/// What a machine can do in a second.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    pub bytes_per_second: f64,
    /// Operations with weights.
    pub weight_flops: f64,
    /// Operations with cached numbers.
    pub attention_flops: f64,
}

impl Roofline {
    /// Seconds in which a part's bytes can be read.
    pub fn reading(&self, part: &Part, precision: Precision) -> f64 {
        part.bytes(precision) / self.bytes_per_second
    }

    /// Seconds in which its operations can be done.
    pub fn computing(&self, part: &Part) -> f64 {
        part.weight_flops / self.weight_flops + part.attention_flops / self.attention_flops
    }

    /// The longer of the two.
    pub fn seconds(&self, part: &Part, precision: Precision) -> f64 {
        self.reading(part, precision).max(self.computing(part))
    }

    /// A whole step.
    pub fn step(&self, shape: &Shape, batch: f64, context: f64, precision: Precision) -> f64 {
        shape.parts(batch, context).iter().map(|part| self.seconds(part, precision)).sum()
    }
}

/// A node of eight H800 as NVIDIA specifies it, without sparsity.
pub mod h800 {
    use super::{Precision, Roofline, Shape};
    use crate::headline::shapes::FeedForward;

    /// GPUs of a node.
    pub const GPUS: f64 = 8.0;
    /// Bytes per second that a GPU reads from its memory.
    pub const BYTES: f64 = 3.35e12;
    /// Operations per second in bf16 of a GPU.
    pub const BF16: f64 = 989e12;
    /// The same in fp8.
    pub const FP8: f64 = 1979e12;
    /// Bytes per second that a GPU sends: NVLink's 400 GB/s are of both directions.
    pub const LINK: f64 = 200e9;

    /// Weights of a byte are multiplied in fp8, wider ones in bf16; attention is in bf16 however the cache is kept.
    pub fn roofline(precision: Precision) -> Roofline {
        let weight_flops = GPUS * if precision.weight <= 1.0 { FP8 } else { BF16 };
        Roofline { bytes_per_second: GPUS * BYTES, weight_flops, attention_flops: GPUS * BF16 }
    }

    /// Seconds that the GPUs need to send each other activations in bf16, which the step leaves out.
    ///
    /// A dense model is split by heads and columns: two all-reduces in each layer, in a ring. Of the mixture of experts
    /// each GPU holds a group of experts, and has sequences of its own: a token goes to the 3 groups that it may
    /// choose from, and back; 7 of 8 times that is another GPU.
    pub fn communication(shape: &Shape, batch: f64) -> f64 {
        let token = 2.0 * shape.hidden as f64;
        let elsewhere = (GPUS - 1.0) / GPUS;
        let sent = match shape.feed_forward {
            FeedForward::Dense { .. } => 2.0 * 2.0 * elsewhere * batch * token * shape.layers as f64,
            FeedForward::Experts { dense_layers, .. } => {
                let groups = 3.0;
                2.0 * groups * elsewhere * batch / GPUS * token * (shape.layers - dense_layers) as f64
            }
        };
        sent / LINK
    }
}
