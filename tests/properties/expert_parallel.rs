//! Expert parallelism: no placement of the experts changes what a layer computes, and what must travel can be counted.

use std::collections::BTreeSet;

use dsv2_reference::model::router::Routing;
use dsv2_reference::paper::parallel::Placement;
use dsv2_reference::paper::parallel::expert_parallel::{Combine, Dispatch, Shipment, Traffic, forward};
use dsv2_testing::for_all;
use ndarray::{Array2, ArrayView2, Axis};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::models::distance;
use crate::moe_layer::{Layer, layers, shared, unsplit};

/// A layer, and the device of each of its experts. Some devices may have none.
#[derive(Clone, Debug)]
struct Split {
    layer: Layer,
    devices: usize,
    device_of_expert: Vec<usize>,
}

fn splits() -> impl Strategy<Value = Split> {
    (layers(), 1..=4_usize).prop_flat_map(|(layer, devices)| {
        let placement = vec(0..devices, layer.experts());
        (Just(layer), placement).prop_map(move |(layer, device_of_expert)| Split { layer, devices, device_of_expert })
    })
}

impl Split {
    fn placement(&self) -> Placement {
        Placement::new(self.device_of_expert.clone(), self.devices).unwrap()
    }

    fn routing(&self) -> Routing<f64> {
        self.layer.moe().route(self.layer.input().view()).unwrap()
    }

    fn dispatch(&self) -> Dispatch<f64> {
        Dispatch::new(self.layer.input().view(), &self.routing(), &self.placement()).unwrap()
    }
}

/// A program that computes a layer on many devices: \[N,D\].
type Program = dyn Fn(&Split, Combine) -> Array2<f64>;

fn reference(split: &Split, combine: Combine) -> Array2<f64> {
    forward(&split.layer.moe(), split.layer.input().view(), &split.placement(), combine).unwrap().0
}

/// The reference with other shipments, with other experts than those asked for, with the shared experts added as often
/// as it says for a token of so many devices.
fn wrong(
    change: impl Fn(&mut Shipment<f64>),
    expert_for: impl Fn(usize, usize) -> usize,
    shared_times: impl Fn(usize) -> f64,
) -> impl Fn(&Split, Combine) -> Array2<f64> {
    move |split, combine| {
        let (moe, tokens, mut dispatch) = (split.layer.moe(), split.layer.input(), split.dispatch());
        let times = Array2::from_shape_fn((tokens.nrows(), 1), |(token, _)| {
            shared_times(dispatch.traffic().devices_per_token[token])
        });
        dispatch.shipments.iter_mut().for_each(&change);
        let results = dispatch.run(|e, x| moe.experts()[expert_for(e, split.layer.experts())].forward(x));
        dispatch.combine(&results, combine) + shared(&moe, &tokens) * times
    }
}

fn neighbour() -> impl Fn(&Split, Combine) -> Array2<f64> {
    wrong(|_| {}, |e, experts| (e + 1) % experts, |_| 1.0)
}

fn sent_twice() -> impl Fn(&Split, Combine) -> Array2<f64> {
    // A token that selected two experts here comes in two copies, and each copy visits both.
    let twice = |shipment: &mut Shipment<f64>| {
        for row in 0..shipment.tokens.len() {
            let visits = shipment.work.iter().filter(|work| work.rows.contains(&row)).count();
            for work in shipment.work.iter_mut() {
                if let Some(at) = work.rows.iter().position(|&r| r == row) {
                    work.rows.extend(std::iter::repeat_n(row, visits - 1));
                    work.weights.extend(std::iter::repeat_n(work.weights[at], visits - 1));
                }
            }
        }
    };
    wrong(twice, |e, _| e, |_| 1.0)
}

fn weighted_twice() -> impl Fn(&Split, Combine) -> Array2<f64> {
    let square = |shipment: &mut Shipment<f64>| {
        shipment.work.iter_mut().flat_map(|work| &mut work.weights).for_each(|weight| *weight *= *weight);
    };
    wrong(square, |e, _| e, |_| 1.0)
}

