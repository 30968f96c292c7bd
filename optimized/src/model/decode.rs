//! The decode step: a token of each sequence, as one list of launches that is captured once and launched as a whole.
//!
//! ```text
//! rotary, embedding, norm
//! each layer   [q, kv_a]                     one product                              linear_shared
//!              (and q_a_layernorm; q_b_proj) where queries have a latent              linear_rms_norm, linear_shared
//!              W_UK; norm, rotation, cache   queries in the latent space; latents,
//!                                            keys and queries                         latent_cache_write_beside
//!              attention                     on the pages                             mla_decode
//!              W_UV                                                                   batched
//!              o_proj, addition, norm                                                 linear_add_rms_norm
//!   experts    router, best experts, sorted                                           linear_route_and_sort
//!              gate, up                      the shared experts are one more          gate_up
//!              down                                                                   down
//!              sum, addition, norm           the next layer's norm                    combine_add_rms_norm
//!   dense      gate; up; product; down, addition and norm
//! logits, choice, advance
//! ```
//!
//! With many sequences a last block of a product does not go on with what is behind it: that is a launch of its own then.
//!
//! Every operator gives to the bit what those of [`Model::forward`](super::Model::forward) give, which may be looked at: the
//! tests hold both to one result. All room is taken before the capture; nothing comes from the host but the first step's
//! input, and nothing goes back but the tokens.

use std::sync::Arc;

use dsv2_reference::{DeepseekV2Config, Dialect};

use super::attention::AttentionRoom;
use super::cache::LatentCache;
use super::feed_forward::FeedForwardRoom;
use super::generate::Sampling;
use super::head::CausalLm;
use super::rotary::Frequencies;
use super::{Products, Settings};
use crate::device::Graph;
use crate::operators::advance::{Sequences, advance};
use crate::operators::argmax::{self, argmax_shared};
use crate::operators::embedding::embedding;
use crate::operators::gemm::{linear_shared, shared_numbers};
use crate::operators::mla_decode;
use crate::operators::rms_norm::rms_norm;
use crate::operators::rotary::rotary;
use crate::operators::sample::sample;
use crate::operators::scratch::Scratch;
use crate::{Device, Element, Result, Tensor, Variant};

/// Room for tensors: taken from a device, or only counted.
pub(super) type Take<'a, T> = &'a mut dyn FnMut(Element, &[usize]) -> Result<T>;

/// Whether a decode step is the same list of launches every time, so that it can be captured.
///
/// # Errors
/// If the config's rotary parameters are impossible.
pub(super) fn can_be_captured(config: &DeepseekV2Config, dialect: Dialect, settings: Settings) -> Result<bool> {
    let Settings { variant, products, .. } = settings;
    let ours = variant == Variant::Tuned && products == Products::Ours;
    Ok(ours && !config.mlp_bias && Frequencies::new(config, dialect)?.is_fixed())
}

/// The sizes of a step.
#[derive(Clone, Copy)]
pub(super) struct Sizes<'a> {
    pub(super) config: &'a DeepseekV2Config,
    pub(super) dialect: Dialect,
    pub(super) element: Element,
    pub(super) batch: usize,
    /// Keys of a sequence for which there are pages.
    pub(super) capacity: usize,
}

/// Everything that a step writes between its input and its tokens.
#[derive(Debug)]
pub(super) struct Room<T> {
    /// \[B,D\]
    hidden: T,
    pub(super) normed: T,
    /// \[B,r/2\] f32
    pub(super) cos: T,
    pub(super) sin: T,
    pub(super) attention: AttentionRoom<T>,
    pub(super) feed_forward: FeedForwardRoom<T>,
    /// \[B,V\]
    logits: T,
    /// \[B\] i32
    chosen: T,
}

