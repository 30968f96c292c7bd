//! Multi-head Latent Attention (paper 2.1, eq. 9 to 19; appendix C, eq. 37 to 47).
//!
//! | code | paper | shape |
//! |---|---|---|
//! | `q_a_proj`, `q_a_layernorm`, `q_b_proj` (or one `q_proj`) | W^DQ, W^UQ and W^QR | c^Q = \[B,S,q_lora_rank\], q = \[B,S,H(n+r)\] |
//! | `kv_a_proj_with_mqa`, `kv_a_layernorm` | W^DKV and W^KR | c^KV = \[B,S,c\], k^R = \[B,S,r\] |
//! | `kv_b_proj` | W^UK and W^UV, head by head: n rows of keys, then v rows of values | \[B,T,H(n+v)\] |
//! | `o_proj` | W^O | \[B,S,D\] |
//!
//! ```text
//! q_t = W^UQ RMS(W^DQ h_t)            = [q^C ; q^R] per head            (37-40)
//! [c^KV_t ; k^R_t] = W^DKV h_t,  c^KV = RMS(c^KV),  q^R, k^R = RoPE     (41, 43, 39)
//! [k^C_i ; v_i] = W^UKV_i c^KV                                         (42, 45)
//! score_ij = (q^C_i . k^C_j + q^R_i . k^R_j) * softmax_scale            (46)
//! o_i = sum_j softmax_j(score_ij) v_j,   u = W^O [o_1; ...; o_H]         (46, 47)
//! ```
//!
//! Only `c^KV` and `k^R` are cached. The keys and values can be *expanded* from them at each step, as above; or W^UK
//! can be *absorbed* into the query and W^UV into the output, so that attention runs on the latents themselves, as
//! multi-query attention with one head of width c + r:
//!
//! ```text
//! q'_i = W^UK_i^T q^C_i            q^C . (W^UK c) = (W^UK^T q^C) . c
//! score_ij = (q'_i . c_j + q^R_i . k^R_j) * softmax_scale
//! o_i = W^UV_i (sum_j p_ij c_j)    sum_j p_j (W^UV c_j) = W^UV (sum_j p_j c_j)
//! ```
//!
//! The two are equal (to 4e-16 in f64); expanded is cheaper for many new tokens, absorbed for one.
//!
//! **Trap.** The first token attends to itself only, so its output is W^UV c_0 whatever scale or rotation is used:
//! position 0 shows no such bug (onnxruntime/mobius#548: "exact at position 0, diverged later").

use std::sync::OnceLock;

use ndarray::{Array, Array2, Array3, Array4, ArrayView, ArrayView2, ArrayView3, Axis, RemoveAxis, Slice, s};
use rayon::prelude::*;

use crate::arithmetic::linear::Linear;
use crate::arithmetic::matmul::{matmul, matmul_t};
use crate::model::cache::{CacheFormat, LayerCache};
use crate::model::modules::pair_by_pair;
use crate::model::norm::{LATENT_NORM_EPS, RmsNorm};
use crate::model::rope::{RotaryTables, softmax_scale};
use crate::model::softmax::softmax;
use crate::stage::layer_path;
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Real, Result};

/// How attention is computed from the cached latents. Two forms of the same function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionForm {
    /// Expand keys and values of every head (`kv_b_proj`), then attend; what Transformers does.
    #[default]
    Expanded,
    /// Attend on the latents; W^UK goes into the query, W^UV into the output. Has no stage `kv_b_proj`.
    Absorbed,
}

#[derive(Debug)]
enum QueryProjection<T> {
    /// `q_lora_rank: null` (V2-Lite).
    Direct(Linear<T>),
    /// W^DQ, RMSNorm, W^UQ (V2).
    LowRank { q_a_proj: Linear<T>, q_a_layernorm: RmsNorm<T>, q_b_proj: Linear<T> },
}

/// W^UK and W^UV of every head, widened once, for the absorbed form.
#[derive(Debug)]
struct Absorbed<T> {
    /// \[n,c\] for each head.
    w_uk: Vec<Array2<T>>,
    /// \[v,c\] for each head.
    w_uv: Vec<Array2<T>>,
}

/// One layer's attention.
#[derive(Debug)]
pub struct DeepseekV2Attention<T> {
    query: QueryProjection<T>,
    kv_a_proj_with_mqa: Linear<T>,
    kv_a_layernorm: RmsNorm<T>,
    kv_b_proj: Linear<T>,
    o_proj: Linear<T>,
    absorbed: OnceLock<Absorbed<T>>,
    softmax_scale: T,
    layer: usize,
    num_heads: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    kv_lora_rank: usize,
    v_head_dim: usize,
}

