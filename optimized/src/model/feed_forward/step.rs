//! Feed-forward networks in a decode step, with the addition to the residual stream and the next norm behind them.

use super::{FeedForward, MixtureOfExperts, Mlp};
use crate::model::decode::{Sizes, Take};
use crate::operators::combine::combine_add_rms_norm;
use crate::operators::dispatch::linear_route_and_sort;
use crate::operators::scratch::Scratch;
use crate::operators::swiglu::gated;
use crate::{Element, Error, Result, Tensor, Variant};

/// What the networks write in a step, for each layer anew: those of both kinds, if a model has both.
#[derive(Debug)]
pub(in crate::model) struct FeedForwardRoom<T> {
    dense: Option<DenseRoom<T>>,
    experts: Option<ExpertsRoom<T>>,
}

#[derive(Debug)]
struct DenseRoom<T> {
    /// \[B,I\]
    gate: T,
    up: T,
}

#[derive(Debug)]
struct ExpertsRoom<T> {
    /// \[B,E\] f32
    logits: T,
    /// \[B,k\]: i32, f32
    indices: T,
    weights: T,
    /// \[E+1\], \[B k\], \[B k\] i32
    offsets: T,
    order: T,
    places: T,
    /// \[B k,I\], \[B k,D\]
    h: T,
    y: T,
    /// \[B,I'\], \[B,D\]
    shared: Option<(T, T)>,
}

impl<T> FeedForwardRoom<T> {
    pub(in crate::model) fn new(sizes: Sizes, take: Take<T>) -> Result<Self> {
        let Sizes { config, dialect, element, batch, .. } = sizes;
        let hidden = config.hidden_size;
        let mut room = FeedForwardRoom { dense: None, experts: None };
        if (0..config.num_hidden_layers).any(|layer| !config.is_moe_layer(layer, dialect)) {
            let width = config.intermediate_size;
            room.dense = Some(DenseRoom { gate: take(element, &[batch, width])?, up: take(element, &[batch, width])? });
        }
        if config.has_moe_layers(dialect) {
            let (experts, k, width) = (config.num_experts(), config.experts_per_token()?, config.moe_intermediate_size);
            let pairs = batch.saturating_mul(k);
            room.experts = Some(ExpertsRoom {
                logits: take(Element::F32, &[batch, experts])?,
                indices: take(Element::I32, &[batch, k])?,
                weights: take(Element::F32, &[batch, k])?,
                offsets: take(Element::I32, &[experts + 1])?,
                order: take(Element::I32, &[pairs])?,
                places: take(Element::I32, &[pairs])?,
                h: take(element, &[pairs, width])?,
                y: take(element, &[pairs, hidden])?,
                shared: match config.n_shared_experts {
                    None => None,
                    Some(_) => {
                        Some((take(element, &[batch, config.shared_width()])?, take(element, &[batch, hidden])?))
                    }
                },
            });
        }
        Ok(room)
    }
}

impl FeedForward {
    /// What the network makes of `normed` is added to `stream`, and that is normed with the gain of what comes next, into
    /// `normed`.
    pub(in crate::model) fn step(
        &self,
        normed: &Tensor,
        room: &FeedForwardRoom<Tensor>,
        scratch: &Scratch,
        [stream, gain]: [&Tensor; 2],
        eps: f32,
    ) -> Result<()> {
        match (self, &room.dense, &room.experts) {
            (FeedForward::Dense(mlp), Some(room), _) => mlp.step(normed, room, scratch, [stream, gain], eps),
            (FeedForward::Experts(experts), _, Some(room)) => {
                let shared = experts.step(normed, room, scratch)?;
                let ExpertsRoom { y, places, weights, .. } = room;
                combine_add_rms_norm(Variant::Tuned, y, places, weights, shared, stream, gain, eps, stream, normed)
            }
            _ => Err(Error::operand("decode", "room", "that of the layer's kind", "none")),
        }
    }
}

impl Mlp {
    fn step(
        &self,
        normed: &Tensor,
        room: &DenseRoom<Tensor>,
        scratch: &Scratch,
        [stream, gain]: [&Tensor; 2],
        eps: f32,
    ) -> Result<()> {
        let DenseRoom { gate, up } = room;
        self.gate_proj.forward_shared(scratch, normed, gate)?;
        self.up_proj.forward_shared(scratch, normed, up)?;
        gated(Variant::Tuned, self.activation, gate, up, gate)?;
        self.down_proj.forward_add_norm(scratch, gate, [stream, gain, normed], eps)
    }
}

impl MixtureOfExperts {
    /// A row for each token and expert, in `room`; and what the shared experts made.
    fn step<'a>(&self, x: &Tensor, room: &'a ExpertsRoom<Tensor>, scratch: &Scratch) -> Result<Option<&'a Tensor>> {
        let ExpertsRoom { logits, indices, weights, offsets, order, places, h, y, shared } = room;
        let gate = &self.gate;
        linear_route_and_sort(scratch, x, gate, &self.rule, logits, indices, weights, offsets, order, places)?;
        self.visit(Variant::Tuned, x, [offsets, order], self.rule.num_experts_per_tok(), [h, y], shared.as_ref())
    }
}
