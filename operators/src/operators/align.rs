//! Which tokens go to which expert, sorted and aligned to blocks: what a grouped matrix product over blocks of rows needs.

use ndarray::{Array1, Ix0, Ix2, arr1};

use super::draw::{Draw, int32};
use crate::call::{Call, Computed, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::Tensors;

/// The choices (token * k + slot) of each expert, expert by expert; those of each filled up to a multiple of `block_size` by
/// choices that do not exist (their count); the expert of each block; and how many there are with those that fill up.
///
/// What lies behind those has no meaning: here what fills up, and -1.
pub fn blocks<T>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let chosen = call.index::<Ix2>("topk_ids");
    let count = |name: &str| {
        let given = call.index::<Ix0>(name).into_scalar();
        let count = usize::try_from(given).ok().filter(|&count| count > 0);
        count.ok_or_else(|| contract.mismatch("input", name, "a count above 0", &given.to_string()))
    };
    let (experts, block) = (count("num_experts")?, count("block_size")?);
    if let Some(bad) = chosen.iter().find(|&&expert| !(0..experts as i64).contains(&expert)) {
        let expected = format!("experts 0 to {}", experts - 1);
        return Err(contract.mismatch("input", "topk_ids", &expected, &bad.to_string()));
    }
    let none = chosen.len() as i64;
    let (mut sorted, mut of_block) = (Vec::new(), Vec::new());
    for expert in 0..experts as i64 {
        sorted.extend(chosen.iter().zip(0..).filter(|(chosen, _)| **chosen == expert).map(|(_, choice)| choice));
        sorted.resize(sorted.len().next_multiple_of(block), none);
        of_block.resize(sorted.len() / block, expert);
    }
    let filled = arr1(&[sorted.len() as i64]);
    let most = (chosen.len() + experts * (block - 1)).next_multiple_of(block);
    sorted.resize(most, none);
    of_block.resize(most / block, -1);
    let list = |values: Vec<i64>| Computed::Index(Array1::from(values).into_dyn());
    Ok(vec![
        ("sorted_token_ids", list(sorted)),
        ("expert_ids", list(of_block)),
        ("num_tokens_post_padded", Computed::Index(filled.into_dyn())),
    ])
}

/// Any k experts for each token. `one expert`: the last one for all; `first experts`: those with the lowest numbers.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, k, experts] = ["num_tokens", "top_k", "num_experts"].map(|axis| workload.axis(axis));
    let chosen = |token: usize| -> Vec<i64> {
        let order: Vec<usize> = match () {
            () if workload.has("one expert") => (0..experts).rev().collect(),
            () if workload.has("first experts") => (0..experts).collect(),
            () => draw.permutation(&format!("token {token}"), experts),
        };
        order[..k].iter().map(|&expert| expert as i64).collect()
    };
    Tensors::from_iter([
        ("topk_ids".to_owned(), int32((tokens, k), (0..tokens).flat_map(chosen).collect())),
        ("num_experts".to_owned(), int32((), vec![experts as i64])),
        ("block_size".to_owned(), int32((), vec![workload.axis("block_size") as i64])),
    ])
}