/// What the other modules give to attention.
pub(crate) struct AttentionContext<'a, T> {
    /// Angles of the new tokens.
    pub rotary: &'a RotaryTables<T>,
    /// Additive mask \[B or 1,1,S,T\].
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
        Ok(DeepseekV2Attention {
            query,
            kv_a_proj_with_mqa: linear("kv_a_proj_with_mqa", latent_and_key, hidden_size, attention_bias)?,
            kv_a_layernorm: norm("kv_a_layernorm", kv_lora_rank)?,
            kv_b_proj: linear("kv_b_proj", keys_and_values, kv_lora_rank, false)?,
            o_proj: linear("o_proj", hidden_size, values, attention_bias)?,
            absorbed: OnceLock::new(),
            softmax_scale: T::from_f64(softmax_scale(config, dialect)?),
            layer,
            num_heads: num_attention_heads,
            qk_nope_head_dim: config.qk_nope_head_dim,
            qk_rope_head_dim: config.qk_rope_head_dim,
            kv_lora_rank,
            v_head_dim: config.v_head_dim,
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
        let (batch, length, _) = hidden.dim();
        let (q_nope, q_pe) = self.queries(hidden, context.rotary, tap);
        let (compressed_kv, k_pe) = self.latents(hidden, context.rotary, tap);

        // From here on the keys are those of all T tokens: the cached ones and the new ones.
        let mut new_tokens_only = LayerCache::new(batch, self.kv_lora_rank, self.qk_rope_head_dim, CacheFormat::Plain);
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
        let (attn_output, attn_weights) = match context.form {
            AttentionForm::Expanded => self.attend_expanded(q_nope, q_pe, latents, keys, context.bias, tap),
            AttentionForm::Absorbed => self.attend_absorbed(q_nope, q_pe, latents, keys, context.bias, tap),
        };
        // [B,H,S,v] -> [B,S,H v]: the heads' outputs side by side.
        let by_token = attn_output.permuted_axes([0, 2, 1, 3]);
        let mut attn_output = Array3::zeros((batch, length, self.num_heads * self.v_head_dim));
        attn_output
            .view_mut()
            .into_shape_with_order(by_token.raw_dim())
            .expect("H v numbers per token")
            .assign(&by_token);
        tap.real("attn_output", &mut attn_output);
        let mut output = self.o_proj.forward_3d(attn_output.view());
        tap.real("o_proj", &mut output);
        (output, attn_weights)
    }

    /// q^C \[B,H,S,n\] and the rotated q^R \[B,H,S,r\] (eq. 37 to 40). Of each head, the part without position comes
    /// first.
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
        let (batch, length, _) = q.dim();
        let q = q
            .into_shape_with_order((batch, length, self.num_heads, self.qk_nope_head_dim + self.qk_rope_head_dim))
            .expect("H (n + r) numbers per token")
            .permuted_axes([0, 2, 1, 3]);
        let q_nope = q.slice(s![.., .., .., ..self.qk_nope_head_dim]).as_standard_layout().into_owned();
        let mut q_pe = q.slice(s![.., .., .., self.qk_nope_head_dim..]).as_standard_layout().into_owned();
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

    /// Keys and values of every head, then plain multi-head attention: o \[B,H,S,v\] (eq. 42, 44 to 46).
    fn attend_expanded(
        &self,
        q_nope: Array4<T>,
        q_pe: Array4<T>,
        compressed_kv: ArrayView3<T>,
        k_pe: ArrayView3<T>,
        bias: &Array4<T>,
        tap: &mut Scope<T>,
    ) -> (Array4<T>, Array4<T>) {
        let mut keys_and_values = self.kv_b_proj.forward_3d(compressed_kv);
        tap.real("kv_b_proj", &mut keys_and_values);
        let (n, width) = (self.qk_nope_head_dim, self.qk_nope_head_dim + self.v_head_dim);
        let query = side_by_side(q_nope.view(), q_pe.view());

        let scores = self.for_each_head(&query, |b, h, query| {
            let k_nope = keys_and_values.slice(s![b, .., h * width..h * width + n]);
            let key = side_by_side(k_nope, k_pe.index_axis(Axis(0), b));
            matmul_t(query, key.view())
        });
        let weights = self.weigh(scores, bias, tap);
        let output = self.for_each_head(&weights, |b, h, weights| {
            matmul(weights, keys_and_values.slice(s![b, .., h * width + n..(h + 1) * width]))
        });
        (output, weights)
    }

    /// Attention on the latents, one shared "head" of keys and values: o \[B,H,S,v\].
    fn attend_absorbed(
        &self,
        q_nope: Array4<T>,
        q_pe: Array4<T>,
        compressed_kv: ArrayView3<T>,
        k_pe: ArrayView3<T>,
        bias: &Array4<T>,
        tap: &mut Scope<T>,
    ) -> (Array4<T>, Array4<T>) {
        let Absorbed { w_uk, w_uv } = self.absorbed.get_or_init(|| self.absorb());
        // q' = W^UK^T q^C: [S,n] [n,c] -> [S,c]
        let q_latent = self.for_each_head(&q_nope, |_, h, q_nope| matmul(q_nope, w_uk[h].view()));
        let scores = self
            .for_head_blocks(&q_latent, |b, q_latent| matmul_t(q_latent, compressed_kv.index_axis(Axis(0), b)))
            + self.for_head_blocks(&q_pe, |b, q_pe| matmul_t(q_pe, k_pe.index_axis(Axis(0), b)));
        let weights = self.weigh(scores, bias, tap);
        // sum_j p_ij c_j: [S,T] [T,c] -> [S,c], then W^UV
        let context =
            self.for_head_blocks(&weights, |b, weights| matmul(weights, compressed_kv.index_axis(Axis(0), b)));
        let output = self.for_each_head(&context, |_, h, context| matmul_t(context, w_uv[h].view()));
        (output, weights)
    }

    /// scores \[B,H,S,T\] -> scaled, masked (stage `attn_scores`), softmax (stage `attn_weights`).
    fn weigh(&self, mut scores: Array4<T>, bias: &Array4<T>, tap: &mut Scope<T>) -> Array4<T> {
        let scale = self.softmax_scale;
        pair_by_pair(&mut scores, bias, |score, &bias| *score = *score * scale + bias);
        tap.real("attn_scores", &mut scores);
        let keys = scores.len_of(Axis(3));
        scores.as_slice_mut().expect("standard layout").par_chunks_mut(keys).for_each(|row| softmax(row.into()));
        tap.real("attn_weights", &mut scores);
        scores
    }

    /// Applies `f(b, h, x[b,h])` to every sequence and head, in parallel: \[B,H,S,·\] -> \[B,H,S,·\].
    fn for_each_head(&self, x: &Array4<T>, f: impl Fn(usize, usize, ArrayView2<T>) -> Array2<T> + Sync) -> Array4<T> {
        stack(x, 1, |b, first_head, x| f(b, first_head, x))
    }

    /// The same for functions that do not depend on the head: heads share each read of the keys, a block at a time. More
    /// heads in a block are fewer reads, more blocks are work for more threads; what comes out is the same.
    fn for_head_blocks(&self, x: &Array4<T>, f: impl Fn(usize, ArrayView2<T>) -> Array2<T> + Sync) -> Array4<T> {
        let busy = |heads: &usize| x.len_of(Axis(0)) * self.num_heads / heads >= rayon::current_num_threads();
        let whole = |heads: &usize| self.num_heads.is_multiple_of(*heads);
        let heads_per_block = [8, 4, 2].into_iter().find(|heads| whole(heads) && busy(heads)).unwrap_or(1);
        stack(x, heads_per_block, |b, _, x| f(b, x))
    }

    fn absorb(&self) -> Absorbed<T> {
        let (n, v) = (self.qk_nope_head_dim, self.v_head_dim);
        let rows_of_head = |h: usize| h * (n + v)..(h + 1) * (n + v);
        let heads = (0..self.num_heads).map(|h| self.kv_b_proj.rows(rows_of_head(h)));
        let (w_uk, w_uv) = heads.map(|w| (w.slice(s![..n, ..]).to_owned(), w.slice(s![n.., ..]).to_owned())).unzip();
        Absorbed { w_uk, w_uv }
    }
}

