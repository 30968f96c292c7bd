//! Multi-head Latent Attention (paper 2.1, eq. 9 to 19; appendix C, eq. 37 to 47).
//!
//! | code | paper | output | V2 | V2-Lite |
//! |---|---|---|---|---|
//! | `q_a_proj`, `q_a_layernorm` | W^DQ | c^Q = \[B,S,`q_lora_rank`\] | 1536 of 5120 | none |
//! | `q_b_proj`, or `q_proj` on h itself | W^UQ and W^QR, head by head: n rows, then r rows | \[B,S,H(n+r)\] | 128 (128 + 64) | 16 (128 + 64) |
//! | `kv_a_proj_with_mqa`, `kv_a_layernorm` | W^DKV, c rows, and W^KR, r rows | c^KV = \[B,S,c\], k^R = \[B,S,r\] | 512, 64 of 5120 | 512, 64 of 2048 |
//! | `kv_b_proj` | W^UK and W^UV, head by head: n rows, then v rows | \[B,T,H(n+v)\] | 128 (128 + 128) | 16 (128 + 128) |
//! | `o_proj` | W^O | \[B,S,D\] | 5120 of 128 · 128 | 2048 of 16 · 128 |
//!
//! ```text
//! c^Q_t = RMS(W^DQ h_t)                                                           (37)
//! q^C_t = W^UQ c^Q_t      q^R_t = RoPE_t(W^QR c^Q_t)      q_ti = [q^C_ti ; q^R_ti]      (38-40)
//! c_t   = RMS(W^DKV h_t)                                  c^KV; this is cached        (41)
//! k^C_t = W^UK c_t        k^R_t = RoPE_t(W^KR h_t)        k_ti = [k^C_ti ; k^R_t]       (42-44)
//! v_t   = W^UV c_t                                        k^R, one for all heads, too (45)
//! o_ti  = sum_j softmax_j(q_ti . k_ji softmax_scale) v_ji                         (46)
//! u_t   = W^O [o_t1 ; ... ; o_tH]                                                 (47)
//! ```
//!
//! # Why the key is decoupled
//!
//! Of a token, only `c_j` and `k^R_j` are cached: c + r = 576 numbers for all heads. Keys and values can be *expanded*
//! from them, as above. But W^UK may also go to the other side of the product, and then no key is ever made:
//!
//! ```text
//! q^C_t . k^C_j = (W^UQ c^Q_t)^T (W^UK c_j) = (W^UK^T W^UQ c^Q_t)^T c_j
//! ```
//!
//! With rotary embedding on these keys a rotation would stand in between, another one for each pair of positions:
//!
//! ```text
//! (R_t W^UQ c^Q_t)^T (R_j W^UK c_j) = c^Q_t^T W^UQ^T R_(j-t) W^UK c_j
//! ```
//!
//! It commutes with neither matrix, so W^UK could not be moved, and every cached token would have to be expanded at every
//! step. Therefore the position travels apart from the content: in r more numbers of each query, and in one key of r
//! numbers that all heads share and that comes from h, not from the latent (2.1.3).
//!
//! The two forms, expanded and absorbed, with their costs: [`forms`].
//!
//! **Trap.** The first token attends to itself only, so its output is W^UV c_0 whatever scale or rotation is used:
//! position 0 shows no such bug (onnxruntime/mobius#548: "exact at position 0, diverged later").

pub mod forms;

use ndarray::{Array3, Array4, ArrayView3, Axis, concatenate, s};

pub use forms::AttentionForm;
use forms::{LatentAttention, Operands};

use crate::model::cache::{CacheFormat, LayerCache};
use crate::model::heads::{merge_heads, split_heads};
use crate::model::linear::Linear;
use crate::model::norm::{LATENT_NORM_EPS, RmsNorm};
use crate::model::rope::{RotaryTables, softmax_scale};
use crate::stage::layer_path;
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Real, Result};

#[derive(Debug)]
enum QueryProjection<T> {
    /// `q_lora_rank: null` (V2-Lite).
    Direct(Linear<T>),
    /// W^DQ, RMSNorm, W^UQ (V2).
    LowRank { q_a_proj: Linear<T>, q_a_layernorm: RmsNorm<T>, q_b_proj: Linear<T> },
}

/// One layer's attention.
#[derive(Debug)]
pub struct DeepseekV2Attention<T> {
    query: QueryProjection<T>,
    kv_a_proj_with_mqa: Linear<T>,
    kv_a_layernorm: RmsNorm<T>,
    heads: LatentAttention<T>,
    o_proj: Linear<T>,
    layer: usize,
    num_heads: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    kv_lora_rank: usize,
}