fn shared_on_every_device() -> impl Fn(&Split, Combine) -> Array2<f64> {
    wrong(|_| {}, |e, _| e, |devices| devices as f64)
}

fn last_expert_forgotten() -> impl Fn(&Split, Combine) -> Array2<f64> {
    let forget = |shipment: &mut Shipment<f64>| {
        if let [_, .., last] = &mut shipment.work[..] {
            last.weights.fill(0.0);
        }
    };
    wrong(forget, |e, _| e, |_| 1.0)
}

#[test]
fn combined_by_expert_any_placement_is_the_unsplit_layer_to_the_bit() {
    for_all(splits(), |program: &Program, split| {
        let expected = unsplit(&split.layer.moe(), &split.layer.input());
        prop_assert_eq!(program(&split, Combine::ByExpert), expected);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("an expert's output is taken for its neighbour's", &neighbour())
    .fails_for("a token is sent once for each expert, and each copy visits all", &sent_twice())
    .fails_for("the weights are applied on the device and at home", &weighted_twice())
    .fails_for("every device adds the shared experts", &shared_on_every_device())
    .fails_for("a device's last expert is forgotten", &last_expert_forgotten())
    .fails_for("summed by device", &|split, _| reference(split, Combine::ByDevice));
}

#[test]
fn combined_by_device_any_placement_is_the_unsplit_layer_within_rounding() {
    // k numbers in another order: at most 2 (k - 1) roundings of the sum of their sizes. Measured: 3e-16 of the largest
    // number.
    for_all(splits(), |program: &Program, split| {
        let expected = unsplit(&split.layer.moe(), &split.layer.input());
        let error = distance(&program(&split, Combine::ByDevice), &expected);
        prop_assert!(error < 1e-14, "{error:e}");
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("an expert's output is taken for its neighbour's", &neighbour())
    .fails_for("a token is sent once for each expert, and each copy visits all", &sent_twice())
    .fails_for("the weights are applied on the device and at home", &weighted_twice())
    .fails_for("every device adds the shared experts", &shared_on_every_device())
    .fails_for("a device's last expert is forgotten", &last_expert_forgotten());
}

#[test]
fn combined_by_device_it_is_the_unsplit_layer_to_the_bit_where_nothing_is_split() {
    // All experts on one of several devices (the others are idle), or no token with more than one expert.
    for_all((splits(), any::<bool>()), |program: &Program, (split, one_device)| {
        let split = if one_device {
            Split { device_of_expert: vec![split.device_of_expert[0]; split.layer.experts()], ..split }
        } else {
            Split { layer: Layer { k: 1, ..split.layer }, ..split }
        };
        let expected = unsplit(&split.layer.moe(), &split.layer.input());
        prop_assert_eq!(program(&split, Combine::ByDevice), expected);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("each device's sum is rounded to fp32 for the way back", &|split, combine| {
        let shared = shared(&split.layer.moe(), &split.layer.input());
        (reference(split, combine) - &shared).mapv(|x| f64::from(x as f32)) + shared
    })
    .fails_for("a token is sent once for each expert, and each copy visits all", &sent_twice());
}

/// What a program sends: the shipment to each device.
type Sender = dyn Fn(&Split) -> Vec<Shipment<f64>>;

#[test]
fn each_device_is_sent_the_tokens_it_needs_once_and_all_their_work() {
    for_all(splits(), |send: &Sender, split| {
        let (routing, placement, input) = (split.routing(), split.placement(), split.layer.input());
        let devices_of_tokens = routing.devices_of_tokens(&placement);
        let mut pairs = BTreeSet::new();
        let shipments = send(&split);
        prop_assert_eq!(shipments.len(), split.devices);
        for (device, shipment) in shipments.iter().enumerate() {
            let needed: Vec<usize> =
                (0..split.layer.tokens).filter(|&t| devices_of_tokens[t].contains(&device)).collect();
            prop_assert_eq!(&shipment.tokens, &needed);
            prop_assert_eq!(&shipment.rows, input.select(Axis(0), &needed));
            for work in &shipment.work {
                prop_assert_eq!(placement.device_of(work.expert), device);
                prop_assert!(!work.rows.is_empty());
                for (row, weight) in work.rows.iter().zip(&work.weights) {
                    let new = pairs.insert((shipment.tokens[*row], work.expert as i64, weight.to_bits()));
                    prop_assert!(new, "token {} visits expert {} twice", shipment.tokens[*row], work.expert);
                }
            }
        }
        let selected = routing
            .topk_indices
            .indexed_iter()
            .map(|((token, slot), &expert)| (token, expert, routing.topk_weights[[token, slot]].to_bits()));
        prop_assert_eq!(pairs, selected.collect());
        Ok(())
    })
    .holds_for(&|split| split.dispatch().shipments)
    .fails_for("experts are looked for on device e mod D", &|split| {
        let device_of_expert = (0..split.layer.experts()).map(|e| e % split.devices).collect();
        Split { device_of_expert, ..split.clone() }.dispatch().shipments
    })
    .fails_for("every device is sent every token", &|split| {
        let mut shipments = split.dispatch().shipments;
        for shipment in &mut shipments {
            for work in &mut shipment.work {
                work.rows.iter_mut().for_each(|row| *row = shipment.tokens[*row]);
            }
            shipment.tokens = (0..split.layer.tokens).collect();
            shipment.rows = split.layer.input();
        }
        shipments
    })
    .fails_for("weights belong to slots in the order of the devices", &|split| {
        let mut shipments = split.dispatch().shipments;
        let weights: Vec<f64> = split.routing().topk_weights.iter().copied().collect();
        let all = shipments.iter_mut().flat_map(|shipment| &mut shipment.work).flat_map(|work| &mut work.weights);
        all.zip(weights).for_each(|(slot, weight)| *slot = weight);
        shipments
    });
}

/// A program that counts what travels.
type Counter = dyn Fn(&Split) -> Traffic;

fn traffic(split: &Split) -> Traffic {
    split.dispatch().traffic()
}

#[test]
fn device_limited_routing_sends_a_token_to_at_most_m_devices() {
    // Groups are devices: at most topk_group of them, and at most k.
    for_all(splits(), |count: &Counter, split| {
        let layer = &split.layer;
        let by_group = (0..layer.experts()).map(|e| e / layer.group_size).collect();
        let split = Split { devices: layer.n_group, device_of_expert: by_group, layer: layer.clone() };
        let traffic = count(&split);
        let most = layer.topk_group.min(layer.k);
        prop_assert!(traffic.devices_per_token.iter().all(|devices| (1..=most).contains(devices)));
        prop_assert!(traffic.copies() <= most * layer.tokens);
        Ok(())
    })
    .holds_for(&traffic)
    .fails_for("experts are placed across the groups", &|split| {
        let across = (0..split.layer.experts()).map(|e| e % split.devices).collect();
        traffic(&Split { device_of_expert: across, ..split.clone() })
    });
}

#[test]
fn traffic_is_the_number_of_copies_and_results() {
    for_all(splits(), |count: &Counter, split| {
        let (traffic, routing) = (count(&split), split.routing());
        let devices = routing.devices_of_tokens(&split.placement());
        prop_assert_eq!(&traffic.devices_per_token, &devices.iter().map(Vec::len).collect::<Vec<_>>());
        prop_assert_eq!(traffic.copies(), routing.tokens_per_device(&split.placement()).iter().sum::<usize>());
        prop_assert_eq!(traffic.pairs, split.layer.tokens * split.layer.k);
        let row = 2 * split.layer.input().ncols();
        prop_assert_eq!(traffic.bytes_out(2), traffic.copies() * row);
        prop_assert_eq!(traffic.bytes_back(Combine::ByDevice, 2), traffic.bytes_out(2));
        prop_assert_eq!(traffic.bytes_back(Combine::ByExpert, 2), split.layer.tokens * split.layer.k * row);
        Ok(())
    })
    .holds_for(&traffic)
    .fails_for("a copy for each expert", &|split| {
        let devices_per_token = vec![split.layer.k; split.layer.tokens];
        Traffic { devices_per_token, ..traffic(split) }
    })
    .fails_for("every token goes to every device", &|split| {
        let devices_per_token = vec![split.devices; split.layer.tokens];
        Traffic { devices_per_token, ..traffic(split) }
    });
}

/// A program that sends tokens to their experts and adds up what comes back, whatever the experts are.
type Roundtrip = dyn Fn(ArrayView2<f64>, &Routing<f64>, &Placement, Combine) -> Array2<f64>;

#[test]
fn identity_experts_with_weights_of_one_kth_return_the_tokens() {
    // To the bit where k is a power of two.
    let combine = prop_oneof![Just(Combine::ByExpert), Just(Combine::ByDevice)];
    for_all((splits(), combine), |roundtrip: &Roundtrip, (split, combine)| {
        let k = 1 << split.layer.k.ilog2();
        let split = Split { layer: Layer { k, ..split.layer }, ..split };
        let mut routing = split.routing();
        routing.topk_weights.fill(1.0 / k as f64);
        let tokens = split.layer.input();
        prop_assert_eq!(roundtrip(tokens.view(), &routing, &split.placement(), combine), tokens);
        Ok(())
    })
    .holds_for(&|tokens, routing, placement, combine| {
        let dispatch = Dispatch::new(tokens, routing, placement).unwrap();
        let results = dispatch.run(|_, x| x.to_owned());
        dispatch.combine(&results, combine)
    })
    .fails_for("results come back in the device's order of tokens", &|tokens, routing, placement, combine| {
        let mut dispatch = Dispatch::new(tokens, routing, placement).unwrap();
        let results = dispatch.run(|_, x| x.to_owned());
        dispatch.shipments.iter_mut().for_each(|shipment| shipment.tokens.reverse());
        dispatch.combine(&results, combine)
    })
    .fails_for("padded slots of the last device are written", &|tokens, routing, placement, combine| {
        let dispatch = Dispatch::new(tokens, routing, placement).unwrap();
        let results = dispatch.run(|_, x| x.to_owned());
        let mut sum = dispatch.combine(&results, combine);
        sum.row_mut(0).scaled_add(1.0 / routing.topk_indices.ncols() as f64, &tokens.row(tokens.nrows() - 1));
        sum
    });
}

#[test]
fn all_tokens_at_one_expert_and_dropped_slots_are_no_special_cases() {
    let layer = Layer { n_group: 2, group_size: 2, topk_group: 2, k: 2, shared: 0, factor: 1.0, tokens: 3, seed: 5 };
    let (moe, tokens) = (layer.moe(), layer.input());
    let placement = Placement::contiguous(4, 2).unwrap();
    let mut routing = moe.route(tokens.view()).unwrap();
    routing.topk_indices.column_mut(0).fill(3);
    routing.topk_indices.column_mut(1).fill(dsv2_reference::model::router::DROPPED);
    let dispatch = Dispatch::new(tokens.view(), &routing, &placement).unwrap();
    assert!(dispatch.shipments[0].tokens.is_empty() && dispatch.shipments[0].work.is_empty());
    assert_eq!((dispatch.traffic().devices_per_token, dispatch.traffic().pairs), (vec![1, 1, 1], 3));
    let results = dispatch.run(|e, x| moe.experts()[e].forward(x));
    for combine in [Combine::ByExpert, Combine::ByDevice] {
        assert_eq!(dispatch.combine(&results, combine), moe.routed(tokens.view(), &routing).unwrap());
    }
}
