//! Row by row and matrix by matrix: embedding, norms, products, gates, rotation.

use dsv2_optimized::operators::embedding::embedding;
use dsv2_optimized::operators::gemm::{batched, linear};
use dsv2_optimized::operators::rms_norm::{add_rms_norm, rms_norm};
use dsv2_optimized::operators::rope::rope;
use dsv2_optimized::operators::rotary::rotary;
use dsv2_optimized::operators::swiglu::{add, gated};
use dsv2_optimized::{Element, Variant};
use dsv2_reference::Activation;

use super::case::{Case, Kind, LATENT, LITE, Model, NOPE, ROPE, Scale, V2, VOCAB, Work};

/// All of them, in the order of a forward pass.
pub fn cases(scale: Scale) -> Vec<Case> {
    let mut cases = vec![];
    let vocab = scale.pick(1000, VOCAB);
    for (small, tokens) in scale.pick(vec![(true, 16)], vec![(true, 16), (false, 4096)]) {
        for model in [LITE, V2] {
            let small = small && model.name == LITE.name;
            for kind in scale.kinds(small) {
                let hidden = model.hidden;
                cases.extend([
                    of_embedding(kind, model, tokens, vocab),
                    of_rms_norm(kind, model, tokens),
                    of_add_rms_norm(kind, model, tokens),
                    of_gated(kind, model, [tokens, model.inner]),
                    of_add(kind, model, [tokens, hidden]),
                    of_rope(kind, model, tokens),
                ]);
            }
        }
        if small {
            cases.extend(Variant::ALL.map(|variant| of_rotary((variant, Element::F32), tokens)));
        }
    }
    // M, N, K
    let of_counts = vec![
        (true, LITE, [16, 64, 2048]),
        (false, LITE, [1, 64, 2048]),
        (false, LITE, [256, 64, 2048]),
        (false, V2, [16, 64, 5120]),
    ];
    let of_gpu = [1, 16, 256, 4096].into_iter().flat_map(|m| {
        let weights = [(LITE, [3072, 2048]), (LITE, [2048, 10944]), (V2, [24576, 1536]), (V2, [5120, 16384])];
        let head = (m <= 16).then_some((LITE, [VOCAB, 2048]));
        weights.into_iter().chain(head).map(move |(model, [n, k])| (m == 1 && n == 3072, model, [m, n, k]))
    });
    for (small, model, sizes) in scale.pick(of_counts, of_gpu.collect()) {
        cases.extend(scale.kinds(small).into_iter().map(|kind| of_linear(kind, model, sizes)));
    }
    for (small, tokens) in scale.pick(vec![(true, 4)], vec![(true, 1), (false, 16), (false, 128)]) {
        // For an emulator V2's heads are too many, and do the same.
        for model in scale.pick(&[LITE][..], &[LITE, V2]) {
            let kinds = scale.kinds(small && model.name == LITE.name).into_iter();
            cases.extend(kinds.map(|kind| of_absorption(kind, *model, tokens)));
        }
    }
    cases
}

/// Reads a row of the table for each token, and the token.
fn of_embedding(kind: Kind, model: Model, tokens: usize, vocab: usize) -> Case {
    let (variant, element) = kind;
    let row = model.hidden * element.bytes();
    let work = Work { read: tokens * (row + 4), written: tokens * row, flops: 0 };
    Case::new("embedding", kind, model, &[("N", tokens), ("D", model.hidden)], work, move |data| {
        // No token twice, as far as there are enough.
        let ids = data.random.shuffled(vocab).into_iter().cycle().take(tokens);
        let ids = data.integers(&[tokens], ids)?;
        let table = data.numbers(element, &[vocab, model.hidden], 1.0)?;
        let out = data.room(element, &[tokens, model.hidden])?;
        Ok(Box::new(move || embedding(variant, &ids, &table, &out)))
    })
}

/// Reads x and the gain, writes y. A number is squared, added, scaled and multiplied by its gain.
fn of_rms_norm(kind: Kind, model: Model, tokens: usize) -> Case {
    let (variant, element) = kind;
    let (width, e) = (model.hidden, element.bytes());
    let work = Work { read: (tokens + 1) * width * e, written: tokens * width * e, flops: 4 * tokens * width };
    Case::new("rms_norm", kind, model, &[("N", tokens), ("D", width)], work, move |data| {
        let (x, gain) = (data.numbers(element, &[tokens, width], 1.0)?, data.numbers(element, &[width], 1.0)?);
        let y = data.room(element, &[tokens, width])?;
        Ok(Box::new(move || rms_norm(variant, &x, &gain, 1e-6, &y)))
    })
}

/// The same, and reads the residual stream and writes it with x added.
fn of_add_rms_norm(kind: Kind, model: Model, tokens: usize) -> Case {
    let (variant, element) = kind;
    let (width, e) = (model.hidden, element.bytes());
    let work = Work { read: (2 * tokens + 1) * width * e, written: 2 * tokens * width * e, flops: 5 * tokens * width };
    Case::new("add_rms_norm", kind, model, &[("N", tokens), ("D", width)], work, move |data| {
        let of_tokens = || data.numbers(element, &[tokens, width], 1.0);
        let (x, residual, gain) = (of_tokens()?, of_tokens()?, data.numbers(element, &[width], 1.0)?);
        let (h, y) = (data.room(element, &[tokens, width])?, data.room(element, &[tokens, width])?);
        Ok(Box::new(move || add_rms_norm(variant, &x, &residual, &gain, 1e-6, &h, &y)))
    })
}

