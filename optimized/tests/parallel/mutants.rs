//! Wrong programs of the kinds that only several ranks have. Each is refused, or its numbers show it.

use std::collections::HashMap;
use std::sync::Mutex;

use dsv2_optimized::collective::emulated::Interference;
use dsv2_optimized::collective::{Call, Operation};
use dsv2_optimized::model::parallel::{Homes, Layout};
use dsv2_optimized::{Element, Error, Tensor};
use dsv2_reference::weights::WeightSource;
use serde_json::json;

use crate::bench::{Budget, config, layout, on_one_device, on_ranks, on_ranks_with, ranks, weights};

const HEADS: Layout = layout(2, 1, Homes::Every);
const EXPERTS: Layout = layout(1, 2, Homes::Every);
const BOTH: Layout = layout(2, 2, Homes::Every);

/// A mutant: its name, where it is tried, and what it makes of a rank's call.
type Mutant = (&'static str, Layout, Interference);

fn sum(call: &Call) -> bool {
    call.operation == Operation::AllReduce
}

fn is(call: &Call, purpose: &str) -> bool {
    call.purpose.ends_with(purpose)
}

/// Changes the calls for which `which` holds, on each rank.
fn change(which: fn(usize, &Call) -> bool, change: fn(&mut Call)) -> Interference {
    Box::new(move |rank, mut call| {
        if which(rank, &call) {
            change(&mut call);
        }
        vec![call]
    })
}

/// So many calls in place of each for which `which` holds.
fn times(which: fn(usize, &Call) -> bool, count: usize) -> Interference {
    Box::new(move |rank, call| vec![call.clone(); if which(rank, &call) { count } else { 1 }])
}

/// The first call of each purpose is remembered; later ones send, or put what comes, where that did.
fn stale(which: fn(&Call) -> bool, side: fn(&mut Call) -> &mut Tensor) -> Interference {
    let first: Mutex<HashMap<(usize, String), Tensor>> = Mutex::default();
    Box::new(move |rank, mut call| {
        if which(&call) {
            let key = (rank, call.purpose.clone());
            let tensor = side(&mut call);
            let earlier = first.lock().unwrap().entry(key).or_insert_with(|| tensor.clone()).clone();
            // A prompt has more rows than a token.
            *tensor = earlier.narrow(0, 0..tensor.shape()[0]).unwrap();
        }
        vec![call]
    })
}

fn broadcast_from<const ROOT: usize>(call: &mut Call) {
    call.operation = Operation::Broadcast { root: ROOT };
}

fn turn_ranks(call: &mut Call) {
    call.ranks = call.ranks.iter().rev().copied().collect();
}

fn turn(counts: &mut [usize]) {
    counts.reverse();
}

/// Gives what came back to other senders.
fn mixed_up(call: &mut Call) {
    let width = call.receive.shape()[1];
    let rows = call.receive.shape()[0];
    if rows > 1 {
        call.receive_counts.rotate_left(1);
        call.send_counts.rotate_left(1);
        assert!(width > 0);
    }
}

fn mutants() -> Vec<Mutant> {
    vec![
        ("every sum twice", HEADS, times(|_, call| sum(call), 2)),
        ("no sum", HEADS, times(|_, call| sum(call), 0)),
        ("no sum after attention", HEADS, times(|_, call| is(call, "o_proj: sum"), 0)),
        ("no sum after experts", HEADS, times(|_, call| is(call, "1.mlp: sum"), 0)),
        ("no sum after the dense network", HEADS, times(|_, call| is(call, "0.mlp: sum"), 0)),
        ("no sum on one rank", HEADS, times(|rank, call| sum(call) && rank == 1, 0)),
        ("a sum twice on one rank", HEADS, times(|rank, call| is(call, "2.mlp: sum") && rank == 0, 2)),
        ("the last sum lost on one rank", HEADS, times(|rank, call| is(call, "2.mlp: sum") && rank == 0, 0)),
        ("a sum of one rank", HEADS, change(|_, call| sum(call), broadcast_from::<0>)),
        ("a sum of the other rank", HEADS, change(|_, call| sum(call), broadcast_from::<1>)),
        (
            "half of a sum",
            HEADS,
            change(
                |_, call| sum(call),
                |call| {
                    let rows = call.send.shape()[0] / 2;
                    call.send = call.send.narrow(0, 0..rows).unwrap();
                    call.receive = call.send.clone();
                    call.send_counts = vec![call.send.len()];
                    call.receive_counts = vec![call.send.len()];
                },
            ),
        ),
        ("another operation on one rank", HEADS, change(|rank, call| sum(call) && rank == 1, broadcast_from::<0>)),
        ("a sum over all ranks", BOTH, change(|_, call| sum(call), |call| call.ranks = [0, 1, 2, 3].into())),
        (
            "a sum over the other group",
            BOTH,
            Box::new(|rank, mut call| {
                if sum(&call) {
                    call.ranks = if rank % 2 == 0 { [0, 2].into() } else { [1, 3].into() };
                }
                vec![call]
            }),
        ),
        (
            "a sum over the other group on one rank",
            BOTH,
            change(
                |rank, call| sum(call) && rank == 3,
                |call| {
                    call.ranks = [1, 3].into();
                },
            ),
        ),
        (
            "tokens to the other group",
            BOTH,
            Box::new(|rank, mut call| {
                if call.operation == Operation::AllToAll {
                    call.ranks = if rank < 2 { [0, 1].into() } else { [2, 3].into() };
                }
                vec![call]
            }),
        ),
        ("a sum put where an earlier one was", HEADS, stale(sum, |call| &mut call.receive)),
        ("an earlier sum's parts", HEADS, stale(sum, |call| &mut call.send)),
        (
            "counts of tokens swapped",
            EXPERTS,
            change(|_, call| is(call, ": tokens"), |call| turn(&mut call.send_counts)),
        ),
        (
            "counts swapped where they come",
            EXPERTS,
            change(
                |_, call| is(call, ": tokens"),
                |call| {
                    turn(&mut call.receive_counts);
                },
            ),
        ),
        ("the numbers of tokens swapped", EXPERTS, change(|_, call| is(call, ": counts"), turn_ranks)),
        ("tokens to the other rank", EXPERTS, change(|_, call| is(call, ": tokens"), turn_ranks)),
        ("no tokens", EXPERTS, times(|_, call| is(call, ": tokens"), 0)),
        ("tokens of an earlier pass", EXPERTS, stale(|call| is(call, ": tokens"), |call| &mut call.send)),
        ("no experts' numbers", EXPERTS, times(|_, call| is(call, ": experts"), 0)),
        ("no results", EXPERTS, times(|_, call| is(call, ": results"), 0)),
        ("results to others", EXPERTS, change(|_, call| is(call, ": results"), mixed_up)),
        ("results put where earlier ones were", EXPERTS, stale(|call| is(call, ": results"), |call| &mut call.receive)),
        ("results of an earlier pass", EXPERTS, stale(|call| is(call, ": results"), |call| &mut call.send)),
        ("rows in another order", EXPERTS, change(|_, call| is(call, ": rows"), turn_ranks)),
        ("no rows of others", EXPERTS, times(|_, call| is(call, ": rows"), 0)),
        ("rows of an earlier pass", EXPERTS, stale(|call| is(call, ": rows"), |call| &mut call.send)),
    ]
}

#[test]
fn every_mutant_of_a_call_is_caught() {
    let config = config(json!({}));
    let (budget, alone) = (Budget::of(&config), on_one_device(&config, Element::F32));
    let mutants = mutants();
    assert!(mutants.len() >= 20);
    for (name, layout, interference) in mutants {
        let all = on_ranks(&config, Element::F32, layout, ranks(layout.ranks()).interfered(interference));
        let caught = match &all {
            Err(error) => matches!(error, Error::Ranks(_)),
            Ok(all) if layout.tensor > 1 => !all.iter().all(|stages| budget.holds(stages)),
            Ok(all) => all.iter().any(|stages| *stages != alone),
        };
        assert!(caught, "{name}");
        println!("{name}: {}", all.map_or_else(|error| error.to_string(), |_| "other numbers".into()));
    }
}

#[test]
fn experts_and_heads_of_another_rank_are_caught() {
    let config = config(json!({}));
    let (budget, alone) = (Budget::of(&config), on_one_device(&config, Element::F32));
    // Rank 1 has the experts from 5 on, not from 6.
    let off_by_one = |rank: usize, name: &str, shape: &[usize]| match name.split_once(".experts.") {
        Some((path, rest)) if rank == 1 => {
            let (expert, rest) = rest.split_once('.').unwrap();
            let expert = expert.parse::<usize>().unwrap() - 1;
            weights().tensor(&format!("{path}.experts.{expert}.{rest}"), shape)
        }
        _ => weights().tensor(name, shape),
    };
    let all = on_ranks_with(&off_by_one, &config, Element::F32, EXPERTS, ranks(2)).unwrap();
    assert!(all.iter().any(|stages| *stages != alone));

    // Rank 1 has the rows of rank 0 of the projections by heads.
    let same_heads = |rank: usize, name: &str, shape: &[usize]| {
        let whole = weights().tensor(name, shape)?;
        match name.ends_with("kv_b_proj.weight") && rank == 1 {
            false => Ok(whole),
            true => {
                let values = whole.to_array::<f64, ndarray::Ix2>();
                let half = shape[0] / 2;
                let rows = (0..shape[0]).flat_map(|row| values.row(row % half).to_vec());
                Ok(dsv2_reference::Tensor::from_values(whole.dtype(), shape, rows.collect::<Vec<_>>()))
            }
        }
    };
    let all = on_ranks_with(&same_heads, &config, Element::F32, HEADS, ranks(2)).unwrap();
    assert!(!all.iter().all(|stages| budget.holds(stages)));
}
