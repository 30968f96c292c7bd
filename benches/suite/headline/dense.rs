//! A decoder layer of DeepSeek 67B's kind, from the reference's own building blocks: grouped-query attention and a gated
//! MLP, each behind a norm and beside a residual stream.
//!
//! ```text
//! x <- x + W_o [o_1; ...; o_H],   o_h = sum_j softmax_j(q_h . k_gj / sqrt d) v_gj,   g = floor(h G / H)
//! x <- x + W_down (silu(W_gate RMS(x)) * W_up RMS(x))
//! ```
//!
//! B sequences, H heads of d numbers, G heads of keys and values, D numbers of a token.

use dsv2_reference::arithmetic::matmul::{dot, matmul, matmul_t};
use dsv2_reference::arithmetic::softmax::softmax;
use dsv2_reference::model::linear::Linear;
use dsv2_reference::model::norm::RmsNorm;
use dsv2_reference::model::rope::RotaryEmbedding;
use dsv2_reference::{Activation, DeepseekV2Config, Dialect};
use ndarray::{Array2, Array4, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::layer::{Layer, random, random_tokens, random_weights};
use super::shapes::{Attention, FeedForward, Shape};

/// See the module.
pub struct DenseLayer {
    input_norm: RmsNorm<f32>,
    q: Linear<f32>,
    k: Linear<f32>,
    v: Linear<f32>,
    o: Linear<f32>,
    mlp_norm: RmsNorm<f32>,
    gate: Linear<f32>,
    up: Linear<f32>,
    down: Linear<f32>,
    rotary: RotaryEmbedding,
    heads: usize,
    kv_heads: usize,
    head: usize,
}

/// Keys (rotated) and values `[B,G,room,d]`, of which `length` tokens are in use.
pub struct DenseCache {
    keys: Array4<f32>,
    values: Array4<f32>,
    length: usize,
}

impl DenseLayer {
    /// Of a shape with grouped attention and a dense MLP, with random weights.
    pub fn new(shape: &Shape) -> Self {
        let Shape { hidden, heads, attention: Attention::Grouped { kv_heads, head }, .. } = *shape else {
            panic!("{}: a dense layer has grouped attention", shape.name);
        };
        let FeedForward::Dense { width } = shape.feed_forward else {
            panic!("{}: a dense layer has one MLP", shape.name);
        };
        let weights = random_weights();
        let linear = |name: &str, rows, columns| {
            Linear::load(&weights, &format!("dense.{name}"), rows, columns, false).expect("random weights")
        };
        let norm = |name: &str| RmsNorm::load(&weights, name, hidden, 1e-6).expect("random weights");
        let rope =
            DeepseekV2Config { qk_rope_head_dim: head, rope_theta: Some(10000.0), ..DeepseekV2Config::default() };
        DenseLayer {
            input_norm: norm("dense.input_norm"),
            q: linear("q", heads * head, hidden),
            k: linear("k", kv_heads * head, hidden),
            v: linear("v", kv_heads * head, hidden),
            o: linear("o", hidden, heads * head),
            mlp_norm: norm("dense.mlp_norm"),
            gate: linear("gate", width, hidden),
            up: linear("up", width, hidden),
            down: linear("down", hidden, width),
            rotary: RotaryEmbedding::new(&rope, Dialect::Hf).expect("plain rotary angles"),
            heads,
            kv_heads,
            head,
        }
    }

    /// Queries `[B,H,S,d]`, keys and values `[B,G,S,d]` of `tokens` `[B S,D]`, the first S of which are at `start..`.
    fn project(&self, tokens: ArrayView2<f32>, length: usize, start: usize) -> [Array4<f32>; 3] {
        let normed = self.input_norm.forward(tokens);
        let batch = tokens.nrows() / length;
        let by_head = |linear: &Linear<f32>| {
            let y = linear.forward(normed.view());
            let heads = y.ncols() / self.head;
            let y = y.into_shape_with_order((batch, length, heads, self.head)).expect("a row for each token");
            y.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned()
        };
        let (mut q, mut k, v) = (by_head(&self.q), by_head(&self.k), by_head(&self.v));
        let positions = Array2::from_shape_fn((1, length), |(_, s)| (start + s) as i64);
        let tables = self.rotary.tables(&positions, None);
        tables.rotate(&mut q);
        tables.rotate(&mut k);
        [q, k, v]
    }

    /// What follows attention: `heads` `[N,H d]` and the residual stream `x` `[N,D]`.
    fn finish(&self, mut x: Array2<f32>, heads: ArrayView2<f32>) -> Array2<f32> {
        x += &self.o.forward(heads);
        let normed = self.mlp_norm.forward(x.view());
        let mut gated = self.gate.forward(normed.view());
        gated.zip_mut_with(&self.up.forward(normed.view()), |gate, up| *gate = Activation::Silu.apply(*gate) * up);
        x + self.down.forward(gated.view())
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head as f32).sqrt()
    }

    /// A sequence `[S,D]` in one go, without a cache and head by head: for [`check`] only.
    fn whole(&self, x: &Array2<f32>) -> Array2<f32> {
        let length = x.nrows();
        let [q, k, v] = self.project(x.view(), length, 0);
        let mut heads = Array2::zeros((length, self.heads * self.head));
        for h in 0..self.heads {
            let g = h * self.kv_heads / self.heads;
            for t in 0..length {
                let mut p = (0..=t).map(|j| dot(q.slice(s![0, h, t, ..]), k.slice(s![0, g, j, ..])) * self.scale());
                let mut p = ndarray::Array1::from_iter(p.by_ref());
                softmax(p.view_mut());
                for (j, p) in p.iter().enumerate() {
                    let mut o = heads.slice_mut(s![t, h * self.head..(h + 1) * self.head]);
                    o.scaled_add(*p, &v.slice(s![0, g, j, ..]));
                }
            }
        }
        self.finish(x.clone(), heads.view())
    }
}

