//! Attention on latents: writing and reading the cache, decoding, the prompt, merging two parts.

use dsv2_optimized::operators::latent::latent_cache_write;
use dsv2_optimized::operators::latent_read::{Pages, latent_cache_read};
use dsv2_optimized::operators::merge::merge;
use dsv2_optimized::operators::mla_decode::{mla_decode, workspace};
use dsv2_optimized::operators::mla_prefill::mla_prefill;
use dsv2_optimized::{Element, Result, Tensor};

use super::case::{Case, Data, Kind, LATENT, LITE, Model, NOPE, ROPE, Scale, V2, VALUE, Work};

const PAGE: usize = 64;
const WIDTH: usize = LATENT + ROPE;

/// All of them, in the order of a forward pass.
pub fn cases(scale: Scale) -> Vec<Case> {
    let mut cases = vec![];
    for (small, tokens) in scale.pick(vec![(true, 16)], vec![(true, 16), (false, 4096)]) {
        cases.extend(scale.kinds(small).into_iter().map(|kind| of_cache_write(kind, tokens)));
    }
    for (small, batch, keys) in scale.pick(vec![(true, 2, 100)], vec![(true, 1, 4096), (false, 16, 4096)]) {
        cases.extend(scale.kinds(small).into_iter().map(|kind| of_cache_read(kind, [batch, keys])));
    }

    // B, T
    let contexts = |model: Model| {
        let small = move |keys| keys == 256 && model.heads == LITE.heads;
        [64, 256, 512, 1024, 2048].map(move |keys| (small(keys), model, [1, keys]))
    };
    let of_counts = contexts(LITE).into_iter().chain(contexts(V2)).chain([(false, LITE, [3, 200])]);
    let of_gpu = [LITE, V2].into_iter().flat_map(|model| {
        [1024, 4096, 8192, 16384, 32768].into_iter().flat_map(move |keys| {
            let small = |batch| (batch, keys, model.heads) == (1, 1024, LITE.heads);
            [1, 4, 16, 32, 64, 128].map(|batch| (small(batch), model, [batch, keys]))
        })
    });
    for (small, model, sizes) in scale.pick(of_counts.collect(), of_gpu.collect::<Vec<_>>()) {
        cases.extend(scale.kinds(small).into_iter().map(|kind| of_decode(kind, model, sizes)));
    }

    // H, S
    let of_counts = vec![(true, LITE, [1, 64]), (false, LITE, [2, 256]), (false, LITE, [1, 1024])];
    let of_gpu =
        [LITE, V2].into_iter().flat_map(|model| [1024, 4096, 8192].map(|new| (new == 1024, model, [model.heads, new])));
    for (small, model, sizes) in scale.pick(of_counts, of_gpu.collect()) {
        cases.extend(
            scale.kinds(small && model.name == LITE.name).into_iter().map(|kind| of_prefill(kind, model, sizes)),
        );
    }

    for (small, tokens) in scale.pick(vec![(true, 16)], vec![(true, 16), (false, 4096)]) {
        cases.extend(scale.kinds(small).into_iter().map(|kind| of_merge(kind, LITE, tokens)));
    }
    cases
}

/// Sequences of one length whose pages are in a random order.
struct Cached {
    cache: Tensor,
    table: Tensor,
    lengths: Tensor,
}

impl Cached {
    fn new(data: &Data, element: Element, [batch, keys]: [usize; 2]) -> Result<Self> {
        let columns = keys.div_ceil(PAGE);
        Ok(Cached {
            cache: data.numbers(element, &[batch * columns, PAGE, WIDTH], 1.0)?,
            table: data.integers(&[batch, columns], data.random.shuffled(batch * columns))?,
            lengths: data.integers(&[batch], vec![keys; batch])?,
        })
    }

    /// All cached numbers, a page number for each run of keys, and a length for each sequence.
    fn bytes(element: Element, [batch, keys]: [usize; 2]) -> usize {
        batch * (keys * WIDTH * element.bytes() + 4 * keys.div_ceil(PAGE) + 4)
    }
}

/// Reads a row, a slot and the rotation for each token, and the gain; writes the cache's row. Four operations for each
/// number of the latent, six for each pair of the key.
fn of_cache_write(kind: Kind, tokens: usize) -> Case {
    let (variant, element) = kind;
    let (rows, e) = (tokens * WIDTH, element.bytes());
    let work = Work {
        read: (rows + LATENT) * e + tokens * (ROPE + 1) * 4,
        written: rows * e,
        flops: tokens * (4 * LATENT + 3 * ROPE),
    };
    Case::new("latent_cache_write", kind, LITE, &[("N", tokens)], work, move |data| {
        let kv_a = data.numbers(element, &[tokens, WIDTH], 1.0)?;
        let gain = data.numbers(element, &[LATENT], 1.0)?;
        let table = || data.numbers(Element::F32, &[tokens, ROPE / 2], 0.5);
        let (cos, sin) = (table()?, table()?);
        let pages = tokens.div_ceil(PAGE);
        let slots = data.integers(&[tokens], data.random.shuffled(pages * PAGE).into_iter().take(tokens))?;
        let cache = data.room(element, &[pages, PAGE, WIDTH])?;
        Ok(Box::new(move || latent_cache_write(variant, &kv_a, &gain, 1e-6, &cos, &sin, &slots, &cache, None, None)))
    })
}

