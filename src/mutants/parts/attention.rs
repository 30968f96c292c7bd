//! Queries, keys and values of every head.

use dsv2_reference::model::rope::RotaryTables;
use dsv2_reference::stage::{self, table};
use ndarray::{Array2, Array3, Array4, ArrayD, ArrayView2, ArrayView3, Axis, s};

use crate::mutants::arithmetic::{exact, product};
use crate::mutants::scene::Scene;

/// What the scores are computed from.
pub struct Heads {
    /// The queries' part without position, `[B,H,S,n]`.
    pub q_nope: Array4<f64>,
    /// Their rotated part, `[B,H,S,r]`.
    pub q_pe: Array4<f64>,
    /// The keys' part without position, `[B,H,T,n]`.
    pub k_nope: Array4<f64>,
    /// Their rotated part, of all heads, `[B,T,r]`.
    pub k_pe: Array3<f64>,
}

impl Heads {
    /// The scores of the part without position, `[B,H,S,T]`.
    pub fn nope_scores(&self) -> Array4<f64> {
        products(&self.q_nope, |b, h| self.k_nope.slice(s![b, h, .., ..]))
    }

    /// The scores of the rotated part, `[B,H,S,T]`.
    pub fn pe_scores(&self) -> Array4<f64> {
        products(&self.q_pe, |b, _| self.k_pe.index_axis(Axis(0), b))
    }

    /// q·k, not yet scaled.
    pub fn scores(&self) -> Array4<f64> {
        self.nope_scores() + self.pe_scores()
    }
}

/// `[B,H,S,d]` and the keys `[T,d]` of each sequence and head to `[B,H,S,T]`.
fn products<'k>(q: &Array4<f64>, keys: impl Fn(usize, usize) -> ArrayView2<'k, f64>) -> Array4<f64> {
    let (batch, heads, length, _) = q.dim();
    let mut scores = Array4::zeros((batch, heads, length, keys(0, 0).nrows()));
    for b in 0..batch {
        for h in 0..heads {
            scores.slice_mut(s![b, h, .., ..]).assign(&product(q.slice(s![b, h, .., ..]), keys(b, h), exact));
        }
    }
    scores
}

