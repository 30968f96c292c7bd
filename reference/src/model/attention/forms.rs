//! Attention in two forms of one function, expanded and absorbed.
//!
//! *Expanded*: keys and values of every head are made from the cached latents, then it is plain multi-head attention.
//! *Absorbed*: W^UK goes into the query and W^UV into the output, so that attention runs on the latents themselves, as
//! multi-query attention with one head of width c + r:
//!
//! ```text
//! q'_i  = W^UK_i^T q^C_i
//! o_i   = W^UV_i (sum_j softmax_j((q'_i . c_j + q^R_i . k^R_j) softmax_scale) c_j)
//! ```
//!
//! The two are equal (to 4e-16 in f64). W^UKV is applied once to each of T keys in the one, to each of S queries in the
//! other; a pair of query and key costs 2 (n + r + v) = 640 flops a head in the one, 2 (2c + r) = 2176 in the other.
//! So for many queries *expanded* is the cheaper one, and for one *absorbed*: they meet at 1/S - 1/T = (2c - n - v) /
//! (c (n + v)) = 1/170.7, whatever the number of heads. The test `flops_of_both_forms` holds this table, one layer,
//! without the causal half and without the projections that both have:
//!
//! | GFLOP | expanded | absorbed | |
//! |---|---|---|---|
//! | S, T | 2H (c(n+v) T + (n+r+v) S T) | 2H (c(n+v) S + (2c+r) S T) | |
//! | V2: a prompt of 4096 tokens | 1511.8 | 4810.4 | 3.2 times |
//! | V2: one token after 4095 | 137.8 | 1.174 | 1/117 |
//! | V2-Lite: a prompt of 4096 tokens | 189.0 | 601.3 | 3.2 times |
//! | V2-Lite: one token after 4095 | 17.2 | 0.147 | 1/117 |

use std::sync::OnceLock;

use ndarray::{Array2, Array4, ArrayView2, ArrayView3, Axis, s};
use rayon::prelude::*;

use crate::Real;
use crate::arithmetic::map::pair_by_pair;
use crate::arithmetic::matmul::{matmul, matmul_t};
use crate::arithmetic::shares;
use crate::arithmetic::softmax::softmax;
use crate::model::heads::{for_each_head, for_head_blocks, side_by_side};
use crate::model::linear::Linear;
use crate::tap::Scope;

/// How attention is computed from the cached latents. Two forms of the same function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionForm {
    /// Expand keys and values of every head (`kv_b_proj`), then attend; what Transformers does.
    #[default]
    Expanded,
    /// Attend on the latents; W^UK goes into the query, W^UV into the output. Has no stage `kv_b_proj`.
    Absorbed,
}

/// W^UK and W^UV of every head, widened once, for the absorbed form.
#[derive(Debug)]
struct Absorbed<T> {
    /// \[n,c\] for each head.
    w_uk: Vec<Array2<T>>,
    /// \[v,c\] for each head.
    w_uv: Vec<Array2<T>>,
}

/// What one layer attends with: the new tokens' queries, and the latents and keys of all.
pub(super) struct Operands<'a, T> {
    /// q^C \[B,H,S,n\].
    pub q_nope: Array4<T>,
    /// q^R \[B,H,S,r\], rotated.
    pub q_pe: Array4<T>,
    /// c^KV \[B,T,c\].
    pub compressed_kv: ArrayView3<'a, T>,
    /// k^R \[B,T,r\], rotated.
    pub k_pe: ArrayView3<'a, T>,
    /// Additive mask \[B or 1,H or 1,S,T\].
    pub bias: &'a Array4<T>,
}

/// What stands between the projections: W^UK and W^UV, and the softmax.
#[derive(Debug)]
pub(super) struct LatentAttention<T> {
    kv_b_proj: Linear<T>,
    absorbed: OnceLock<Absorbed<T>>,
    softmax_scale: T,
    num_heads: usize,
    qk_nope_head_dim: usize,
}

impl<T: Real> LatentAttention<T> {
    pub(super) fn new(kv_b_proj: Linear<T>, softmax_scale: T, num_heads: usize, qk_nope_head_dim: usize) -> Self {
        LatentAttention { kv_b_proj, absorbed: OnceLock::new(), softmax_scale, num_heads, qk_nope_head_dim }
    }

    /// o \[B,H,S,v\] and the attention weights \[B,H,S,T\].
    pub(super) fn attend(
        &self,
        form: AttentionForm,
        operands: Operands<T>,
        tap: &mut Scope<T>,
    ) -> (Array4<T>, Array4<T>) {
        match form {
            AttentionForm::Expanded => self.attend_expanded(operands, tap),
            AttentionForm::Absorbed => self.attend_absorbed(operands, tap),
        }
    }

    /// n + v: the rows of W^UKV that belong to a head.
    fn rows_per_head(&self) -> usize {
        self.kv_b_proj.out_features() / self.num_heads
    }

