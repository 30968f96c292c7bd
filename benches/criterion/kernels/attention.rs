//! Attention on latents: writing and reading the cache, decoding, the prompt, merging two parts.

use dsv2_optimized::operators::latent::latent_cache_write;
use dsv2_optimized::operators::latent_read::{Pages, latent_cache_read};
use dsv2_optimized::operators::merge::merge;
use dsv2_optimized::operators::mla_decode::{mla_decode, shared};
use dsv2_optimized::operators::mla_prefill::mla_prefill;
use dsv2_optimized::operators::scratch::Scratch;
use dsv2_optimized::{Element, Result, Tensor};

use super::case::{Case, Data, Kind, Model, Scale};

const PAGE: usize = 64;

/// All of them, in the order of a forward pass.
pub fn cases(scale: Scale) -> Vec<Case> {
    let [lite, v2] = Model::all();
    let mut cases = scale.rows(&[lite], of_cache_write);
    let (of_counts, of_gpu) = (vec![(true, lite, [2, 100])], vec![(true, lite, [1, 4096]), (false, lite, [16, 4096])]);
    cases.extend(scale.each(scale.pick(of_counts, of_gpu), of_cache_read));

    // B, T
    let contexts =
        |model: Model| [64, 256, 512, 1024, 2048].map(move |keys| (keys == 256 && model.is_lite(), model, [1, keys]));
    let of_counts = contexts(lite).into_iter().chain(contexts(v2)).chain([(false, lite, [3, 200])]);
    let of_gpu = [lite, v2].into_iter().flat_map(|model| {
        [1024, 4096, 8192, 16384, 32768].into_iter().flat_map(move |keys| {
            let small = |batch| (batch, keys, model.is_lite()) == (1, 1024, true);
            [1, 4, 16, 32, 64, 128].map(|batch| (small(batch), model, [batch, keys]))
        })
    });
    cases.extend(scale.each(scale.pick(of_counts.collect(), of_gpu.collect::<Vec<_>>()), of_decode));

    // H, S
    let of_counts = vec![(true, lite, [1, 64]), (false, lite, [2, 256]), (false, lite, [1, 1024])];
    let of_gpu = [lite, v2].into_iter().flat_map(|model| {
        [1024, 4096, 8192].map(|new| (new == 1024 && model.is_lite(), model, [model.num_attention_heads, new]))
    });
    cases.extend(scale.each(scale.pick(of_counts, of_gpu.collect()), of_prefill));
    cases.extend(scale.rows(&[lite], of_merge));
    cases
}

/// Sequences of one length whose pages are in a random order. All cached numbers are read, a page number for each run of
/// keys, and a length for each sequence.
struct Cached {
    cache: Tensor,
    table: Tensor,
    lengths: Tensor,
}

impl Cached {
    fn new(data: &Data, width: usize, [batch, keys]: [usize; 2]) -> Result<Self> {
        let columns = keys.div_ceil(PAGE);
        Ok(Cached {
            cache: data.partly_read(&[batch * columns, PAGE, width], 1.0, batch * keys * width)?,
            table: data.integers(&[batch, columns], data.random.shuffled(batch * columns))?,
            lengths: data.integers(&[batch], vec![keys; batch])?,
        })
    }
}

/// Reads a row, a slot and the rotation for each token, and the gain; writes the cache's row. Four operations for each
/// number of the latent, six for each pair of the key.
fn of_cache_write(kind: Kind, model: Model, tokens: usize) -> Case {
    let (c, r, width) = (model.kv_lora_rank, model.qk_rope_head_dim, model.kv_lora_rank + model.qk_rope_head_dim);
    Case::new("latent_cache_write", kind, model, &[("N", tokens)], tokens * (4 * c + 3 * r), move |data| {
        let (kv_a, gain) = (data.numbers(&[tokens, width], 1.0)?, data.numbers(&[c], 1.0)?);
        let table = || data.numbers_of(Element::F32, &[tokens, r / 2], 0.5);
        let (cos, sin) = (table()?, table()?);
        let pages = tokens.div_ceil(PAGE);
        let slots = data.integers(&[tokens], data.random.shuffled(pages * PAGE).into_iter().take(tokens))?;
        let cache = data.partly_written(data.element, &[pages, PAGE, width], tokens * width)?;
        let variant = data.variant;
        Ok(Box::new(move || {
            latent_cache_write(variant, &kv_a, &gain, 1e-6, &cos, &sin, &slots, &cache, None, None, None)
        }))
    })
}

