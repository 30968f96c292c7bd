//! Row by row and matrix by matrix: embedding, norms, products, gates, rotation.

use dsv2_optimized::operators::embedding::embedding;
use dsv2_optimized::operators::gemm::{batched, linear};
use dsv2_optimized::operators::rms_norm::{add_rms_norm, rms_norm};
use dsv2_optimized::operators::rope::rope;
use dsv2_optimized::operators::rotary::rotary;
use dsv2_optimized::operators::swiglu::{add, gated};
use dsv2_optimized::{Element, Variant};
use dsv2_reference::Activation;

use super::case::{Case, Kind, Model, Scale};

/// All of them, in the order of a forward pass.
pub fn cases(scale: Scale) -> Vec<Case> {
    let [lite, v2] = Model::all();
    let vocab = scale.pick(1000, lite.vocab_size);
    let mut cases = scale.rows(&[lite, v2], |kind, model, tokens| of_embedding(kind, model, tokens, vocab));
    let by_rows: [fn(Kind, Model, usize) -> Case; 5] = [of_rms_norm, of_add_rms_norm, of_gated, of_add, of_rope];
    by_rows.into_iter().for_each(|case| cases.extend(scale.rows(&[lite, v2], case)));
    cases.extend(Variant::ALL.map(|variant| of_rotary((variant, Element::F32), lite, 16)));

    // M, N, K
    let of_counts = vec![
        (true, lite, [16, 64, 2048]),
        (false, lite, [1, 64, 2048]),
        (false, lite, [256, 64, 2048]),
        (false, v2, [16, 64, 5120]),
    ];
    let of_gpu = [1, 16, 256, 4096].into_iter().flat_map(|m| {
        let weights = [(lite, [3072, 2048]), (lite, [2048, 10944]), (v2, [24576, 1536]), (v2, [5120, 16384])];
        let head = (m <= 16).then_some((lite, [lite.vocab_size, 2048]));
        weights.into_iter().chain(head).map(move |(model, [n, k])| (m == 1 && n == 3072, model, [m, n, k]))
    });
    cases.extend(scale.each(scale.pick(of_counts, of_gpu.collect()), of_linear));
    // For an emulator V2's heads are too many, and do the same.
    let of_counts = vec![(true, lite, 4)];
    let of_gpu = [1, 16, 128].into_iter().flat_map(|n| [(n == 1, lite, n), (false, v2, n)]);
    cases.extend(scale.each(scale.pick(of_counts, of_gpu.collect()), of_absorption));
    cases
}

/// Reads a row of the table for each token, and the token.
fn of_embedding(kind: Kind, model: Model, tokens: usize, vocab: usize) -> Case {
    let width = model.hidden_size;
    Case::new("embedding", kind, model, &[("N", tokens), ("D", width)], 0, move |data| {
        // No token twice, as far as there are enough.
        let ids = data.random.shuffled(vocab).into_iter().cycle().take(tokens);
        let ids = data.integers(&[tokens], ids)?;
        let table = data.partly_read(&[vocab, width], 1.0, tokens * width)?;
        let (variant, out) = (data.variant, data.room(&[tokens, width])?);
        Ok(Box::new(move || embedding(variant, &ids, &table, &out)))
    })
}

/// A number is squared, added, scaled and multiplied by its gain.
fn of_rms_norm(kind: Kind, model: Model, tokens: usize) -> Case {
    let width = model.hidden_size;
    Case::new("rms_norm", kind, model, &[("N", tokens), ("D", width)], 4 * tokens * width, move |data| {
        let (x, gain) = (data.numbers(&[tokens, width], 1.0)?, data.numbers(&[width], 1.0)?);
        let (variant, y) = (data.variant, data.room(&[tokens, width])?);
        Ok(Box::new(move || rms_norm(variant, &x, &gain, 1e-6, &y)))
    })
}

/// The same, and reads the residual stream and writes it with x added.
fn of_add_rms_norm(kind: Kind, model: Model, tokens: usize) -> Case {
    let width = model.hidden_size;
    Case::new("add_rms_norm", kind, model, &[("N", tokens), ("D", width)], 5 * tokens * width, move |data| {
        let of_tokens = || data.numbers(&[tokens, width], 1.0);
        let (x, residual, gain) = (of_tokens()?, of_tokens()?, data.numbers(&[width], 1.0)?);
        let (variant, h, y) = (data.variant, data.room(&[tokens, width])?, data.room(&[tokens, width])?);
        Ok(Box::new(move || add_rms_norm(variant, &x, &residual, &gain, 1e-6, &h, &y)))
    })
}