/// Reads x and the weight, writes out: 2 M N K operations.
fn of_linear(kind: Kind, model: Model, [m, n, k]: [usize; 3]) -> Case {
    let (variant, element) = kind;
    let e = element.bytes();
    let work = Work { read: (m + n) * k * e, written: m * n * e, flops: 2 * m * n * k };
    Case::new("linear", kind, model, &[("M", m), ("N", n), ("K", k)], work, move |data| {
        let x = data.numbers(element, &[m, k], 1.0)?;
        let weight = data.numbers(element, &[n, k], (k as f32).powf(-0.5))?;
        let out = data.room(element, &[m, n])?;
        Ok(Box::new(move || linear(variant, &x, &weight, None, &out)))
    })
    .of_matrices()
}

/// The absorbed query, q W_UK head by head: reads H matrices \[n,c\] and q, writes the latent queries.
fn of_absorption(kind: Kind, model: Model, tokens: usize) -> Case {
    let (variant, element) = kind;
    let (heads, e) = (model.heads, element.bytes());
    let work = Work {
        read: heads * NOPE * (tokens + LATENT) * e,
        written: heads * tokens * LATENT * e,
        flops: 2 * heads * tokens * NOPE * LATENT,
    };
    Case::new("absorbed_query", kind, model, &[("H", heads), ("N", tokens)], work, move |data| {
        let q = data.numbers(element, &[tokens, heads, NOPE], 1.0)?.permute(&[1, 0, 2])?;
        let w_uk = data.numbers(element, &[heads, NOPE, LATENT], 0.05)?.permute(&[0, 2, 1])?;
        let out = data.room(element, &[tokens, heads, LATENT])?.permute(&[1, 0, 2])?;
        Ok(Box::new(move || batched(variant, &q, &w_uk, &out)))
    })
    .of_matrices()
}

/// Reads gate and up, writes their product; silu is four operations.
fn of_gated(kind: Kind, model: Model, [tokens, width]: [usize; 2]) -> Case {
    let (variant, element) = kind;
    let bytes = tokens * width * element.bytes();
    let work = Work { read: 2 * bytes, written: bytes, flops: 5 * tokens * width };
    Case::new("gated", kind, model, &[("N", tokens), ("I", width)], work, move |data| {
        let of_tokens = || data.numbers(element, &[tokens, width], 1.0);
        let (gate, up, out) = (of_tokens()?, of_tokens()?, data.room(element, &[tokens, width])?);
        Ok(Box::new(move || gated(variant, Activation::Silu, &gate, &up, &out)))
    })
}

/// Reads two matrices, writes their sum.
fn of_add(kind: Kind, model: Model, [tokens, width]: [usize; 2]) -> Case {
    let (variant, element) = kind;
    let bytes = tokens * width * element.bytes();
    let work = Work { read: 2 * bytes, written: bytes, flops: tokens * width };
    Case::new("add", kind, model, &[("N", tokens), ("D", width)], work, move |data| {
        let of_tokens = || data.numbers(element, &[tokens, width], 1.0);
        let (a, b, out) = (of_tokens()?, of_tokens()?, data.room(element, &[tokens, width])?);
        Ok(Box::new(move || add(variant, &a, &b, &out)))
    })
}

/// Reads x and the tables of cosines and sines, writes x: six operations for each pair.
fn of_rope(kind: Kind, model: Model, tokens: usize) -> Case {
    let (variant, element) = kind;
    let (heads, bytes) = (model.heads, tokens * model.heads * ROPE * element.bytes());
    let work = Work { read: bytes + tokens * ROPE * 4, written: bytes, flops: 3 * tokens * heads * ROPE };
    Case::new("rope", kind, model, &[("N", tokens), ("H", heads)], work, move |data| {
        let x = data.numbers(element, &[tokens, heads, ROPE], 1.0)?;
        let table = || data.numbers(Element::F32, &[tokens, ROPE / 2], 0.5);
        let (cos, sin) = (table()?, table()?);
        let out = data.room(element, &[tokens, heads, ROPE])?;
        Ok(Box::new(move || rope(variant, &x, &cos, &sin, &out)))
    })
}

/// Reads a position for each token and the frequencies, writes the two tables: a product, a cosine and a sine for each.
fn of_rotary(kind: Kind, tokens: usize) -> Case {
    let half = ROPE / 2;
    let work = Work { read: 4 * (tokens + half), written: 8 * tokens * half, flops: 3 * tokens * half };
    Case::new("rotary", kind, LITE, &[("N", tokens)], work, move |data| {
        let positions = data.integers(&[tokens], 1000..1000 + tokens)?;
        let frequencies = data.numbers(Element::F32, &[half], 0.3)?;
        let room = || data.room(Element::F32, &[tokens, half]);
        let (cos, sin) = (room()?, room()?);
        Ok(Box::new(move || rotary(kind.0, &positions, &frequencies, 1.0, &cos, &sin)))
    })
}
