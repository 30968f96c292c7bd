//! What the losses are worth.

use dsv2_reference::paper::training::balance_loss::{V2_COMMUNICATION_ALPHA, V2_DEVICE_ALPHA, V2_EXPERT_ALPHA};
use dsv2_testing::for_all;
use ndarray::array;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// V2's routed experts, of which each token selects 6, on 8 devices, of which it may use 3.
const V2: (usize, usize, usize, usize) = (160, 6, 8, 3);

#[test]
fn a_balanced_choice_with_uniform_affinity_costs_alpha() {
    // Of V2's experts and others; k divides no device, so that a token uses one device or two.
    let shapes = prop_oneof![
        Just(V2),
        (1..=3_usize, 1..=4_usize)
            .prop_flat_map(|(size, devices)| { (Just(size * devices), 1..=size, Just(devices), 1..=devices) })
    ];
    for_all(shapes, |loss: &Loss, (experts, k, devices, limit): (usize, usize, usize, usize)| {
        let (routing, placement) = (in_turn(experts, k, experts), Placement::contiguous(experts, devices).unwrap());
        let used: usize = routing.devices_of_tokens(&placement).iter().map(Vec::len).sum();
        let communication = Level::Communication { placement: &placement, device_limit: limit };
        for (level, alpha, expected) in [
            (Level::Expert, V2_EXPERT_ALPHA, 1.0),
            (Level::Device(&placement), V2_DEVICE_ALPHA, 1.0),
            (communication, V2_COMMUNICATION_ALPHA, used as f64 / (experts * limit) as f64),
        ] {
            let value = loss(&BalanceLoss { level, over: Over::EachSequence, alpha }, &routing, 1);
            close(value / alpha, expected)?;
        }
        Ok(())
    })
    .tried(64)
    .holds_for(&reference)
    .fails_for("f without K_r", &Equations::F_WITHOUT_K.loss())
    .fails_for("P summed over the tokens", &Equations::P_SUMMED.loss())
    .fails_for("f' a sum", &Equations::DEVICE_F_SUMMED.loss())
    .fails_for("P' a mean", &Equations::DEVICE_P_AVERAGED.loss())
    .fails_for("f'' without M", &Equations::TRAFFIC_WITHOUT_M.loss());
}

#[test]
fn a_uniform_load_or_a_uniform_affinity_is_enough_for_alpha() {
    for_all(cases(), |loss: &Loss, case| {
        let routed = case.routing();
        let uniform_affinity = Routing { router_logits: routed.router_logits.mapv(|_| 0.5), ..routed.clone() };
        // Every expert is selected by every token.
        let uniform_load = Case { limit: case.devices, k: case.experts(), ..case.clone() }.routing();
        for routing in [&uniform_affinity, &uniform_load] {
            let [expert, device, _] = of_levels(loss, &case.placement(), case.devices, routing);
            close(expert, 1.0)?;
            close(device, 1.0)?;
        }
        // For the communication it is only if all tokens use M devices.
        let used: usize = routed.devices_of_tokens(&case.placement()).iter().map(Vec::len).sum();
        let [.., communication] = of_levels(loss, &case.placement(), case.limit, &uniform_affinity);
        close(communication, used as f64 / (case.limit * case.tokens()) as f64)
    })
    .holds_for(&reference)
    .fails_for("f from the scores", &Equations::F_FROM_SCORES.loss())
    .fails_for("f of the first choice alone", &Equations::F_OF_THE_FIRST.loss())
    .fails_for("P of the selected experts", &Equations::P_OF_SELECTED.loss())
    .fails_for("a token counts for each of its experts", &Equations::TRAFFIC_OF_EXPERTS.loss());
}

