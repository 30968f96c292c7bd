//! Attention in a decode step: the launches of the absorbed form, in room that is there already.

use super::{Attention, LATENT_NORM_EPS, Query};
use crate::model::decode::{Room, Sizes, Start, Take};
use crate::operators::gemm::batched;
use crate::operators::latent::latent_cache_write_beside;
use crate::operators::mla_decode::mla_decode;
use crate::operators::scratch::Scratch;
use crate::{Element, Result, Tensor, Variant};

/// What attention writes in a step, for each layer anew.
#[derive(Debug)]
pub(in crate::model) struct AttentionRoom<T> {
    /// \[B,Q+c+r\], where Q is the width of the queries or of their latent
    qkv_a: T,
    /// Where queries have a latent: that normed, and the queries \[B,H(n+r)\].
    low_rank: Option<(T, T)>,
    /// \[B,1,H,c\]: queries, and results.
    q_latent: T,
    context_latent: T,
    /// \[B,1,H\] f32
    lse: T,
    /// \[B,H,v\]
    heads: T,
}

impl<T> AttentionRoom<T> {
    pub(in crate::model) fn new(sizes: Sizes, take: Take<T>) -> Result<Self> {
        let Sizes { config, element, batch, .. } = sizes;
        let (heads, latent, rope) = (config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim);
        let of_query = heads * config.qk_head_dim();
        let first = config.q_lora_rank.unwrap_or(of_query) + latent + rope;
        let by_head = [batch, 1, heads, latent];
        Ok(AttentionRoom {
            qkv_a: take(element, &[batch, first])?,
            low_rank: match config.q_lora_rank {
                None => None,
                Some(rank) => Some((take(element, &[batch, rank])?, take(element, &[batch, of_query])?)),
            },
            q_latent: take(element, &by_head)?,
            context_latent: take(element, &by_head)?,
            lse: take(Element::F32, &by_head[..3])?,
            heads: take(element, &[batch, heads, config.v_head_dim])?,
        })
    }
}

impl Attention {
    /// u = W^O o of a token of each sequence, \[B,D\], is added to `stream`, and that is normed with the gain of what comes next,
    /// into `normed`. The new latents and keys are put into `pages`.
    pub(in crate::model) fn step(
        &self,
        room: &Room<Tensor>,
        start: &Start,
        pages: &Tensor,
        scratch: &Scratch,
        [stream, gain_of_next]: [&Tensor; 2],
        eps: f32,
    ) -> Result<()> {
        let (variant, sequences) = (Variant::Tuned, &start.sequences);
        let Room { normed, cos, sin, attention, .. } = room;
        let AttentionRoom { qkv_a, low_rank, q_latent, context_latent, lse, heads } = attention;
        let batch = qkv_a.shape()[0];
        let first = qkv_a.narrow(1, 0..self.of_query)?;
        let q = match (&self.query, low_rank) {
            (Query::LowRank(projections), Some((compressed, q))) => {
                let norm = [&projections.q_a_layernorm, compressed];
                self.qkv_a.forward_norm(scratch, normed, qkv_a, norm, LATENT_NORM_EPS)?;
                projections.q_b_proj.forward_shared(scratch, compressed, q)?;
                q
            }
            _ => {
                self.qkv_a.forward_shared(scratch, normed, qkv_a)?;
                &first
            }
        };
        let q = q.unflatten(1, &[self.heads, self.nope + self.rope])?;
        let q_pe = q.narrow(2, self.nope..self.nope + self.rope)?;
        let kv_a = qkv_a.narrow(1, self.of_query..qkv_a.shape()[1])?;
        // Head by head: [H,B,·] views of token-major tensors.
        let per_head = |x: &Tensor, width: usize| x.reshape(&[batch, self.heads, width])?.permute(&[1, 0, 2]);
        let (w_uk, w_uv) = self.w_uk_and_w_uv()?;
        let q_nope = q.narrow(2, 0..self.nope)?.permute(&[1, 0, 2])?;
        let absorbed = [&q_nope, &w_uk.permute(&[0, 2, 1])?, &per_head(q_latent, self.latent)?];
        let (gain, slots) = (&self.kv_a_layernorm, &sequences.slots);
        latent_cache_write_beside(&kv_a, gain, LATENT_NORM_EPS, cos, sin, slots, pages, &q_pe, absorbed)?;

        mla_decode(
            variant,
            q_latent,
            &q_pe.unflatten(0, &[batch, 1])?,
            pages,
            &sequences.block_table,
            &sequences.lengths,
            start.mask.as_ref(),
            self.softmax_scale,
            scratch,
            context_latent,
            lse,
        )?;
        batched(variant, &per_head(context_latent, self.latent)?, &w_uv, &per_head(heads, self.value)?)?;
        let heads = heads.reshape(&[batch, self.heads * self.value])?;
        self.o_proj.forward_add_norm(scratch, &heads, [stream, gain_of_next, normed], eps)
    }
}