/// Reads every cached number and where it is, writes it to where attention in expanded form wants it.
fn of_cache_read(kind: Kind, sizes: [usize; 2]) -> Case {
    let ((variant, element), [batch, keys]) = (kind, sizes);
    let written = batch * keys * WIDTH * element.bytes();
    let work = Work { read: Cached::bytes(element, sizes), written, flops: 0 };
    Case::new("latent_cache_read", kind, LITE, &[("B", batch), ("T", keys)], work, move |data| {
        let Cached { cache, table, lengths } = Cached::new(data, element, sizes)?;
        let room = |width| data.room(element, &[batch, keys, width]);
        let (latents, rotated) = (room(LATENT)?, room(ROPE)?);
        Ok(Box::new(move || {
            let pages = Pages { cache: &cache, block_table: &table, lengths: &lengths };
            latent_cache_read(variant, &pages, &latents, &rotated)
        }))
    })
}

/// Reads the cache once for all heads, and the queries; writes a latent and a logarithm for each head. 2 (2c + r)
/// operations for each head and key; the softmax is not counted.
fn of_decode(kind: Kind, model: Model, sizes: [usize; 2]) -> Case {
    let ((variant, element), heads, [batch, keys]) = (kind, model.heads, sizes);
    let (rows, e) = (batch * heads, element.bytes());
    let work = Work {
        read: Cached::bytes(element, sizes) + rows * WIDTH * e,
        written: rows * (LATENT * e + 4),
        flops: 2 * rows * keys * (WIDTH + LATENT),
    };
    Case::new("mla_decode", kind, model, &[("H", heads), ("B", batch), ("T", keys)], work, move |data| {
        let Cached { cache, table, lengths } = Cached::new(data, element, sizes)?;
        let query = |width| data.numbers(element, &[batch, 1, heads, width], 1.0);
        let (q_latent, q_pe) = (query(LATENT)?, query(ROPE)?);
        let needed = workspace(variant, [batch, 1, heads, LATENT], ROPE, keys.next_multiple_of(PAGE));
        let scratch = data.room(Element::F32, &[needed])?;
        let out = data.room(element, &[batch, 1, heads, LATENT])?;
        let lse = data.room(Element::F32, &[batch, 1, heads])?;
        let scale = (WIDTH as f32).powf(-0.5);
        Ok(Box::new(move || {
            mla_decode(variant, &q_latent, &q_pe, &cache, &table, &lengths, None, scale, &scratch, &out, &lse)
        }))
    })
    .of_matrices()
}

/// Reads queries, keys and values of each head and the rotated keys of all, writes a value and a logarithm for each
/// query and head. 2 (n + r + v) operations for each head, query and key that it sees; the softmax is not counted.
fn of_prefill(kind: Kind, model: Model, [heads, new]: [usize; 2]) -> Case {
    let (variant, element) = kind;
    let (rows, e) = (heads * new, element.bytes());
    let work = Work {
        read: (rows * (NOPE + ROPE + NOPE + VALUE) + new * ROPE) * e,
        written: rows * (VALUE * e + 4),
        flops: heads * new * (new + 1) * (NOPE + ROPE + VALUE),
    };
    Case::new("mla_prefill", kind, model, &[("H", heads), ("S", new)], work, move |data| {
        let of_heads = |width| data.numbers(element, &[1, new, heads, width], 1.0);
        let (q, kv) = (of_heads(NOPE + ROPE)?, of_heads(NOPE + VALUE)?);
        let k_pe = data.numbers(element, &[1, new, ROPE], 1.0)?;
        let out = data.room(element, &[1, new, heads, VALUE])?;
        let lse = data.room(Element::F32, &[1, new, heads])?;
        let scale = ((NOPE + ROPE) as f32).powf(-0.5);
        Ok(Box::new(move || mla_prefill(variant, &q, &kv, &k_pe, None, None, scale, &out, &lse)))
    })
    .of_matrices()
}

/// Reads two partial results with their logarithms, writes one: three operations for each number.
fn of_merge(kind: Kind, model: Model, tokens: usize) -> Case {
    let ((variant, element), heads) = (kind, model.heads);
    let (rows, row) = (tokens * heads, VALUE * element.bytes() + 4);
    let work = Work { read: 2 * rows * row, written: rows * row, flops: 3 * rows * VALUE };
    Case::new("merge", kind, model, &[("N", tokens), ("H", heads)], work, move |data| {
        let of_rows = || data.numbers(element, &[tokens, heads, VALUE], 1.0);
        let logarithms = || data.numbers(Element::F32, &[tokens, heads], 1.0);
        let (out_a, lse_a, out_b, lse_b) = (of_rows()?, logarithms()?, of_rows()?, logarithms()?);
        let out = data.room(element, &[tokens, heads, VALUE])?;
        let lse = data.room(Element::F32, &[tokens, heads])?;
        Ok(Box::new(move || merge(variant, &out_a, &lse_a, &out_b, &lse_b, &out, &lse)))
    })
}
