//! Multi-head Latent Attention on the device (paper 2.1, eq. 37 to 47), from the cached latents in one of two forms.
//!
//! *Expanded*: keys and values of every head are made from all cached latents, then ordinary attention; cheaper for many
//! new tokens. *Absorbed*: W^UK goes into the query and W^UV into the output, and attention reads the pages themselves;
//! cheaper for a few. No weight is copied for it: W^UK and W^UV are views of `kv_b_proj`.

mod forms;
mod step;

use std::sync::Arc;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::layer_path;

use super::Settings;
use super::cache::Placement;
use super::linear::Linear;
use super::parallel::Share;
use super::rotary::softmax_scale;
use super::tap::Scope;
use super::weights::Loader;
use crate::operators::latent::latent_cache_write;
use crate::operators::rms_norm::rms_norm;
use crate::operators::rope::rope;
use crate::{Result, Tensor};
pub(super) use step::AttentionRoom;

/// The norms inside attention have this epsilon whatever the config says.
const LATENT_NORM_EPS: f32 = 1e-6;

#[derive(Debug)]
pub(super) struct Attention {
    query: Query,
    /// `q_proj` (or `q_a_proj`) and `kv_a_proj_with_mqa`: both are made of the same input.
    qkv_a: Linear,
    /// Columns of the first of them.
    of_query: usize,
    kv_a_layernorm: Tensor,
    /// \[H(n+v), c\]
    kv_b_proj: Tensor,
    o_proj: Linear,
    softmax_scale: f32,
    layer: usize,
    /// What a rank has of the heads, if there are several.
    share: Option<Arc<Share>>,
    /// H, n, r, v, c
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
    latent: usize,
}

#[derive(Debug)]
enum Query {
    Direct,
    LowRank(Box<LowRank>),
}

#[derive(Debug)]
struct LowRank {
    q_a_layernorm: Tensor,
    q_b_proj: Linear,
}

/// What is the same for all layers of a forward pass.
pub(super) struct Context {
    pub(super) batch: usize,
    pub(super) new: usize,
    pub(super) settings: Settings,
    pub(super) form: AttentionForm,
    /// \[N,r/2\]
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    /// \[B,S,T\]
    pub(super) mask: Option<Tensor>,
    pub(super) placement: Placement,
    /// Whether the cache outlives the pass.
    pub(super) cached: bool,
}

impl Attention {
    pub(super) fn load(loader: &mut Loader, layer: usize) -> Result<Self> {
        let &mut Loader { config, dialect, .. } = loader;
        let path = format!("{}.self_attn", layer_path(layer));
        let &DeepseekV2Config { hidden_size, num_attention_heads: heads, kv_lora_rank: latent, attention_bias, .. } =
            config;
        let &DeepseekV2Config { qk_nope_head_dim: nope, qk_rope_head_dim: rope, v_head_dim: value, .. } = config;
        let kv_a = (format!("{path}.kv_a_proj_with_mqa"), latent + rope, attention_bias);
        let (of_query, query) = match config.q_lora_rank {
            None => ((format!("{path}.q_proj"), heads * (nope + rope), false), Query::Direct),
            Some(rank) => {
                let low_rank = LowRank {
                    q_a_layernorm: loader.load(&format!("{path}.q_a_layernorm.weight"), &[rank])?,
                    q_b_proj: Linear::load(loader, &format!("{path}.q_b_proj"), heads * (nope + rope), rank, false)?,
                };
                ((format!("{path}.q_a_proj"), rank, attention_bias), Query::LowRank(Box::new(low_rank)))
            }
        };
        Ok(Attention {
            query,
            of_query: of_query.1,
            qkv_a: Linear::stacked(loader, hidden_size, &[of_query, kv_a])?,
            kv_a_layernorm: loader.load(&format!("{path}.kv_a_layernorm.weight"), &[latent])?,
            kv_b_proj: loader.load(&format!("{path}.kv_b_proj.weight"), &[heads * (nope + value), latent])?,
            o_proj: Linear::load(loader, &format!("{path}.o_proj"), hidden_size, heads * value, attention_bias)?,
            softmax_scale: softmax_scale(config, dialect)?,
            layer,
            share: loader.share.clone(),
            heads,
            nope,
            rope,
            value,
            latent,
        })
    }

    /// W^UK \[H,n,c\] and W^UV \[H,v,c\]: views of `kv_b_proj`.
    fn w_uk_and_w_uv(&self) -> Result<(Tensor, Tensor)> {
        let w = self.kv_b_proj.reshape(&[self.heads, self.nope + self.value, self.latent])?;
        Ok((w.narrow(1, 0..self.nope)?, w.narrow(1, self.nope..self.nope + self.value)?))
    }