impl Layer for DenseLayer {
    type Cache = DenseCache;

    fn cache(&self, batch: usize, context: usize) -> DenseCache {
        let shape = (batch, self.kv_heads, context + 1, self.head);
        let numbers = |seed| {
            let count = batch * self.kv_heads * (context + 1) * self.head;
            Array4::from_shape_vec(shape, random(seed, count)).expect("B G T d numbers")
        };
        DenseCache { keys: numbers(2), values: numbers(3), length: context }
    }

    fn step(&self, tokens: Array2<f32>, cache: &mut DenseCache) -> Array2<f32> {
        let batch = tokens.nrows();
        let [q, k, v] = self.project(tokens.view(), 1, cache.length);
        let new = cache.length..cache.length + 1;
        cache.keys.slice_mut(s![.., .., new.clone(), ..]).assign(&k);
        cache.values.slice_mut(s![.., .., new.clone(), ..]).assign(&v);
        cache.length = new.end;
        // Heads that share keys and values share each read of them.
        let group = self.heads / self.kv_heads;
        let blocks: Vec<Array2<f32>> = (0..batch * self.kv_heads)
            .into_par_iter()
            .map(|block| {
                let (b, g) = (block / self.kv_heads, block % self.kv_heads);
                let queries = q.slice(s![b, g * group..(g + 1) * group, 0, ..]);
                let mut p = matmul_t(queries, cache.keys.slice(s![b, g, ..cache.length, ..]));
                p *= self.scale();
                p.axis_iter_mut(Axis(0)).for_each(softmax);
                matmul(p.view(), cache.values.slice(s![b, g, ..cache.length, ..]))
            })
            .collect();
        let numbers: Vec<f32> = blocks.into_iter().flatten().collect();
        let heads = Array2::from_shape_vec((batch, self.heads * self.head), numbers).expect("H d numbers a token");
        self.finish(tokens, heads.view())
    }

    fn forget(&self, cache: &mut DenseCache) {
        cache.length -= 1;
    }
}

/// Makes sure that decoding token by token computes what the whole sequence gives without a cache.
///
/// # Panics
/// If it does not: then the layer is wrong, and to time it would be pointless.
pub fn check() {
    let (hidden, width, tokens) = (24, 40, 7);
    let shape = Shape {
        name: "a small dense layer",
        layers: 1,
        hidden,
        heads: 4,
        vocabulary: 1,
        attention: Attention::Grouped { kv_heads: 2, head: 6 },
        feed_forward: FeedForward::Dense { width },
    };
    let layer = DenseLayer::new(&shape);
    let x = random_tokens(4, tokens, hidden);
    let whole = layer.whole(&x);
    let room = layer.cache(1, tokens);
    let mut cache = DenseCache { length: 0, ..room };
    for (t, expected) in whole.rows().into_iter().enumerate() {
        let found = layer.step(x.slice(s![t..t + 1, ..]).to_owned(), &mut cache);
        // Each is a chain of sums of at most `width` terms, each term rounded once.
        let largest = expected.iter().fold(0.0, |largest: f32, y| largest.max(y.abs()));
        let rounding = width as f32 * f32::EPSILON * largest;
        let apart = found.row(0).iter().zip(expected).fold(0.0, |apart: f32, (a, b)| apart.max((a - b).abs()));
        assert!(
            apart <= rounding,
            "the dense layer is wrong: token {t} decoded with a cache is {apart:e} from the same without one, and \
             rounding explains {rounding:e}"
        );
    }
}
