//! From tokens to experts and back: every pair of token and slot, once.

use dsv2_reference::model::router::{DROPPED, Routing};
use dsv2_reference::paper::parallel::Placement;
use dsv2_testing::for_all;
use ndarray::Array2;
use proptest::prelude::*;

use super::*;

/// For each expert its tokens and their weights.
type Dispatch = dyn Fn(&Routing<f64>) -> Vec<Vec<(usize, f64)>>;

fn reference(routing: &Routing<f64>) -> Vec<Vec<(usize, f64)>> {
    routing.tokens_of_experts()
}

/// Every expert takes so many tokens and no more, as with capacities per expert.
fn at_most(capacity: usize) -> impl Fn(&Routing<f64>) -> Vec<Vec<(usize, f64)>> {
    move |routing| {
        let mut tokens = reference(routing);
        tokens.iter_mut().for_each(|of| of.truncate(capacity));
        tokens
    }
}

#[test]
fn every_pair_of_token_and_slot_is_in_its_experts_segment_once_and_a_dropped_one_nowhere() {
    // The order inside a segment is nobody's business.
    let cases = cases().prop_flat_map(|case| {
        let pairs = case.eighths.len() * case.k;
        (Just(case), proptest::collection::vec(any::<bool>(), pairs))
    });
    for_all(cases, |dispatch: &Dispatch, (case, dropped): (Case, Vec<bool>)| {
        let mut routing = super::reference(&case);
        routing.topk_indices.iter_mut().zip(&dropped).filter(|(_, dropped)| **dropped).for_each(|(e, _)| *e = DROPPED);
        let mut expected = vec![Vec::new(); case.experts()];
        for ((t, slot), &expert) in routing.topk_indices.indexed_iter().filter(|(_, e)| **e != DROPPED) {
            expected[expert as usize].push((t, routing.topk_weights[[t, slot]]));
        }
        let mut found = dispatch(&routing);
        found.iter_mut().chain(&mut expected).for_each(|of| of.sort_by_key(|(token, _)| *token));
        prop_assert_eq!(found, expected);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("to the expert of the next slot", &|routing: &Routing<f64>| {
        let mut shifted = routing.clone();
        shifted.topk_indices.rows_mut().into_iter().for_each(|mut row| row.as_slice_mut().unwrap().rotate_left(1));
        reference(&shifted)
    })
    .fails_for("what was dropped is written to the last expert (index -1)", &|routing: &Routing<f64>| {
        let last = routing.router_logits.ncols() as i64 - 1;
        reference(&Routing {
            topk_indices: routing.topk_indices.mapv(|e| if e < 0 { last } else { e }),
            ..routing.clone()
        })
    })
    .fails_for("two tokens for each expert, no more", &at_most(2));
}

#[test]
fn tokens_come_back_unchanged_from_experts_that_do_nothing() {
    // k is a power of two, so that k times 1/k is 1 exactly; the tokens are whole numbers.
    let cases = cases().prop_map(|case| Case { k: 1 << case.k.ilog2(), ..case });
    for_all(cases, |dispatch: &Dispatch, case| {
        let mut routing = super::reference(&case);
        routing.topk_weights.fill(1.0 / case.k as f64);
        let tokens = case.logits();
        let mut combined = Array2::zeros(tokens.dim());
        for (token, weight) in dispatch(&routing).into_iter().flatten() {
            combined.row_mut(token).scaled_add(weight, &tokens.row(token));
        }
        prop_assert_eq!(combined, tokens);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("two tokens for each expert, no more", &at_most(2))
    .fails_for("every expert writes to the rows of its segment", &|routing: &Routing<f64>| {
        let in_segment = |of: Vec<(usize, f64)>| of.into_iter().enumerate().map(|(row, (_, w))| (row, w)).collect();
        reference(routing).into_iter().map(in_segment).collect()
    });
}

#[test]
fn counts_are_column_sums_of_the_one_hot_choice_and_sum_to_t_times_k() {
    type Counts = dyn Fn(&Routing<f64>) -> Vec<usize>;
    for_all(cases(), |counts: &Counts, case| {
        let routing = super::reference(&case);
        let counts = counts(&routing);
        prop_assert_eq!(counts.iter().sum::<usize>(), case.eighths.len() * case.k);
        let one_hot = |e: usize| chosen(&routing).iter().filter(|experts| experts.contains(&e)).count();
        prop_assert_eq!(counts, (0..case.experts()).map(one_hot).collect::<Vec<_>>());
        Ok(())
    })
    .holds_for(&|routing: &Routing<f64>| routing.tokens_per_expert())
    .fails_for("only the best expert counts (Switch)", &|routing: &Routing<f64>| {
        let mut counts = vec![0; routing.router_logits.ncols()];
        routing.topk_indices.column(0).iter().for_each(|&e| counts[e as usize] += 1);
        counts
    })
    .fails_for("no counts for experts after the last one used", &|routing: &Routing<f64>| {
        let mut counts = routing.tokens_per_expert();
        while counts.last() == Some(&0) {
            counts.pop(); // torch.bincount without minlength
        }
        counts
    });
}

#[test]
fn a_device_receives_a_token_once_and_all_devices_together_m_times_t_at_most() {
    type Sent = dyn Fn(&Routing<f64>, &Placement) -> Vec<usize>;
    for_all(cases(), |sent: &Sent, case| {
        let routing = super::reference(&case);
        let placement = Placement::contiguous(case.experts(), case.n_group).unwrap();
        let sent = sent(&routing, &placement);
        prop_assert!(sent.iter().sum::<usize>() <= case.topk_group * case.eighths.len(), "{sent:?}");
        let receives = |device: usize| {
            chosen(&routing).iter().filter(|experts| experts.iter().any(|&e| placement.device_of(e) == device)).count()
        };
        prop_assert_eq!(sent, (0..case.n_group).map(receives).collect::<Vec<_>>());
        Ok(())
    })
    .holds_for(&|routing: &Routing<f64>, placement: &Placement| routing.tokens_per_device(placement))
    .fails_for("once for each of its experts", &|routing: &Routing<f64>, placement: &Placement| {
        let counts = routing.tokens_per_expert();
        let of_device = |device| placement.experts_of(device).iter().map(|&e| counts[e]).sum();
        (0..placement.devices()).map(of_device).collect()
    });
}