    /// u = W^O o: \[N,D\] -> \[N,D\]. The new latents and keys are put into `pages`.
    pub(super) fn forward(
        &self,
        normed: &Tensor,
        context: &Context,
        pages: &Tensor,
        scope: &mut Scope,
    ) -> Result<Tensor> {
        let &Context { batch, new, settings, .. } = context;
        let tap = &mut scope.child("self_attn");
        let qkv_a = self.qkv_a.forward(settings, normed)?;
        let (of_query, width) = (self.of_query, qkv_a.shape()[1]);
        let q = self.queries(&qkv_a.narrow(1, 0..of_query)?, context, tap)?;
        self.cache_new_tokens(&qkv_a.narrow(1, of_query..width)?, context, pages, tap)?;
        drop(qkv_a);
        let out = Tensor::empty(q.device(), q.element(), &[batch, new, self.heads, self.value])?;
        match context.form {
            AttentionForm::Expanded => self.attend_expanded(&q, context, pages, &out, tap)?,
            AttentionForm::Absorbed => self.attend_absorbed(&q, context, pages, &out, tap)?,
        }
        let by_sequence = [batch, new, self.heads * self.value];
        tap.show("attn_output", || out.reshape(&by_sequence))?;
        let output = self.o_proj.forward(settings, &out.reshape(&[batch * new, self.heads * self.value])?)?;
        if let Some(share) = &self.share {
            share.sum(&format!("{}.self_attn.o_proj", layer_path(self.layer)), &output)?;
        }
        tap.show("o_proj", || output.reshape(&[batch, new, output.shape()[1]]))?;
        Ok(output)
    }

    /// q = [q^C ; q^R] per head, q^R rotated (37 to 40), of q or of its latent \[N,.\]: \[N,H,n+r\].
    fn queries(&self, first: &Tensor, context: &Context, tap: &mut Scope) -> Result<Tensor> {
        let &Context { batch, new, settings, .. } = context;
        let Settings { variant, .. } = settings;
        let by_sequence = |x: &Tensor| x.unflatten(0, &[batch, new]);
        let q = match &self.query {
            Query::Direct => {
                tap.show("q_proj", || by_sequence(first))?;
                first.clone()
            }
            Query::LowRank(projections) => {
                let LowRank { q_a_layernorm, q_b_proj } = &**projections;
                tap.show("q_a_proj", || by_sequence(first))?;
                let compressed = Tensor::empty(first.device(), first.element(), first.shape())?;
                rms_norm(variant, first, q_a_layernorm, LATENT_NORM_EPS, &compressed)?;
                tap.show("q_a_layernorm", || by_sequence(&compressed))?;
                let q = q_b_proj.forward(settings, &compressed)?;
                tap.show("q_b_proj", || by_sequence(&q))?;
                q
            }
        };
        let q = q.unflatten(1, &[self.heads, self.nope + self.rope])?;
        let q_pe = q.narrow(2, self.nope..self.nope + self.rope)?;
        rope(variant, &q_pe, &context.cos, &context.sin, &q_pe)?;
        tap.show("q_pe", || by_sequence(&q_pe)?.permute(&[0, 2, 1, 3]))?;
        Ok(q)
    }

    /// c^KV, normed, and k^R, rotated, of the new tokens go into the pages (41 and 43).
    fn cache_new_tokens(
        &self,
        latent_and_key: &Tensor,
        context: &Context,
        pages: &Tensor,
        tap: &mut Scope,
    ) -> Result<()> {
        let &Context { batch, new, settings, .. } = context;
        let Settings { variant, .. } = settings;
        let (device, element) = (latent_and_key.device(), latent_and_key.element());
        tap.show("kv_a_proj_with_mqa", || latent_and_key.unflatten(0, &[batch, new]))?;
        let seen = |stage: &str, width: usize| {
            tap.wants(stage).then(|| Tensor::empty(device, element, &[batch * new, width])).transpose()
        };
        let (latents, keys) = (seen("kv_a_layernorm", self.latent)?, seen("k_pe", self.rope)?);
        latent_cache_write(
            variant,
            latent_and_key,
            &self.kv_a_layernorm,
            LATENT_NORM_EPS,
            &context.cos,
            &context.sin,
            &context.placement.slots,
            pages,
            latents.as_ref(),
            keys.as_ref(),
            None,
        )?;
        if let Some(latents) = latents
            && tap.show("kv_a_layernorm", || latents.reshape(&[batch, new, self.latent]))?
        {
            self.put(&latents, 0, &context.placement.slots.to_i32()?, pages)?;
        }
        if let Some(keys) = keys
            && tap.show("k_pe", || keys.reshape(&[batch, 1, new, self.rope]))?
        {
            self.put(&keys, self.latent, &context.placement.slots.to_i32()?, pages)?;
        }
        Ok(())
    }

    /// What a tap changed goes into the pages: a row for each slot (none where it is negative), from column `column` on.
    fn put(&self, values: &Tensor, column: usize, slots: &[i32], pages: &Tensor) -> Result<()> {
        let places = pages.reshape(&[pages.shape()[0] * pages.shape()[1], pages.shape()[2]])?;
        let width = values.shape().last().copied().unwrap_or(0);
        let values = values.to_f32()?;
        for (slot, values) in slots.iter().zip(values.chunks(width.max(1))).filter(|(slot, _)| **slot >= 0) {
            let slot = *slot as usize;
            places.narrow(0, slot..slot + 1)?.narrow(1, column..column + width)?.write_f32(values)?;
        }
        Ok(())
    }
}