/// What the other modules give to attention.
pub(crate) struct AttentionContext<'a, T> {
    /// Angles of the new tokens.
    pub rotary: &'a RotaryTables<T>,
    /// Additive mask \[B or 1,H or 1,S,T\].
    pub bias: &'a Array4<T>,
    /// Which form to compute.
    pub form: AttentionForm,
}

impl<T: Real> DeepseekV2Attention<T> {
    /// Takes `{path}.q_proj.weight` and so on from `weights`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape than the config implies.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, layer: usize, weights: &dyn WeightSource) -> Result<Self> {
        let path = format!("{}.self_attn", layer_path(layer));
        // `attention_bias` puts a bias on exactly three projections.
        let linear =
            |name: &str, rows, columns, bias| Linear::load(weights, &format!("{path}.{name}"), rows, columns, bias);
        let norm = |name: &str, width| RmsNorm::load(weights, &format!("{path}.{name}"), width, LATENT_NORM_EPS);
        let DeepseekV2Config { hidden_size, num_attention_heads, kv_lora_rank, attention_bias, .. } = *config;
        let q_rows = num_attention_heads * config.qk_head_dim();
        let query = match config.q_lora_rank {
            None => QueryProjection::Direct(linear("q_proj", q_rows, hidden_size, false)?),
            Some(rank) => QueryProjection::LowRank {
                q_a_proj: linear("q_a_proj", rank, hidden_size, attention_bias)?,
                q_a_layernorm: norm("q_a_layernorm", rank)?,
                q_b_proj: linear("q_b_proj", q_rows, rank, false)?,
            },
        };
        let latent_and_key = kv_lora_rank + config.qk_rope_head_dim;
        let keys_and_values = num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim);
        let values = num_attention_heads * config.v_head_dim;
        let kv_a_proj_with_mqa = linear("kv_a_proj_with_mqa", latent_and_key, hidden_size, attention_bias)?;
        let kv_a_layernorm = norm("kv_a_layernorm", kv_lora_rank)?;
        let kv_b_proj = linear("kv_b_proj", keys_and_values, kv_lora_rank, false)?;
        let o_proj = linear("o_proj", hidden_size, values, attention_bias)?;
        let scale = T::from_f64(softmax_scale(config, dialect)?);
        Ok(DeepseekV2Attention {
            query,
            kv_a_proj_with_mqa,
            kv_a_layernorm,
            heads: LatentAttention::new(kv_b_proj, scale, num_attention_heads, config.qk_nope_head_dim),
            o_proj,
            layer,
            num_heads: num_attention_heads,
            qk_nope_head_dim: config.qk_nope_head_dim,
            qk_rope_head_dim: config.qk_rope_head_dim,
            kv_lora_rank,
        })
    }

    /// u = W^O o for `hidden` \[B,S,D\] -> \[B,S,D\], and the attention weights \[B,H,S,T\].
    pub(crate) fn forward(
        &self,
        hidden: ArrayView3<T>,
        context: &AttentionContext<T>,
        cache: Option<&mut LayerCache<T>>,
        tap: &mut Scope<T>,
    ) -> (Array3<T>, Array4<T>) {
        let (q_nope, q_pe) = self.queries(hidden, context.rotary, tap);
        let (compressed_kv, k_pe) = self.latents(hidden, context.rotary, tap);

        // From here on the keys are those of all T tokens: the cached ones and the new ones.
        let mut new_tokens_only =
            LayerCache::new(hidden.len_of(Axis(0)), self.kv_lora_rank, self.qk_rope_head_dim, CacheFormat::Plain);
        let is_cached = cache.is_some();
        let cache = cache.unwrap_or(&mut new_tokens_only);
        cache.append(compressed_kv.view(), k_pe.view());
        let mut decoded = None;
        let (mut latents, mut keys) = cache.read(&mut decoded);
        if is_cached {
            let mut stage = tap.root_child(format!("past_key_values.{}", self.layer));
            stage.view("compressed_kv", latents.view_mut());
            stage.view("k_pe", keys.view_mut());
        }
        let (latents, keys) = (latents.view(), keys.view());
        let operands = Operands { q_nope, q_pe, compressed_kv: latents, k_pe: keys, bias: context.bias };
        let (attn_output, attn_weights) = self.heads.attend(context.form, operands, tap);
        let mut attn_output = merge_heads(attn_output);
        tap.real("attn_output", &mut attn_output);
        let mut output = self.o_proj.forward_3d(attn_output.view());
        tap.real("o_proj", &mut output);
        (output, attn_weights)
    }

    /// The same for sequences that have caches of their own, and as many tokens in them as they like: `caches[b]`, of one
    /// sequence, is that of row b of `hidden` \[B,1,D\]. Absorbed form. The projections see all rows at once, so that each weight is
    /// read once; the attention of each sequence is computed apart, so that no padding is needed. Row b is, bit for bit,
    /// what [`DeepseekV2Attention::forward`] says of it alone.
    pub(crate) fn forward_each(
        &self,
        hidden: ArrayView3<T>,
        rotary: &RotaryTables<T>,
        caches: &mut [&mut LayerCache<T>],
        tap: &mut Scope<T>,
    ) -> Array3<T> {
        let (q_nope, q_pe) = self.queries(hidden, rotary, tap);
        let (compressed_kv, k_pe) = self.latents(hidden, rotary, tap);
        let mut outputs = Vec::with_capacity(caches.len());
        for (b, cache) in caches.iter_mut().enumerate() {
            cache.append(compressed_kv.slice(s![b..=b, .., ..]), k_pe.slice(s![b..=b, .., ..]));
            let mut decoded = None;
            let (mut latents, mut keys) = cache.read(&mut decoded);
            let mut stage = tap.root_child(format!("past_key_values.{}", self.layer));
            stage.view("compressed_kv", latents.view_mut());
            stage.view("k_pe", keys.view_mut());
            let (latents, keys) = (latents.view(), keys.view());
            // a single new token sees all that are cached
            let bias = &Array4::zeros((1, 1, 1, keys.len_of(Axis(1))));
            let of_row = |q: &Array4<T>| q.slice(s![b..=b, .., .., ..]).to_owned();
            let operands =
                Operands { q_nope: of_row(&q_nope), q_pe: of_row(&q_pe), compressed_kv: latents, k_pe: keys, bias };
            outputs.push(merge_heads(self.heads.attend(AttentionForm::Absorbed, operands, tap).0));
        }
        let rows: Vec<_> = outputs.iter().map(|row| row.view()).collect();
        let mut attn_output = concatenate(Axis(0), &rows).expect("rows of one width");
        tap.real("attn_output", &mut attn_output);
        let mut output = self.o_proj.forward_3d(attn_output.view());
        tap.real("o_proj", &mut output);
        output
    }

    /// q^C \[B,H,S,n\] and the rotated q^R \[B,H,S,r\] (eq. 37 to 40).
    fn queries(&self, hidden: ArrayView3<T>, rotary: &RotaryTables<T>, tap: &mut Scope<T>) -> (Array4<T>, Array4<T>) {
        let q = match &self.query {
            QueryProjection::Direct(q_proj) => {
                let mut q = q_proj.forward_3d(hidden);
                tap.real("q_proj", &mut q);
                q
            }
            QueryProjection::LowRank { q_a_proj, q_a_layernorm, q_b_proj } => {
                let mut latent = q_a_proj.forward_3d(hidden);
                tap.real("q_a_proj", &mut latent);
                let mut latent = q_a_layernorm.forward_3d(latent.view());
                tap.real("q_a_layernorm", &mut latent);
                let mut q = q_b_proj.forward_3d(latent.view());
                tap.real("q_b_proj", &mut q);
                q
            }
        };
        let (q_nope, mut q_pe) = split_heads(q, self.num_heads, self.qk_nope_head_dim);
        rotary.rotate(&mut q_pe);
        tap.real("q_pe", &mut q_pe);
        (q_nope, q_pe)
    }

    /// The new tokens' c^KV \[B,S,c\], normed, and k^R \[B,S,r\], rotated: one key for all heads (eq. 41 and 43).
    fn latents(&self, hidden: ArrayView3<T>, rotary: &RotaryTables<T>, tap: &mut Scope<T>) -> (Array3<T>, Array3<T>) {
        let mut latent_and_key = self.kv_a_proj_with_mqa.forward_3d(hidden);
        tap.real("kv_a_proj_with_mqa", &mut latent_and_key);
        let mut compressed_kv = self.kv_a_layernorm.forward_3d(latent_and_key.slice(s![.., .., ..self.kv_lora_rank]));
        tap.real("kv_a_layernorm", &mut compressed_kv);
        let k_pe = latent_and_key.slice(s![.., .., self.kv_lora_rank..]);
        let mut k_pe = k_pe.insert_axis(Axis(1)).as_standard_layout().into_owned();
        rotary.rotate(&mut k_pe);
        tap.real("k_pe", &mut k_pe);
        (compressed_kv, k_pe.index_axis_move(Axis(1), 0))
    }
}
