//! What each collective does, in every order of the ranks.

use dsv2_optimized::collective::emulated::Rank;
use dsv2_optimized::{Element, Result, Tensor};

use crate::bench::ranks;

fn numbers(rank: &Rank, values: &[f32]) -> Result<Tensor> {
    Tensor::from_f32(rank.device(), Element::F32, &[values.len()], values)
}

/// Runs a program on three ranks for several seeds, and returns what it returned each time.
fn on_three(program: impl Fn(&Rank) -> Result<Vec<f32>> + Sync) -> Vec<Vec<f32>> {
    let run = |seed| ranks(3).shuffled(seed).run(&program).unwrap();
    let first = run(0);
    (1..8).for_each(|seed| assert_eq!(run(seed), first, "seed {seed}"));
    first
}

#[test]
fn an_all_reduce_adds_in_the_order_of_the_ranks() {
    // In another order the sum is 0.
    let sums = on_three(|rank| {
        let tensor = numbers(rank, &[[1e8, -1e8, 1.0][rank.index()], rank.index() as f32])?;
        rank.group(&[0, 1, 2])?.all_reduce("sum", &tensor)?;
        tensor.to_f32()
    });
    assert_eq!(sums, vec![vec![1.0, 3.0]; 3]);
}

#[test]
fn an_all_gather_puts_parts_of_any_length_one_after_another() {
    let all = on_three(|rank| {
        let send = numbers(rank, [[0.0, 1.0].as_slice(), &[], &[2.0]][rank.index()])?;
        let receive = Tensor::empty(rank.device(), Element::F32, &[3])?;
        rank.group(&[0, 1, 2])?.all_gather("parts", &send, &receive, &[2, 0, 1])?;
        receive.to_f32()
    });
    assert_eq!(all, vec![vec![0.0, 1.0, 2.0]; 3]);
}

#[test]
fn a_reduce_scatter_is_a_part_of_the_sum() {
    let parts = on_three(|rank| {
        let at = rank.index() as f32;
        let counts = [1, 2, 0];
        let receive = Tensor::empty(rank.device(), Element::F32, &[counts[rank.index()]])?;
        let send = numbers(rank, &[at, 10.0 * at, 100.0])?;
        rank.group(&[0, 1, 2])?.reduce_scatter("parts", &send, &receive, &counts)?;
        receive.to_f32()
    });
    assert_eq!(parts, [vec![3.0], vec![30.0, 300.0], vec![]]);
}

#[test]
fn an_all_to_all_brings_each_what_each_has_for_it() {
    // Rank i has i + j numbers 10 i + j for rank j.
    let brought = on_three(|rank| {
        let i = rank.index();
        let counts: Vec<usize> = (0..3).map(|j| i + j).collect();
        let send: Vec<f32> = (0..3).flat_map(|j| vec![(10 * i + j) as f32; i + j]).collect();
        let receive = Tensor::empty(rank.device(), Element::F32, &[counts.iter().sum()])?;
        let group = rank.group(&[0, 1, 2])?;
        group.all_to_all("parts", (&numbers(rank, &send)?, counts.clone()), (&receive, counts))?;
        receive.to_f32()
    });
    for (j, brought) in brought.into_iter().enumerate() {
        let expected: Vec<f32> = (0..3).flat_map(|i| vec![(10 * i + j) as f32; i + j]).collect();
        assert_eq!(brought, expected, "rank {j}");
    }
}

#[test]
fn a_broadcast_goes_from_one_to_its_group_alone() {
    let heard = on_three(|rank| {
        let tensor = numbers(rank, &[rank.index() as f32])?;
        if rank.index() != 1 {
            rank.group(&[2, 0])?.broadcast("news", &tensor, 0)?;
        }
        tensor.to_f32()
    });
    assert_eq!(heard, [[2.0], [1.0], [2.0]]);
}

#[test]
fn bf16_is_added_in_fp32_and_rounded_once() {
    let sums = ranks(4).run(|rank| {
        let tensor = Tensor::from_f32(rank.device(), Element::Bf16, &[1], &[[256.0, 1.0, 1.0, 0.0][rank.index()]])?;
        rank.group(&[0, 1, 2, 3])?.all_reduce("sum", &tensor)?;
        tensor.to_f32()
    });
    // Rounded after each addition it would be 256.
    assert_eq!(sums.unwrap(), vec![vec![258.0]; 4]);
}

#[test]
fn a_call_is_done_behind_what_was_asked_for_before_and_before_what_is_asked_for_after() {
    let seen = on_three(|rank| {
        let tensor = numbers(rank, &[7.0])?;
        tensor.write_f32(&[1.0])?;
        rank.group(&[0, 1, 2])?.all_reduce("sum", &tensor)?;
        let copy = numbers(rank, &[0.0])?;
        rank.device().copy(tensor.address(), copy.address(), 4)?;
        tensor.write_f32(&[9.0])?;
        copy.to_f32()
    });
    assert_eq!(seen, vec![vec![3.0]; 3]);
}