impl<T> Room<T> {
    pub(super) fn new(sizes: Sizes, take: Take<T>) -> Result<Self> {
        let Sizes { config, element, batch, .. } = sizes;
        let (rows, half) = ([batch, config.hidden_size], config.qk_rope_head_dim / 2);
        Ok(Room {
            hidden: take(element, &rows)?,
            normed: take(element, &rows)?,
            cos: take(Element::F32, &[batch, half])?,
            sin: take(Element::F32, &[batch, half])?,
            attention: AttentionRoom::new(sizes, take)?,
            feed_forward: FeedForwardRoom::new(sizes, take)?,
            logits: take(element, &[batch, config.vocab_size])?,
            chosen: take(Element::I32, &[batch])?,
        })
    }
}

/// The numbers and the counters that blocks leave for each other, in the operator that takes most.
fn scratch_room(sizes: Sizes) -> (usize, usize) {
    let Sizes { config, dialect, element, batch, capacity } = sizes;
    let &DeepseekV2Config { hidden_size: hidden, num_attention_heads: heads, kv_lora_rank: latent, .. } = config;
    let of_query = heads * config.qk_head_dim();
    let first = config.q_lora_rank.unwrap_or(of_query) + latent + config.qk_rope_head_dim;
    let mut products = vec![(first, hidden), (hidden, heads * config.v_head_dim), (config.vocab_size, hidden)];
    products.extend(config.q_lora_rank.map(|rank| (of_query, rank)));
    for layer in 0..config.num_hidden_layers {
        match config.is_moe_layer(layer, dialect) {
            true => products.push((config.num_experts(), hidden)),
            false => products.extend([(config.intermediate_size, hidden), (hidden, config.intermediate_size)]),
        }
    }
    let of_products = products.into_iter().map(|(n, k)| shared_numbers(element, [batch, n, k])).max().unwrap_or(0);
    let of_products = of_products.max(argmax::shared_numbers(batch, config.vocab_size));
    let by_head = [batch, 1, heads, latent];
    let (numbers, counters) = mla_decode::shared(Variant::Tuned, by_head, config.qk_rope_head_dim, capacity);
    (of_products.max(numbers), Scratch::RESULTS.max(counters))
}

/// The bytes of a step's room, and of what is the same for all steps.
pub(super) fn bytes(sizes: Sizes, pages: usize, masked: bool, draws: usize) -> Result<usize> {
    let Sizes { batch, capacity, config, .. } = sizes;
    let mut all = 0usize;
    let mut count = |element: Element, shape: &[usize]| {
        all = all.saturating_add(shape.iter().fold(element.bytes(), |product, size| product.saturating_mul(*size)));
        Ok(())
    };
    Room::new(sizes, &mut count)?;
    let of_draws = if draws > 0 { draws.saturating_add(2) } else { 0 };
    let integers = batch.saturating_mul(pages.saturating_add(5).saturating_add(of_draws));
    let of_mask = if masked { batch.saturating_mul(capacity) } else { 0 };
    let (ends, (scratch, counters)) = (config.eos_token_ids().len(), scratch_room(sizes));
    let words = [integers, of_mask, scratch, counters, ends, config.qk_rope_head_dim / 2];
    // A tensor of nothing takes a byte.
    all = all.saturating_add([ends, scratch].into_iter().filter(|length| *length == 0).count());
    Ok(words.into_iter().fold(all, |sum, words| sum.saturating_add(words.saturating_mul(4))))
}

/// A decode step of some sequences, ready to be launched any number of times.
#[derive(Debug)]
pub(super) struct Decode {
    graph: Box<dyn Graph>,
    // A graph knows only where things are: these keep them there.
    start: Start,
    room: Room<Tensor>,
    _fixed: (Scratch, Tensor, Tensor),
}

/// The input of the first step, and what all steps have in common.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) sequences: Sequences,
    /// \[B,1,T\] f32: what hides padding.
    pub(super) mask: Option<Tensor>,
    /// Tokens that end a text; and what follows them.
    pub(super) ends: Vec<i32>,
    pub(super) filler: i32,
    pub(super) sampling: Sampling,
}

