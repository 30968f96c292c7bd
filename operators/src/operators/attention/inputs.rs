//! Queries, caches and tables of pages; keys and values; parts of an attention.

use ndarray::s;

use super::super::draw::{Draw, indptr, int32, scalar};
use crate::contract::Workload;
use crate::tensor::{ElementType, Tensor, Tensors};

/// One new token for each sequence; see [`pages`].
pub fn decode_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    pages(workload, draw, workload.list("kv_lengths").len())
}

/// As many new tokens for each sequence as `q_lengths` says; see [`pages`].
pub fn prefill_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let new = workload.list("q_lengths");
    let mut tensors = pages(workload, draw, new.iter().sum());
    tensors.insert("qo_indptr".to_owned(), indptr(new));
    tensors
}

/// A cache of twice as many pages as the sequences of `kv_lengths` need. `permuted pages`: they lie anywhere. `NaN in unused
/// cache`: slots without a token hold NaN, as memory that was something else before does. With a `kv_scale` the cache is in
/// fp8. `beyond 64K`: no spare pages; the keys that count most are always those behind the 65,536th. `latents`: they are about so large and of one sign, so that every key adds to the sum. `sharp`: scores so far apart that
/// one key is most of each row.
fn pages(workload: &Workload, draw: &Draw, queries: usize) -> Tensors {
    let [heads, ckv, kpe, size] =
        ["num_qo_heads", "head_dim_ckv", "head_dim_kpe", "page_size"].map(|axis| workload.axis(axis));
    let lengths = workload.list("kv_lengths");
    let counts: Vec<usize> = lengths.iter().map(|length| length.div_ceil(size)).collect();
    let used: usize = counts.iter().sum();
    let all = if workload.has("beyond 64K") { used + 1 } else { 2 * used + 1 };
    let kv_scale = workload.numbers.get("kv_scale").copied();
    let order = if workload.has("permuted pages") { draw.permutation("pages", all) } else { (0..all).collect() };
    let mut used_slots = ndarray::Array2::from_elem((all, size), false);
    let mut late_slots = Vec::new();
    let mut pages = order[..used].iter();
    for (&length, &count) in lengths.iter().zip(&counts) {
        for (nth, &page) in pages.by_ref().take(count).enumerate() {
            let filled = size.min(length - nth * size);
            used_slots.slice_mut(s![page, ..filled]).fill(true);
            late_slots.extend((0..filled).filter(|slot| nth * size + slot >= 65_536).map(|slot| (page, slot)));
        }
    }
    let cache = |name: &str, width: usize| {
        let mut values = match workload.numbers.get("latents") {
            Some(&mean) if name == "ckv_cache" => draw.one_sign(name, &[all, size, width], 2, mean),
            _ => draw.normal(name, &[all, size, width], 1.0),
        };
        for &(page, slot) in &late_slots {
            values.slice_mut(s![page, slot, ..]).mapv_inplace(|x| 2.0 * x);
        }
        if workload.has("NaN in unused cache") {
            for ((page, slot), _) in used_slots.indexed_iter().filter(|(_, used)| !**used) {
                values.slice_mut(s![page, slot, ..]).fill(f64::NAN);
            }
        }
        match kv_scale {
            Some(scale) => Tensor::real(ElementType::Float8, values.mapv_into(|x| x / scale)),
            None => Tensor::real(workload.dtype, values),
        }
    };
    // with the usual scale the scores of such queries have a standard deviation of 1; sharp ones, of 8
    let std =
        if workload.has("sharp") { 8.0 } else { workload.number("std", 1.0) } * (192.0 / (ckv + kpe) as f64).sqrt();
    let query = |name, width| Tensor::real(workload.dtype, draw.normal(name, &[queries, heads, width], std));
    let mut tensors = Tensors::from_iter([
        ("q_nope".to_owned(), query("q_nope", ckv)),
        ("q_pe".to_owned(), query("q_pe", kpe)),
        ("ckv_cache".to_owned(), cache("ckv_cache", ckv)),
        ("kpe_cache".to_owned(), cache("kpe_cache", kpe)),
        ("kv_indptr".to_owned(), indptr(&counts)),
        ("kv_indices".to_owned(), int32(used, order[..used].iter().map(|&page| page as i64).collect())),
        ("sm_scale".to_owned(), scalar(1.0 / 192f64.sqrt())),
    ]);
    tensors.extend(kv_scale.map(|scale| ("kv_scale".to_owned(), scalar(scale))));
    if size > 1 {
        // what a sequence without pages has here says nothing
        let last = |&length: &usize| if length == 0 { 0 } else { (length - 1) % size + 1 };
        let last = int32(lengths.len(), lengths.iter().map(|length| last(length) as i64).collect());
        tensors.insert("kv_last_page_len".to_owned(), last);
    }
    tensors
}