/// [a ; b] along the last axis, in standard layout (which `ndarray::concatenate` does not promise).
fn side_by_side<T: Real, D: RemoveAxis>(a: ArrayView<T, D>, b: ArrayView<T, D>) -> Array<T, D> {
    let last = Axis(a.ndim() - 1);
    let (left, right) = (a.len_of(last), b.len_of(last));
    let mut shape = a.raw_dim();
    shape[last.index()] = left + right;
    let mut joined = Array::zeros(shape);
    joined.slice_axis_mut(last, Slice::from(..left)).assign(&a);
    joined.slice_axis_mut(last, Slice::from(left..)).assign(&b);
    joined
}

/// Cuts x \[B,H,S,·\] into blocks of `heads` heads, seen as \[heads S,·\]; applies `f(b, first head, block)` to all in
/// parallel; puts the results together again.
fn stack<T: Real>(
    x: &Array4<T>,
    heads: usize,
    f: impl Fn(usize, usize, ArrayView2<T>) -> Array2<T> + Sync,
) -> Array4<T> {
    let (batch, num_heads, length, width) = x.dim();
    let blocks: Vec<(usize, usize)> =
        (0..batch).flat_map(|b| (0..num_heads).step_by(heads).map(move |h| (b, h))).collect();
    let results: Vec<Array2<T>> = blocks
        .into_par_iter()
        .map(|(b, h)| {
            let block = x.slice(s![b, h..h + heads, .., ..]);
            let block = block.into_shape_with_order((heads * length, width)).expect("standard layout");
            f(b, h, block)
        })
        .collect();
    let columns = results.first().map_or(0, |r| r.ncols());
    let mut stacked = Array4::zeros((batch, num_heads, length, columns));
    let places = stacked.as_slice_mut().expect("standard layout").par_chunks_mut((heads * length * columns).max(1));
    places.zip(results).for_each(|(place, block)| place.copy_from_slice(block.as_slice().expect("standard layout")));
    stacked
}