#[test]
fn a_single_token_costs_alpha_or_more_in_plain_top_k() {
    for_all(cases(), |loss: &Loss, case| {
        let greedy = Case { devices: 1, limit: 1, eighths: case.eighths[..1].to_vec(), ..case };
        let [expert, ..] = of_levels(loss, &greedy.placement(), 1, &greedy.routing());
        prop_assert!(expert >= 1.0 - TOLERANCE, "{}", expert);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("f from the scores", &Equations::F_FROM_SCORES.loss())
    .fails_for("f of the first choice alone", &Equations::F_OF_THE_FIRST.loss());
}

#[test]
fn alpha_is_no_lower_bound_for_two_tokens() {
    // The first token hardly prefers expert 0, the second one dislikes it: f and P point in opposite directions.
    let logits = array![[0.34, 0.33, 0.33], [0.02, 0.50, 0.48]].ln();
    let routing = RoutingRule::new(3, TopkMethod::Greedy, 1).unwrap().route(logits).unwrap();
    assert_eq!(routing.topk_indices, array![[0], [1]]);
    let loss = BalanceLoss { level: Level::Expert, over: Over::EachSequence, alpha: 1.0 };
    let value: f64 = loss.value(&routing, 1).unwrap();
    // f = (3/2, 3/2, 0), P = (0.18, 0.415, 0.405)
    assert!((value - 1.5 * (0.18 + 0.415)).abs() < 1e-15 && value < 0.9, "{value}");

    // So this is no law, although nearly all cases obey it.
    for_all(cases(), |loss: &Loss, case| {
        let greedy = Case { devices: 1, limit: 1, ..case };
        let [expert, ..] = of_levels(loss, &greedy.placement(), 1, &greedy.routing());
        prop_assert!(expert >= 1.0 - TOLERANCE, "{}", expert);
        Ok(())
    })
    .fails_for("the reference", &reference);
}

#[test]
fn no_loss_exceeds_its_bound() {
    for_all(cases(), |loss: &Loss, case| {
        let [expert, device, communication] = of_levels(loss, &case.placement(), case.limit, &case.routing());
        let within = |loss: f64, bound: f64| loss <= bound * (1.0 + TOLERANCE);
        prop_assert!(within(expert, case.experts() as f64 / case.k as f64), "E/k {}", expert);
        prop_assert!(within(device, case.devices as f64), "D {}", device);
        prop_assert!(within(communication, case.devices as f64 / case.limit as f64), "D/M {}", communication);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("f without K_r", &Equations::F_WITHOUT_K.loss())
    .fails_for("P summed over the tokens", &Equations::P_SUMMED.loss())
    .fails_for("f' a sum", &Equations::DEVICE_F_SUMMED.loss())
    .fails_for("a token counts for each of its experts", &Equations::TRAFFIC_OF_EXPERTS.loss())
    .fails_for("f'' without M", &Equations::TRAFFIC_WITHOUT_M.loss());
}

#[test]
fn on_one_device_the_device_loss_is_alpha_and_with_one_expert_each_it_is_the_expert_loss() {
    for_all(cases(), |loss: &Loss, case| {
        let routing = case.routing();
        let one = Placement::contiguous(case.experts(), 1).unwrap();
        let [expert, device, communication] = of_levels(loss, &one, 1, &routing);
        close(device, 1.0)?;
        close(communication, 1.0)?;
        let each = Placement::contiguous(case.experts(), case.experts()).unwrap();
        let [_, device, communication] = of_levels(loss, &each, case.k, &routing);
        close(device, expert)?;
        close(communication, expert)
    })
    .holds_for(&reference)
    .fails_for("f' a sum", &Equations::DEVICE_F_SUMMED.loss())
    .fails_for("P' a mean", &Equations::DEVICE_P_AVERAGED.loss())
    .fails_for("a token counts for each of its experts", &Equations::TRAFFIC_OF_EXPERTS.loss());
}

#[test]
fn uniform_affinity_costs_alpha_on_devices_of_unlike_size() {
    let cases = (cases(), any::<Index>()).prop_filter("two experts", |(case, _)| case.experts() > 1);
    for_all(cases, |loss: &Loss, (case, first): (Case, Index)| {
        let first = 1 + first.index(case.experts() - 1); // so many on the first device, all others on the second
        let placement = Placement::new((0..case.experts()).map(|e| usize::from(e >= first)).collect(), 2).unwrap();
        let routing = Routing { router_logits: case.logits() * 0.0, ..case.routing() };
        let [_, device, _] = of_levels(loss, &placement, 1, &routing);
        close(device, 1.0)
    })
    .holds_for(&reference)
    .fails_for("f' over E/D experts, as if all devices held as many", &Equations::DEVICE_F_OVER_EQUAL_SHARES.loss());
}

#[test]
fn the_order_of_the_tokens_of_a_sequence_does_not_matter() {
    let cases = cases().prop_flat_map(|case| {
        let order = Just((0..case.tokens()).collect::<Vec<_>>()).prop_shuffle();
        (order, Just(case))
    });
    for_all(cases, |loss: &Loss, (order, case): (Vec<usize>, Case)| {
        let permuted = Case { eighths: order.iter().map(|&t| case.eighths[t].clone()).collect(), ..case.clone() };
        let losses = [case, permuted].map(|case| of_levels(loss, &case.placement(), case.limit, &case.routing()));
        losses[0].into_iter().zip(losses[1]).try_for_each(|(a, b)| close(a, b))
    })
    .holds_for(&reference)
    .fails_for("P of the last token", &Equations::P_OF_THE_LAST.loss());
}

#[test]
fn other_names_for_the_experts_leave_the_losses_as_they_are() {
    let cases = cases().prop_flat_map(|case| {
        let names = Just((0..case.experts()).collect::<Vec<_>>()).prop_shuffle();
        (names, Just(case))
    });
    for_all(cases, |loss: &Loss, (names, case): (Vec<usize>, Case)| {
        let (routing, placement) = (case.routing(), case.placement());
        let mut renamed = routing.clone();
        renamed.topk_indices.mapv_inplace(|e| names[e as usize] as i64);
        let mut device_of = vec![0; case.experts()];
        for (e, &name) in names.iter().enumerate() {
            renamed.router_logits.column_mut(name).assign(&routing.router_logits.column(e));
            device_of[name] = placement.device_of(e);
        }
        let replaced = Placement::new(device_of, case.devices).unwrap();
        let before = of_levels(loss, &placement, case.limit, &routing);
        let after = of_levels(loss, &replaced, case.limit, &renamed);
        before.into_iter().zip(after).try_for_each(|(a, b)| close(a, b))
    })
    .holds_for(&reference)
    .fails_for("devices taken for contiguous groups", &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
        let contiguous =
            |placement: &Placement| Placement::contiguous(placement.experts(), placement.devices()).unwrap();
        match loss.level {
            Level::Expert => reference(loss, routing, batch),
            Level::Device(placement) => {
                reference(&BalanceLoss { level: Level::Device(&contiguous(placement)), ..*loss }, routing, batch)
            }
            Level::Communication { placement, device_limit } => {
                let level = Level::Communication { placement: &contiguous(placement), device_limit };
                reference(&BalanceLoss { level, ..*loss }, routing, batch)
            }
        }
    });
}

#[test]
fn the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_sequences() {
    for_all(cases(), |loss: &Loss, case| {
        let (placement, routing) = (case.placement(), case.routing());
        let length = case.tokens() / case.batch;
        let communication = Level::Communication { placement: &placement, device_limit: case.limit };
        for level in [Level::Expert, Level::Device(&placement), communication] {
            let what = BalanceLoss { level, over: Over::EachSequence, alpha: 1.0 };
            let of = |b: usize| loss(&what, &tokens(&routing, b * length, length), 1);
            let mean = (0..case.batch).map(of).sum::<f64>() / case.batch as f64;
            close(loss(&what, &routing, case.batch), mean)?;
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("T is that of the batch", &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
        reference(&BalanceLoss { over: Over::WholeBatch, ..*loss }, routing, batch)
    })
    .fails_for("the sum over the sequences", &|loss: &BalanceLoss, routing: &Routing<f64>, batch| {
        reference(loss, routing, batch) * batch as f64
    });
}

#[test]
fn the_expert_loss_is_that_of_the_original_code_with_seq_aux_and_without() {
    // As it is written there: scattered counts over S k / E for each sequence; one-hot means for the batch.
    let original = |case: &Case, seq_aux: bool| {
        let (routing, experts) = (case.routing(), case.experts());
        let one_hot = |slots: &[i64]| {
            let mut counts = Array1::<f64>::zeros(experts);
            slots.iter().for_each(|&e| counts[e as usize] += 1.0);
            counts
        };
        let (scores, slots) = (routing.scores(), routing.topk_indices.as_slice().unwrap());
        if !seq_aux {
            let fi = one_hot(slots) / slots.len() as f64 * experts as f64;
            return (scores.mean_axis(Axis(0)).unwrap() * fi).sum();
        }
        let length = case.tokens() / case.batch;
        let of_sequences = slots.chunks(length * case.k).zip(scores.axis_chunks_iter(Axis(0), length));
        let losses = of_sequences.map(|(slots, scores)| {
            let ce = one_hot(slots) / (length as f64 * case.k as f64 / experts as f64);
            (ce * scores.mean_axis(Axis(0)).unwrap()).sum()
        });
        losses.sum::<f64>() / case.batch as f64
    };
    for_all((cases(), any::<bool>()), |loss: &Loss, (case, seq_aux): (Case, bool)| {
        let over = if seq_aux { Over::EachSequence } else { Over::WholeBatch };
        let value = loss(&BalanceLoss { level: Level::Expert, over, alpha: 1.0 }, &case.routing(), case.batch);
        close(value, original(&case, seq_aux))
    })
    .holds_for(&reference)
    .fails_for("the batch as one sequence either way", &|loss: &BalanceLoss, routing: &Routing<f64>, _: usize| {
        reference(loss, routing, 1)
    })
    .fails_for("f without K_r", &Equations::F_WITHOUT_K.loss());
}
