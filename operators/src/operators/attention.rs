//! Attention over the latent cache (C, eq. 41-47, absorbed) and over expanded keys and values (eq. 16-19), as serving engines
//! launch it: paged or ragged, with the logarithm of its denominator, so that parts can be merged.

mod inputs;

use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::{dot, matmul, matmul_t};
use dsv2_reference::arithmetic::softmax::{log_sum_exp, softmax};
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, Ix2, Ix3, concatenate, s};

use crate::call::{Call, Outputs};
use crate::contract::Contract;
use crate::error::Result;

pub use inputs::{decode_inputs, prefill_inputs, ragged_inputs, states};

/// One new token for each sequence against its pages: `softmax(scale (q_nope C^T + q_pe K^T)) C`, and the logarithm to base 2
/// of the denominator. A sequence without tokens has an output of 0 and a denominator of 0.
pub fn paged_decode<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let sequences = call.tensor("q_nope").shape()[0];
    attend_pages(contract, call, (0..=sequences).collect())
}

/// The same for several new tokens for each sequence, the last of which is the last of its pages: each sees what comes before
/// it, and itself.
pub fn paged_prefill<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let begins = offsets(contract, call, "qo_indptr", "q_nope")?;
    attend_pages(contract, call, begins)
}

fn attend_pages<T: Real>(contract: &Contract, call: &Call, queries: Vec<usize>) -> Result<Outputs<T>> {
    let (q_nope, q_pe) = (call.real::<T, Ix3>("q_nope"), call.real::<T, Ix3>("q_pe"));
    let kv_scale: T = if call.has("kv_scale") { call.scalar("kv_scale") } else { T::one() };
    let [ckv_cache, kpe_cache] = ["ckv_cache", "kpe_cache"].map(|cache| call.real::<T, Ix3>(cache));
    let tables = page_tables(contract, call, queries.len() - 1)?;
    let scale: T = call.scalar("sm_scale");
    let mut output = Array3::zeros(q_nope.raw_dim());
    let mut lse = Array2::from_elem((q_nope.len_of(Axis(0)), q_nope.len_of(Axis(1))), T::neg_infinity());
    for (sequence, pages) in tables.iter().enumerate() {
        // Tensor cores do not multiply fp8 with wider numbers: what is stored in fp8 becomes an operand of the queries' type.
        let [keys, k_pe] =
            [&ckv_cache, &kpe_cache].map(|cache| call.operand(gathered(cache, pages).mapv_into(|x| x * kv_scale)));
        let new = queries[sequence]..queries[sequence + 1];
        if new.len() > keys.nrows() && !keys.is_empty() {
            let expected = format!("at most {} new tokens in sequence {sequence}, as many as it has", keys.nrows());
            return Err(contract.mismatch("input", "qo_indptr", &expected, &new.len().to_string()));
        }
        for (ahead, token) in new.clone().rev().enumerate() {
            let seen = keys.nrows().saturating_sub(ahead);
            let (keys, k_pe) = (keys.slice(s![..seen, ..]), k_pe.slice(s![..seen, ..]));
            let scores =
                matmul_t(q_nope.index_axis(Axis(0), token), keys) + matmul_t(q_pe.index_axis(Axis(0), token), k_pe);
            let (attended, denominator) = attend(call, scores.mapv_into(|x| x * scale), keys);
            output.index_axis_mut(Axis(0), token).assign(&attended);
            lse.row_mut(token).assign(&denominator);
        }
    }
    Ok(vec![("output", output.into()), ("lse", lse.into())])
}

/// Expanded keys \[T,H,n+r\] and values \[T,H,v\] of sequences one after another; the last new token of a sequence is the last
/// that it has.
pub fn ragged_prefill<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (q, k, v) = (call.real::<T, Ix3>("q"), call.real::<T, Ix3>("k"), call.real::<T, Ix3>("v"));
    let queries = offsets(contract, call, "qo_indptr", "q")?;
    let keys = offsets(contract, call, "kv_indptr", "k")?;
    let scale: T = call.scalar("sm_scale");
    let mut output = Array3::zeros((q.len_of(Axis(0)), q.len_of(Axis(1)), v.len_of(Axis(2))));
    let mut lse = Array2::from_elem((q.len_of(Axis(0)), q.len_of(Axis(1))), T::neg_infinity());
    for (new, all) in queries.windows(2).zip(keys.windows(2)) {
        if new[1] - new[0] > all[1] - all[0] {
            let expected = format!("at most {} new tokens, as many as the sequence has", all[1] - all[0]);
            return Err(contract.mismatch("input", "qo_indptr", &expected, &(new[1] - new[0]).to_string()));
        }
        for (ahead, token) in (new[0]..new[1]).rev().enumerate() {
            let seen = all[0]..all[1] - ahead;
            for head in 0..q.len_of(Axis(1)) {
                let (keys, values) = (k.slice(s![seen.clone(), head, ..]), v.slice(s![seen.clone(), head, ..]));
                let scores = matmul_t(q.slice(s![token..token + 1, head, ..]), keys).mapv_into(|x| x * scale);
                let (attended, denominator) = attend(call, scores, values);
                output.slice_mut(s![token, head, ..]).assign(&attended.row(0));
                lse[[token, head]] = denominator[0];
            }
        }
    }
    Ok(vec![("output", output.into()), ("lse", lse.into())])
}