/// Sequences of `kv_lengths`, the last `q_lengths` of which are new. `values`: they are about so large and of one sign.
pub fn ragged_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [heads, qk, v] = ["num_qo_heads", "head_dim_qk", "head_dim_vo"].map(|axis| workload.axis(axis));
    let (new, all) = (workload.list("q_lengths"), workload.list("kv_lengths"));
    let std = if workload.has("sharp") { 8.0 } else { workload.number("std", 1.0) };
    let tensor = |name, rows: &[usize], width, std| {
        Tensor::real(workload.dtype, draw.normal(name, &[rows.iter().sum(), heads, width], std))
    };
    let values = match workload.numbers.get("values") {
        Some(&mean) => Tensor::real(workload.dtype, draw.one_sign("v", &[all.iter().sum(), heads, v], 2, mean)),
        None => tensor("v", all, v, 1.0),
    };
    Tensors::from_iter([
        ("q".to_owned(), tensor("q", new, qk, std)),
        ("k".to_owned(), tensor("k", all, qk, 1.0)),
        ("v".to_owned(), values),
        ("qo_indptr".to_owned(), indptr(new)),
        ("kv_indptr".to_owned(), indptr(all)),
        ("sm_scale".to_owned(), scalar(1.0 / (qk as f64).sqrt())),
    ])
}

/// Two parts. `no keys`: in some heads one part, or both, saw none; what their rows hold then counts for nothing. `far apart`: the
/// denominators differ by up to 2^200. `weights between two of bf16`: 0.75 and nearly half of what lies to the next number, so that
/// rounding them moves every row to the same side.
pub fn states(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, heads, width] = ["seq_len", "num_heads", "head_dim"].map(|axis| workload.axis(axis));
    let std = if workload.has("far apart") { 60.0 } else { 2.0 };
    let mut denominators = ["s_a", "s_b"].map(|name| draw.normal(name, &[tokens, heads], std));
    let mut values = ["v_a", "v_b"].map(|name| draw.normal(name, &[tokens, heads, width], 1.0));
    if workload.has("weights between two of bf16") {
        denominators[0] = denominators[1].mapv(|s| s + 1.5986);
        values[1] *= 0.01;
    }
    if workload.has("no keys") {
        for token in 0..tokens {
            for head in 0..heads {
                for (part, of_none) in [(0, [1, 3]), (1, [2, 3])] {
                    if of_none.contains(&((token + head) % 4)) {
                        denominators[part][[token, head]] = f64::NEG_INFINITY;
                    }
                }
            }
        }
    }
    let [s_a, s_b] = denominators.map(|values| Tensor::real(ElementType::Float32, values));
    let [v_a, v_b] = values.map(|values| Tensor::real(workload.dtype, values));
    Tensors::from_iter(
        [("v_a", v_a), ("s_a", s_a), ("v_b", v_b), ("s_b", s_b)].map(|(name, tensor)| (name.to_owned(), tensor)),
    )
}