    /// Keys and values of every head, then plain multi-head attention: o \[B,H,S,v\] (eq. 42, 44 to 46).
    fn attend_expanded(&self, operands: Operands<T>, tap: &mut Scope<T>) -> (Array4<T>, Array4<T>) {
        let Operands { q_nope, q_pe, compressed_kv, k_pe, bias } = operands;
        let mut keys_and_values = self.kv_b_proj.forward_3d(compressed_kv);
        tap.real("kv_b_proj", &mut keys_and_values);
        let (n, width) = (self.qk_nope_head_dim, self.rows_per_head());
        let query = side_by_side(q_nope.view(), q_pe.view());

        let scores = for_each_head(&query, compressed_kv.len_of(Axis(1)), |b, h, query| {
            let k_nope = keys_and_values.slice(s![b, .., h * width..h * width + n]);
            let key = side_by_side(k_nope, k_pe.index_axis(Axis(0), b));
            matmul_t(query, key.view())
        });
        let weights = self.weigh(scores, bias, tap);
        let output = for_each_head(&weights, width - n, |b, h, weights| {
            matmul(weights, keys_and_values.slice(s![b, .., h * width + n..(h + 1) * width]))
        });
        (output, weights)
    }

    /// Attention on the latents, one shared "head" of keys and values: o \[B,H,S,v\].
    fn attend_absorbed(&self, operands: Operands<T>, tap: &mut Scope<T>) -> (Array4<T>, Array4<T>) {
        let Operands { q_nope, q_pe, compressed_kv, k_pe, bias } = operands;
        let Absorbed { w_uk, w_uv } = self.absorbed.get_or_init(|| self.absorb());
        // q' = W^UK^T q^C: [S,n] [n,c] -> [S,c]
        let (_, t, c) = compressed_kv.dim();
        let q_latent = for_each_head(&q_nope, c, |_, h, q_nope| matmul(q_nope, w_uk[h].view()));
        let of_latents = |b, q_latent: ArrayView2<T>| matmul_t(q_latent, compressed_kv.index_axis(Axis(0), b));
        let of_positions = |b, q_pe: ArrayView2<T>| matmul_t(q_pe, k_pe.index_axis(Axis(0), b));
        let scores = for_head_blocks(&q_latent, t, of_latents) + for_head_blocks(&q_pe, t, of_positions);
        let weights = self.weigh(scores, bias, tap);
        // sum_j p_ij c_j: [S,T] [T,c] -> [S,c], then W^UV
        let context = for_head_blocks(&weights, c, |b, weights| matmul(weights, compressed_kv.index_axis(Axis(0), b)));
        let v = self.rows_per_head() - self.qk_nope_head_dim;
        let output = for_each_head(&context, v, |_, h, context| matmul_t(context, w_uv[h].view()));
        (output, weights)
    }

    /// scores \[B,H,S,T\] -> scaled, masked (stage `attn_scores`), softmax (stage `attn_weights`).
    fn weigh(&self, mut scores: Array4<T>, bias: &Array4<T>, tap: &mut Scope<T>) -> Array4<T> {
        let scale = self.softmax_scale;
        pair_by_pair(&mut scores, bias, |score, &bias| *score = *score * scale + bias);
        tap.real("attn_scores", &mut scores);
        let keys = scores.len_of(Axis(3));
        let rows = scores.as_slice_mut().expect("standard layout").par_chunks_mut(keys);
        // an exponential for each key
        rows.with_min_len(shares::least(16 * keys)).for_each(|row| softmax(row.into()));
        tap.real("attn_weights", &mut scores);
        scores
    }

    fn absorb(&self) -> Absorbed<T> {
        let (n, width) = (self.qk_nope_head_dim, self.rows_per_head());
        let heads = (0..self.num_heads).map(|h| self.kv_b_proj.rows(h * width..(h + 1) * width));
        let (w_uk, w_uv) = heads.map(|w| (w.slice(s![..n, ..]).to_owned(), w.slice(s![n.., ..]).to_owned())).unzip();
        Absorbed { w_uk, w_uv }
    }
}

#[cfg(test)]
mod tests {
    use crate::DeepseekV2Config;

    /// Flops of one layer between the projections that both forms have: S queries, T keys.
    fn flops(preset: &str, s: f64, t: f64) -> [f64; 2] {
        let config = DeepseekV2Config::preset(preset).unwrap();
        let [h, n, r, v, c] = [
            config.num_attention_heads,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            config.kv_lora_rank,
        ]
        .map(|size| size as f64);
        let expanded = 2.0 * h * (t * c * (n + v) + s * t * (n + r) + s * t * v);
        let absorbed = 2.0 * h * (s * n * c + s * t * (c + r) + s * t * c + s * c * v);
        [expanded, absorbed]
    }

    #[test]
    fn flops_of_both_forms() {
        assert_eq!(flops("v2", 4096.0, 4096.0), [1_511_828_488_192.0, 4_810_363_371_520.0]);
        assert_eq!(flops("v2", 1.0, 4096.0), [137_774_497_792.0, 1_174_405_120.0]);
        assert_eq!(flops("v2-lite", 4096.0, 4096.0), [188_978_561_024.0, 601_295_421_440.0]);
        assert_eq!(flops("v2-lite", 1.0, 4096.0), [17_221_812_224.0, 146_800_640.0]);
        for preset in ["v2", "v2-lite"] {
            let expanded_is_cheaper = |s: usize| flops(preset, s as f64, 1e9).is_sorted();
            assert!(!expanded_is_cheaper(170) && expanded_is_cheaper(171));
        }
    }
}
