//! The two forms of attention, from the cached latents, and what a tap may see and change of them.

use super::{Attention, Context};
use crate::model::Settings;
use crate::model::cache::Placement;
use crate::model::linear::product;
use crate::model::tap::Scope;
use crate::operators::gemm::batched;
use crate::operators::latent_read::{Pages, absorbed_scores, latent_cache_read, score_weights, weighted_values};
use crate::operators::mla_decode::{mla_decode, shared};
use crate::operators::mla_prefill::{attention_weights, mla_prefill};
use crate::operators::scratch::Scratch;
use crate::{Element, Result, Tensor};

impl Attention {
    /// Keys and values of every head, then plain attention (42, 44 to 46).
    pub(super) fn attend_expanded(
        &self,
        q: &Tensor,
        context: &Context,
        pages: &Tensor,
        out: &Tensor,
        tap: &mut Scope,
    ) -> Result<()> {
        let &Context { batch, new, settings, .. } = context;
        let Settings { variant, .. } = settings;
        let q = &q.unflatten(0, &[batch, new])?;
        let (latents, keys) = self.read_cache(context, pages, tap)?;
        let total = context.placement.longest;
        let kv = Tensor::empty(q.device(), q.element(), &[batch * total, self.heads * (self.nope + self.value)])?;
        product(settings, &latents.reshape(&[batch * total, self.latent])?, &self.kv_b_proj, None, &kv)?;
        tap.show("kv_b_proj", || kv.reshape(&[batch, total, self.heads * (self.nope + self.value)]))?;
        let kv = kv.reshape(&[batch, total, self.heads, self.nope + self.value])?;
        let (lengths, mask) = (Some(&context.placement.lengths), context.mask.as_ref());
        if let Some((scores, weights)) = self.tapped_weights(q, context, tap)? {
            attention_weights(q, &kv, &keys, lengths, mask, self.softmax_scale, &scores, &weights)?;
            if show_weights(&scores, &weights, tap)? {
                return weighted_values(&weights, &kv.narrow(3, self.nope..self.nope + self.value)?, out);
            }
        }
        let lse = Tensor::empty(q.device(), Element::F32, &[batch, new, self.heads])?;
        mla_prefill(variant, q, &kv, &keys, lengths, mask, self.softmax_scale, out, &lse)
    }

    /// Attention on the latents themselves: q' = W^UK^T q^C, then o = W^UV (sum_j p_j c_j).
    pub(super) fn attend_absorbed(
        &self,
        q: &Tensor,
        context: &Context,
        pages: &Tensor,
        out: &Tensor,
        tap: &mut Scope,
    ) -> Result<()> {
        let &Context { batch, new, settings, .. } = context;
        let Settings { variant, .. } = settings;
        let tokens = batch * new;
        let stage = tap.absolute(format_args!("past_key_values.{}", self.layer));
        if context.cached && (stage.wants("compressed_kv") || stage.wants("k_pe")) {
            self.read_cache(context, pages, tap)?;
        }
        // Head by head: [H,N,·] views of token-major tensors.
        let per_head = |x: &Tensor, width: usize| x.reshape(&[tokens, self.heads, width])?.permute(&[1, 0, 2]);
        let q_nope = q.narrow(2, 0..self.nope)?.permute(&[1, 0, 2])?;
        let q = &q.unflatten(0, &[batch, new])?;
        let (w_uk, w_uv) = self.w_uk_and_w_uv()?;

        let latent_shape = [batch, new, self.heads, self.latent];
        let q_latent = Tensor::empty(q.device(), q.element(), &latent_shape)?;
        batched(variant, &q_nope, &w_uk.permute(&[0, 2, 1])?, &per_head(&q_latent, self.latent)?)?;

        let q_pe = q.narrow(3, self.nope..self.nope + self.rope)?;
        let pages =
            Pages { cache: pages, block_table: &context.placement.block_table, lengths: &context.placement.lengths };
        let mask = context.mask.as_ref();
        let context_latent = Tensor::empty(q.device(), q.element(), &latent_shape)?;
        if let Some((scores, weights)) = self.tapped_weights(q, context, tap)? {
            absorbed_scores(&q_latent, &q_pe, &pages, mask, self.softmax_scale, &scores)?;
            score_weights(&scores, &weights)?;
            if show_weights(&scores, &weights, tap)? {
                let (latents, _) = self.gather(context, pages.cache)?;
                weighted_values(&weights, &latents, &context_latent)?;
                return batched(variant, &per_head(&context_latent, self.latent)?, &w_uv, &per_head(out, self.value)?);
            }
        }
        let capacity = pages.block_table.shape()[1] * pages.cache.shape()[1];
        let (numbers, counters) = shared(variant, [batch, new, self.heads, self.latent], self.rope, capacity);
        let scratch = Scratch::with_counters(q.device(), numbers, counters)?;
        let lse = Tensor::empty(q.device(), Element::F32, &[batch, new, self.heads])?;
        mla_decode(
            variant,
            &q_latent,
            &q_pe,
            pages.cache,
            pages.block_table,
            pages.lengths,
            mask,
            self.softmax_scale,
            &scratch,
            &context_latent,
            &lse,
        )?;
        batched(variant, &per_head(&context_latent, self.latent)?, &w_uv, &per_head(out, self.value)?)
    }

    /// All cached latents \[B,T,c\] and keys \[B,T,r\], one sequence after another; as stages, if the cache outlives the pass.
    fn read_cache(&self, context: &Context, pages: &Tensor, tap: &mut Scope) -> Result<(Tensor, Tensor)> {
        let (latents, keys) = self.gather(context, pages)?;
        if context.cached {
            let mut stage = tap.absolute(format_args!("past_key_values.{}", self.layer));
            let changed = stage.show("compressed_kv", || Ok(latents.clone()))?;
            if stage.show("k_pe", || Ok(keys.clone()))? || changed {
                let slots = context.placement.all_slots(pages.shape()[1])?;
                self.put(&latents, 0, &slots, pages)?;
                self.put(&keys, self.latent, &slots, pages)?;
            }
        }
        Ok((latents, keys))
    }

    fn gather(&self, context: &Context, pages: &Tensor) -> Result<(Tensor, Tensor)> {
        let total = context.placement.longest;
        let part = |width: usize| Tensor::empty(pages.device(), pages.element(), &[context.batch, total, width]);
        let (latents, keys) = (part(self.latent)?, part(self.rope)?);
        let Placement { block_table, lengths, .. } = &context.placement;
        latent_cache_read(context.settings.variant, &Pages { cache: pages, block_table, lengths }, &latents, &keys)?;
        Ok((latents, keys))
    }

    /// Room for scores and weights \[B,H,S,T\], if somebody wants to see them: the fused kernels have none.
    fn tapped_weights(&self, q: &Tensor, context: &Context, tap: &Scope) -> Result<Option<(Tensor, Tensor)>> {
        if !tap.wants("attn_scores") && !tap.wants("attn_weights") {
            return Ok(None);
        }
        let shape = [context.batch, self.heads, context.new, context.placement.longest];
        let room = |element| Tensor::empty(q.device(), element, &shape);
        Ok(Some((room(Element::F32)?, room(q.element())?)))
    }
}

/// Shows scores and their weights. Whether the weights are others now, so that the output has to be made of them.
fn show_weights(scores: &Tensor, weights: &Tensor, tap: &mut Scope) -> Result<bool> {
    let changed = tap.show("attn_scores", || Ok(scores.clone()))?;
    if changed {
        score_weights(scores, weights)?;
    }
    Ok(tap.show("attn_weights", || Ok(weights.clone()))? || changed)
}