/// Reads every cached number and where it is, writes it to where attention in expanded form wants it.
fn of_cache_read(kind: Kind, model: Model, sizes: [usize; 2]) -> Case {
    let ([batch, keys], c, r) = (sizes, model.kv_lora_rank, model.qk_rope_head_dim);
    Case::new("latent_cache_read", kind, model, &[("B", batch), ("T", keys)], 0, move |data| {
        let Cached { cache, table, lengths } = Cached::new(data, c + r, sizes)?;
        let (latents, rotated) = (data.room(&[batch, keys, c])?, data.room(&[batch, keys, r])?);
        let variant = data.variant;
        Ok(Box::new(move || {
            let pages = Pages { cache: &cache, block_table: &table, lengths: &lengths };
            latent_cache_read(variant, &pages, &latents, &rotated)
        }))
    })
}

/// Reads the cache once for all heads, and the queries; writes a latent and a logarithm for each head. 2 (2c + r)
/// operations for each head and key; the softmax is not counted.
fn of_decode(kind: Kind, model: Model, sizes: [usize; 2]) -> Case {
    let [batch, keys] = sizes;
    let (heads, c, r) = (model.num_attention_heads, model.kv_lora_rank, model.qk_rope_head_dim);
    let flops = 2 * batch * heads * keys * (2 * c + r);
    Case::new("mla_decode", kind, model, &[("H", heads), ("B", batch), ("T", keys)], flops, move |data| {
        let Cached { cache, table, lengths } = Cached::new(data, c + r, sizes)?;
        let query = |width| data.numbers(&[batch, 1, heads, width], 1.0);
        let (q_latent, q_pe) = (query(c)?, query(r)?);
        let capacity = keys.next_multiple_of(PAGE);
        let (numbers, counters) = shared(data.variant, [batch, 1, heads, c], r, capacity);
        let scratch = Scratch::with_counters(cache.device(), numbers, counters)?;
        let out = data.room(&[batch, 1, heads, c])?;
        let lse = data.room_of(Element::F32, &[batch, 1, heads])?;
        let (variant, scale) = (data.variant, ((c + r) as f32).powf(-0.5));
        Ok(Box::new(move || {
            mla_decode(variant, &q_latent, &q_pe, &cache, &table, &lengths, None, scale, &scratch, &out, &lse)
        }))
    })
    .of_matrices()
}

/// Reads queries, keys and values of each head and the rotated keys of all, writes a value and a logarithm for each
/// query and head. 2 (n + r + v) operations for each head, query and key that it sees; the softmax is not counted.
fn of_prefill(kind: Kind, model: Model, [heads, new]: [usize; 2]) -> Case {
    let (n, r, v) = (model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim);
    let flops = heads * new * (new + 1) * (n + r + v);
    Case::new("mla_prefill", kind, model, &[("H", heads), ("S", new)], flops, move |data| {
        let of_heads = |width| data.numbers(&[1, new, heads, width], 1.0);
        let (q, kv) = (of_heads(n + r)?, of_heads(n + v)?);
        let k_pe = data.numbers(&[1, new, r], 1.0)?;
        let out = data.room(&[1, new, heads, v])?;
        let lse = data.room_of(Element::F32, &[1, new, heads])?;
        let (variant, scale) = (data.variant, ((n + r) as f32).powf(-0.5));
        Ok(Box::new(move || mla_prefill(variant, &q, &kv, &k_pe, None, None, scale, &out, &lse)))
    })
    .of_matrices()
}

/// Reads two partial results with their logarithms, writes one: three operations for each number.
fn of_merge(kind: Kind, model: Model, tokens: usize) -> Case {
    let (heads, v) = (model.num_attention_heads, model.v_head_dim);
    Case::new("merge", kind, model, &[("N", tokens), ("H", heads)], 3 * tokens * heads * v, move |data| {
        let of_rows = || data.numbers(&[tokens, heads, v], 1.0);
        let logarithms = || data.numbers_of(Element::F32, &[tokens, heads], 1.0);
        let (out_a, lse_a, out_b, lse_b) = (of_rows()?, logarithms()?, of_rows()?, logarithms()?);
        let (out, lse) = (data.room(&[tokens, heads, v])?, data.room_of(Element::F32, &[tokens, heads])?);
        let variant = data.variant;
        Ok(Box::new(move || merge(variant, &out_a, &lse_a, &out_b, &lse_b, &out, &lse)))
    })
}