fn of_linear(kind: Kind, model: Model, [m, n, k]: [usize; 3]) -> Case {
    Case::new("linear", kind, model, &[("M", m), ("N", n), ("K", k)], 2 * m * n * k, move |data| {
        let x = data.numbers(&[m, k], 1.0)?;
        let weight = data.numbers(&[n, k], (k as f32).powf(-0.5))?;
        let (variant, out) = (data.variant, data.room(&[m, n])?);
        Ok(Box::new(move || linear(variant, &x, &weight, None, &out)))
    })
    .of_matrices()
}

/// The absorbed query, q W_UK head by head: reads H matrices \[n,c\] and q, writes the latent queries.
fn of_absorption(kind: Kind, model: Model, tokens: usize) -> Case {
    let (heads, n, c) = (model.num_attention_heads, model.qk_nope_head_dim, model.kv_lora_rank);
    let flops = 2 * heads * tokens * n * c;
    Case::new("absorbed_query", kind, model, &[("H", heads), ("N", tokens)], flops, move |data| {
        let q = data.numbers(&[tokens, heads, n], 1.0)?.permute(&[1, 0, 2])?;
        let w_uk = data.numbers(&[heads, n, c], 0.05)?.permute(&[0, 2, 1])?;
        let (variant, out) = (data.variant, data.room(&[tokens, heads, c])?.permute(&[1, 0, 2])?);
        Ok(Box::new(move || batched(variant, &q, &w_uk, &out)))
    })
    .of_matrices()
}

/// Silu is four operations.
fn of_gated(kind: Kind, model: Model, tokens: usize) -> Case {
    let width = model.moe_intermediate_size;
    Case::new("gated", kind, model, &[("N", tokens), ("I", width)], 5 * tokens * width, move |data| {
        let of_tokens = || data.numbers(&[tokens, width], 1.0);
        let (variant, gate, up, out) = (data.variant, of_tokens()?, of_tokens()?, data.room(&[tokens, width])?);
        Ok(Box::new(move || gated(variant, Activation::Silu, &gate, &up, &out)))
    })
}

fn of_add(kind: Kind, model: Model, tokens: usize) -> Case {
    let width = model.hidden_size;
    Case::new("add", kind, model, &[("N", tokens), ("D", width)], tokens * width, move |data| {
        let of_tokens = || data.numbers(&[tokens, width], 1.0);
        let (variant, a, b, out) = (data.variant, of_tokens()?, of_tokens()?, data.room(&[tokens, width])?);
        Ok(Box::new(move || add(variant, &a, &b, &out)))
    })
}

/// Reads x and the tables of cosines and sines: six operations for each pair.
fn of_rope(kind: Kind, model: Model, tokens: usize) -> Case {
    let (heads, width) = (model.num_attention_heads, model.qk_rope_head_dim);
    let flops = 3 * tokens * heads * width;
    Case::new("rope", kind, model, &[("N", tokens), ("H", heads)], flops, move |data| {
        let x = data.numbers(&[tokens, heads, width], 1.0)?;
        let table = || data.numbers_of(Element::F32, &[tokens, width / 2], 0.5);
        let (cos, sin) = (table()?, table()?);
        let (variant, out) = (data.variant, data.room(&[tokens, heads, width])?);
        Ok(Box::new(move || rope(variant, &x, &cos, &sin, &out)))
    })
}

/// Reads a position for each token and the frequencies, writes the two tables: a product, a cosine and a sine for each.
fn of_rotary(kind: Kind, model: Model, tokens: usize) -> Case {
    let half = model.qk_rope_head_dim / 2;
    Case::new("rotary", kind, model, &[("N", tokens)], 3 * tokens * half, move |data| {
        let positions = data.integers(&[tokens], 1000..1000 + tokens)?;
        let frequencies = data.numbers(&[half], 0.3)?;
        let (variant, cos, sin) = (data.variant, data.room(&[tokens, half])?, data.room(&[tokens, half])?);
        Ok(Box::new(move || rotary(variant, &positions, &frequencies, 1.0, &cos, &sin)))
    })
}