impl Decode {
    /// Captures the step of a model for which [`can_be_captured`] says yes.
    ///
    /// # Errors
    /// If there is no room, or the device refuses.
    pub(super) fn capture(lm: &CausalLm, cache: &LatentCache, start: Start) -> Result<Self> {
        let model = lm.model();
        let device: &Arc<dyn Device> = &model.device;
        let (batch, pages) = (start.sequences.tokens.len(), start.sequences.block_table.shape()[1]);
        let (config, dialect, element) = (&model.config, model.dialect, model.settings.element);
        let capacity = pages * cache.page_size();
        let sizes = Sizes { config, dialect, element, batch, capacity };
        let room = Room::new(sizes, &mut |element, shape| Tensor::empty(device, element, shape))?;
        let (numbers, counters) = scratch_room(sizes);
        let scratch = Scratch::with_counters(device, numbers, counters)?;
        let ends = Tensor::from_i32(device, &[start.ends.len()], &start.ends)?;
        // What these turn by does not depend on how long a text is.
        let frequencies = model.frequencies.of_call(0, &mut 0);
        let frequencies = Tensor::from_f32(device, Element::F32, &[frequencies.len()], &frequencies)?;
        let graph = device.clone().capture(&mut || {
            let step = Step { lm, cache, start: &start, room: &room, scratch: &scratch };
            step.launch(&frequencies, &ends)
        })?;
        Ok(Decode { graph, start, room, _fixed: (scratch, ends, frequencies) })
    }

    /// Takes a step: the tokens of all sequences.
    ///
    /// # Errors
    /// If a kernel failed.
    pub(super) fn step(&self) -> Result<Vec<i32>> {
        self.graph.launch()?;
        self.start.sequences.tokens.to_i32()
    }

    /// \[B,V\]: what the last step chose from.
    pub(super) fn logits(&self) -> &Tensor {
        &self.room.logits
    }
}

/// A step while it is captured.
struct Step<'a> {
    lm: &'a CausalLm,
    cache: &'a LatentCache,
    start: &'a Start,
    room: &'a Room<Tensor>,
    scratch: &'a Scratch,
}

impl Step<'_> {
    fn launch(&self, frequencies: &Tensor, ends: &Tensor) -> Result<()> {
        let (variant, model, room) = (Variant::Tuned, self.lm.model(), self.room);
        let Room { hidden, normed, cos, sin, logits, chosen, .. } = room;
        let Start { sequences, sampling, filler, .. } = self.start;
        let eps = model.config.rms_norm_eps as f32;
        rotary(variant, &sequences.positions, frequencies, model.frequencies.attention_factor, cos, sin)?;
        embedding(variant, &sequences.tokens, &model.embed_tokens, hidden)?;
        let first = model.layers.first().map_or(&model.norm, |layer| &layer.input_layernorm);
        rms_norm(variant, hidden, first, eps, normed)?;
        for (i, layer) in model.layers.iter().enumerate() {
            let stream = [hidden, &layer.post_attention_layernorm];
            layer.self_attn.step(room, self.start, self.cache.layer(i), self.scratch, stream, eps)?;
            let next = model.layers.get(i + 1).map_or(&model.norm, |layer| &layer.input_layernorm);
            layer.mlp.step(normed, &room.feed_forward, self.scratch, [hidden, next], eps)?;
        }
        linear_shared(self.scratch, normed, self.lm.lm_head(), None, logits)?;
        match (sampling, &sequences.draws) {
            (Sampling::TopP { temperature, top_p, .. }, Some(draws)) => {
                sample(variant, logits, *temperature, *top_p, &draws.next, chosen)?;
            }
            _ => argmax_shared(self.scratch, logits, chosen)?,
        }
        advance(sequences, chosen, ends, *filler, self.cache.page_size())
    }
}