/// Scores \[H,T\], scaled, and values \[T,v\] -> what is attended \[H,v\], and the logarithm to base 2 of each denominator.
///
/// An implementation that rounds its operands rounds e^(score - largest) before it is multiplied, and may add up for the
/// denominator what it has rounded.
fn attend<T: Real>(call: &Call, mut scores: Array2<T>, values: ArrayView2<T>) -> (Array2<T>, Array1<T>) {
    let none = T::neg_infinity();
    if values.is_empty() {
        return (Array2::zeros((scores.nrows(), values.ncols())), Array1::from_elem(scores.nrows(), none));
    }
    let log2_e = T::from_f64(std::f64::consts::LOG2_E);
    if !call.rounds_operands() {
        let denominator = scores.rows().into_iter().map(|row| log_sum_exp(row) * log2_e).collect();
        scores.rows_mut().into_iter().for_each(softmax);
        return (matmul(scores.view(), values), denominator);
    }
    let largest: Array1<T> = scores.rows().into_iter().map(|row| row.iter().copied().fold(none, T::max)).collect();
    let weights = call.operand((scores - largest.view().insert_axis(Axis(1))).mapv_into(|z| z.exp()));
    let sums: Array1<T> = weights.rows().into_iter().map(|row| dot(row, Array1::ones(row.len()).view())).collect();
    let attended = matmul(weights.view(), values) / sums.view().insert_axis(Axis(1));
    let denominator = sums.iter().zip(&largest).map(|(sum, largest)| (*largest + sum.ln()) * log2_e).collect();
    (attended, denominator)
}

/// Two parts of one attention, over disjoint sets of keys, as one: `v = (2^s_a v_a + 2^s_b v_b) / (2^s_a + 2^s_b)`.
///
/// **Trap**: a part without keys has a denominator of 0 (`s` is minus infinity); two such parts give 0, not NaN.
pub fn merge_state<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (v_a, v_b) = (call.real::<T, Ix3>("v_a"), call.real::<T, Ix3>("v_b"));
    let (s_a, s_b) = (call.real::<T, Ix2>("s_a"), call.real::<T, Ix2>("s_b"));
    let mut merged = Array3::zeros(v_a.raw_dim());
    let mut denominators = Array2::from_elem(s_a.raw_dim(), T::neg_infinity());
    for ((token, head), &a) in s_a.indexed_iter() {
        let b = s_b[[token, head]];
        let largest = a.max(b);
        if largest == T::neg_infinity() {
            continue;
        }
        let (weight_a, weight_b) = ((a - largest).exp2(), (b - largest).exp2());
        let sum = weight_a + weight_b;
        let part = |v: &Array3<T>, weight: T| {
            v.slice(s![token, head, ..]).mapv(|x| if weight == T::zero() { T::zero() } else { x * weight })
        };
        let row = (part(&v_a, weight_a) + part(&v_b, weight_b)).mapv_into(|x| x / sum);
        merged.slice_mut(s![token, head, ..]).assign(&row);
        denominators[[token, head]] = largest + sum.log2();
    }
    Ok(vec![("v_merged", merged.into()), ("s_merged", denominators.into())])
}

/// Which slots of the cache each sequence has, in order.
fn page_tables(contract: &Contract, call: &Call, sequences: usize) -> Result<Vec<Vec<(usize, usize)>>> {
    let begins = offsets(contract, call, "kv_indptr", "kv_indices")?;
    if begins.len() != sequences + 1 {
        return Err(contract.mismatch("input", "kv_indptr", &(sequences + 1).to_string(), &begins.len().to_string()));
    }
    let cache = call.tensor("ckv_cache").shape();
    let (pages, page_size) = (cache[0], cache[1]);
    let indices = call.index::<ndarray::Ix1>("kv_indices");
    let last = if page_size > 1 { call.index::<ndarray::Ix1>("kv_last_page_len") } else { Array1::ones(sequences) };
    (0..sequences)
        .map(|sequence| {
            let own = begins[sequence]..begins[sequence + 1];
            let count = own.len();
            let mut slots = Vec::new();
            for (nth, at) in own.enumerate() {
                let page = usize::try_from(indices[at]).ok().filter(|&page| page < pages);
                let page = page.ok_or_else(|| {
                    contract.mismatch(
                        "input",
                        "kv_indices",
                        &format!("pages 0 to {}", pages.saturating_sub(1)),
                        &indices[at].to_string(),
                    )
                })?;
                let filled = if nth + 1 == count { last[sequence] } else { page_size as i64 };
                let filled = usize::try_from(filled).ok().filter(|filled| (1..=page_size).contains(filled));
                let filled = filled.ok_or_else(|| {
                    contract.mismatch(
                        "input",
                        "kv_last_page_len",
                        &format!("1 to {page_size}"),
                        &last[sequence].to_string(),
                    )
                })?;
                slots.extend((0..filled).map(|slot| (page, slot)));
            }
            Ok(slots)
        })
        .collect()
}

/// Where each of several sequences begins in `of`, and where the last ends.
fn offsets(contract: &Contract, call: &Call, name: &str, of: &str) -> Result<Vec<usize>> {
    let rows = call.tensor(of).shape()[0];
    let given = call.index::<ndarray::Ix1>(name);
    let rising = given.iter().zip(given.iter().skip(1)).all(|(a, b)| a <= b);
    if given.first() != Some(&0) || given.last() != Some(&(rows as i64)) || !rising {
        let expected = format!("offsets that rise from 0 to {rows}, the rows of {of}");
        return Err(contract.mismatch("input", name, &expected, &given.to_string()));
    }
    Ok(given.iter().map(|&offset| offset as usize).collect())
}

/// The rows of these slots.
fn gathered<T: Real>(cache: &Array3<T>, slots: &[(usize, usize)]) -> Array2<T> {
    let rows: Vec<_> = slots.iter().map(|&(page, slot)| cache.slice(s![page, slot..slot + 1, ..])).collect();
    if rows.is_empty() {
        Array2::zeros((0, cache.len_of(Axis(2))))
    } else {
        concatenate(Axis(0), &rows).expect("rows of one width")
    }
}