impl Scene<'_> {
    /// Queries before the rotation, `[B,H,S,n+r]`.
    pub fn queries(&self, layer: usize) -> Option<Array4<f64>> {
        by_head(self.flat_queries(layer)?.view(), self.config().num_attention_heads)
    }

    /// The same head after head, `[B,S,H(n+r)]`.
    pub fn flat_queries(&self, layer: usize) -> Option<Array3<f64>> {
        self.real3(table::Q_PROJ, layer).or_else(|| self.real3(table::Q_B_PROJ, layer))
    }

    /// Latents of all tokens, `[B,T,c]`.
    pub fn latents(&self, layer: usize) -> Option<Array3<f64>> {
        self.real3(table::CACHED_KV, layer).or_else(|| self.real3(table::KV_A_LAYERNORM, layer))
    }

    /// Rotated keys of all tokens, `[B,T,r]`.
    pub fn rotated_keys(&self, layer: usize) -> Option<Array3<f64>> {
        let cached = self.real3(table::CACHED_K_PE, layer);
        cached.or_else(|| Some(self.real4(table::K_PE, layer)?.index_axis_move(Axis(1), 0)))
    }

    /// The new tokens' keys before the rotation, `[B,1,S,r]`.
    pub fn unrotated_keys(&self, layer: usize) -> Option<Array4<f64>> {
        let both = self.real3(table::KV_A_PROJ, layer)?;
        Some(
            both.slice_move(s![.., .., self.config().kv_lora_rank..])
                .insert_axis(Axis(1))
                .as_standard_layout()
                .into_owned(),
        )
    }

    /// What `kv_b_proj` makes of the latents: keys and values of every head, `[B,T,H(n+v)]`. In the absorbed form there is
    /// no such stage, but it can be computed.
    pub fn keys_and_values(&self, layer: usize) -> Option<Array3<f64>> {
        if let Some(stage) = self.real3(table::KV_B_PROJ, layer) {
            return Some(stage);
        }
        let (batch, _, keys) = self.dims();
        let c = self.config();
        let width = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim);
        let like = ArrayD::zeros(vec![batch, keys, width]);
        self.projection(table::KV_B_PROJ, layer)?.apply(&like, exact)?.into_dimensionality().ok()
    }

    /// The same by head, `[B,H,T,n+v]`.
    pub fn keys_and_values_by_head(&self, layer: usize) -> Option<Array4<f64>> {
        by_head(self.keys_and_values(layer)?.view(), self.config().num_attention_heads)
    }

    /// What the scores are computed from.
    pub fn heads(&self, layer: usize) -> Option<Heads> {
        let n = self.config().qk_nope_head_dim;
        Some(Heads {
            q_nope: self.queries(layer)?.slice_move(s![.., .., .., ..n]),
            q_pe: self.real4(table::Q_PE, layer)?,
            k_nope: self.keys_and_values_by_head(layer)?.slice_move(s![.., .., .., ..n]),
            k_pe: self.rotated_keys(layer)?,
        })
    }

    /// The values of every head, `[B,H,T,v]`.
    pub fn values(&self, layer: usize) -> Option<Array4<f64>> {
        let n = self.config().qk_nope_head_dim;
        Some(self.keys_and_values_by_head(layer)?.slice_move(s![.., .., .., n..]))
    }

    /// Scores scaled and masked.
    pub fn masked(&self, scores: Array4<f64>) -> Option<ArrayD<f64>> {
        Some((scores * self.softmax_scale()? + self.bias()?).into_dyn())
    }

    /// Scaled scores where `allow(b, q, t)`, minus infinity elsewhere.
    pub fn scores_where(&self, layer: usize, allow: impl Fn(usize, usize, usize) -> bool) -> Option<ArrayD<f64>> {
        let scale = self.softmax_scale()?;
        let mut scores = self.heads(layer)?.scores() * scale;
        for ((b, _, q, t), score) in scores.indexed_iter_mut() {
            if !allow(b, q, t) {
                *score = f64::NEG_INFINITY;
            }
        }
        Some(scores.into_dyn())
    }

    /// What the heads give, side by side: `[B,H,S,T]`, `[B,H,T,v]` to `[B,S,H v]`.
    pub fn attend_with(&self, weights: &Array4<f64>, values: &Array4<f64>) -> Option<ArrayD<f64>> {
        let (batch, heads, length, _) = weights.dim();
        let width = values.len_of(Axis(3));
        let mut output = Array4::zeros((batch, length, heads, width));
        for b in 0..batch {
            for h in 0..heads {
                let of_head = weights.slice(s![b, h, .., ..]).dot(&values.slice(s![b, h, .., ..]));
                output.slice_mut(s![b, .., h, ..]).assign(&of_head);
            }
        }
        Some(output.into_shape_with_order((batch, length, heads * width)).ok()?.into_dyn())
    }

    /// The tables that the model has computed.
    pub fn rotary(&self) -> Option<RotaryTables<f64>> {
        Some(RotaryTables { cos: self.real3(table::COS, 0)?, sin: self.real3(table::SIN, 0)? })
    }

    /// W^UK and W^UV of a head: `[n,c]` and `[v,c]`.
    pub fn absorbed_weights(&self, layer: usize, head: usize) -> Option<(Array2<f64>, Array2<f64>)> {
        let c = self.config();
        let (n, width) = (c.qk_nope_head_dim, c.qk_nope_head_dim + c.v_head_dim);
        let weight = self.weights().matrix(&format!("{}.weight", stage::name(table::KV_B_PROJ, layer)))?;
        let of_head = weight.slice(s![head * width..(head + 1) * width, ..]);
        Some((of_head.slice(s![..n, ..]).to_owned(), of_head.slice(s![n.., ..]).to_owned()))
    }
}

/// Vectors `[B,H,S,r]`, turned.
pub fn rotate(tables: RotaryTables<f64>, x: Array4<f64>) -> Option<ArrayD<f64>> {
    let mut x = x.as_standard_layout().into_owned();
    tables.rotate(&mut x);
    Some(x.into_dyn())
}

/// `[B,T,H w]` to `[B,H,T,w]`.
fn by_head(flat: ArrayView3<'_, f64>, heads: usize) -> Option<Array4<f64>> {
    let (batch, rows, width) = flat.dim();
    let split = flat.to_shape((batch, rows, heads, width.checked_div(heads)?)).ok()?;
    Some(split.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned())
}

/// `[B,T,H(a+b)]` read as if it were all heads' first parts, each `first` wide, then all heads' second parts.
pub fn by_part(flat: &Array3<f64>, heads: usize, first: usize) -> Option<(Array4<f64>, Array4<f64>)> {
    let (firsts, seconds) = flat.view().split_at(Axis(2), heads * first);
    Some((by_head(firsts, heads)?, by_head(seconds, heads)?))
}

/// Latents `[B,T,c]` expanded by a matrix `[d,c]` for each head: `[B,H,T,d]`.
pub fn expand(latents: ArrayView3<'_, f64>, matrices: &[Array2<f64>]) -> Option<Array4<f64>> {
    let (batch, keys, _) = latents.dim();
    let width = matrices.first()?.nrows();
    let mut expanded = Array4::zeros((batch, matrices.len(), keys, width));
    for b in 0..batch {
        for (h, matrix) in matrices.iter().enumerate() {
            expanded.slice_mut(s![b, h, .., ..]).assign(&product(latents.index_axis(Axis(0), b), matrix.view(), exact));
        }
    }
    Some(expanded)
}
