//! Device-level token dropping (2.2.4), as far as the paper goes and as it is pinned here.

mod mutants;

use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router::{Routing, RoutingRule};
use dsv2_reference::paper::parallel::Placement;
use dsv2_reference::paper::training::token_dropping::{Phase, drop_tokens, kept};
use dsv2_testing::for_all;
use ndarray::{Array2, s};
use proptest::collection::vec;
use proptest::prelude::*;

use mutants::{Rule, in_phase};

/// Tokens of some sequences, and experts on devices.
#[derive(Clone, Debug)]
struct Case {
    device_of_expert: Vec<usize>,
    devices: usize,
    k: usize,
    /// The capacity factor, in quarters.
    quarters: u8,
    protected: Vec<bool>,
    /// The logits of each token, in eighths.
    eighths: Vec<Vec<i32>>,
}

impl Case {
    fn placement(&self) -> Placement {
        Placement::new(self.device_of_expert.clone(), self.devices).unwrap()
    }

    fn routing(&self) -> Routing<f64> {
        let (tokens, experts) = (self.eighths.len(), self.device_of_expert.len());
        let logits = Array2::from_shape_fn((tokens, experts), |(t, e)| f64::from(self.eighths[t][e]) / 8.0);
        RoutingRule::new(experts, TopkMethod::Greedy, self.k).unwrap().route(logits).unwrap()
    }

    fn training(&self) -> Phase<'_> {
        Phase::Training { capacity_factor: f64::from(self.quarters) / 4.0, protected: &self.protected }
    }

    fn capacity(&self) -> usize {
        let (pairs, factor) = (self.k * self.eighths.len(), usize::from(self.quarters));
        (factor * pairs).div_ceil(4 * self.devices)
    }

    fn is_protected(&self, token: usize) -> bool {
        self.protected[token / (self.eighths.len() / self.protected.len())]
    }

    /// The pairs of token and slot on a device, with their affinity.
    fn pairs_on(&self, device: usize) -> Vec<((usize, usize), f64)> {
        let routing = self.routing();
        let scores = routing.scores();
        let on_device =
            routing.topk_indices.indexed_iter().filter(|(_, e)| self.device_of_expert[**e as usize] == device);
        on_device.map(|((t, slot), &e)| ((t, slot), scores[[t, e as usize]])).collect()
    }
}

/// Up to 3 devices, 6 experts and 3 sequences of 4 tokens; sizes of logits as `logits` has them.
fn cases_with<S: Strategy<Value = i32> + Clone>(logits: S) -> impl Strategy<Value = Case> {
    (1..=3_usize, 2..=6_usize, 1..=3_usize, 1..=4_usize)
        .prop_flat_map(move |(devices, experts, batch, length)| {
            let eighths = vec(vec(logits.clone(), experts), batch * length);
            (vec(0..devices, experts), 1..=experts, 1..=6_u8, vec(any::<bool>(), batch), eighths, Just(devices))
        })
        .prop_map(|(device_of_expert, k, quarters, protected, eighths, devices)| Case {
            device_of_expert,
            devices,
            k,
            quarters,
            protected,
            eighths,
        })
}

fn cases() -> impl Strategy<Value = Case> {
    cases_with(-24..24)
}

/// Which pairs of token and slot stay.
type Dropping = dyn Fn(&Routing<f64>, &Placement, Phase) -> Array2<bool>;

fn reference(routing: &Routing<f64>, placement: &Placement, phase: Phase) -> Array2<bool> {
    kept(routing, placement, phase).unwrap()
}

#[test]
fn a_device_keeps_its_budget_or_what_is_protected_and_drops_no_more_than_it_must() {
    for_all(cases(), |dropping: &Dropping, case| {
        let stays = dropping(&case.routing(), &case.placement(), case.training());
        for device in 0..case.devices {
            let pairs = case.pairs_on(device);
            let load = pairs.iter().filter(|(pair, _)| stays[*pair]).count();
            let protected = pairs.iter().filter(|((token, _), _)| case.is_protected(*token)).count();
            let most = case.capacity().max(protected);
            prop_assert!(load <= most, "device {}: {} of {}", device, load, most);
            prop_assert!(load == pairs.len() || load == most, "device {}: {} of {}", device, load, most);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("a budget for each expert", &Rule::CAPACITY_PER_EXPERT.dropping())
    .fails_for("the budget rounded down", &Rule::FLOOR.dropping())
    .fails_for("one budget for all devices", &Rule::WHOLE.dropping())
    .fails_for(
        "what is protected does not count",
        &|routing: &Routing<f64>, placement: &Placement, phase: Phase| {
            let Phase::Training { capacity_factor, protected } = phase else {
                return reference(routing, placement, phase);
            };
            let length = routing.topk_indices.nrows() / protected.len();
            let exempt = Array2::from_shape_fn(routing.topk_indices.dim(), |(t, _)| protected[t / length]);
            let others = Phase::Training { capacity_factor, protected: &[false] };
            reference(routing, placement, others) | exempt
        },
    );
}

#[test]
fn what_is_dropped_has_no_higher_affinity_than_what_is_kept_on_the_device() {
    for_all(cases(), |dropping: &Dropping, case| {
        let stays = dropping(&case.routing(), &case.placement(), case.training());
        for device in 0..case.devices {
            let mut pairs = case.pairs_on(device);
            pairs.retain(|((token, _), _)| !case.is_protected(*token));
            let (kept, dropped): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(pair, _)| stays[*pair]);
            let lowest_kept = kept.iter().map(|(_, affinity)| *affinity).fold(f64::INFINITY, f64::min);
            prop_assert!(dropped.iter().all(|(_, affinity)| *affinity <= lowest_kept), "{:?}, {:?}", kept, dropped);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the highest affinity goes first", &Rule::HIGHEST_FIRST.dropping())
    .fails_for("who comes last goes first", &Rule::LAST_FIRST.dropping())
    .fails_for("a budget for each expert", &Rule::CAPACITY_PER_EXPERT.dropping());
}

#[test]
fn of_equal_affinities_the_later_token_goes_first() {
    // All logits are equal, so that a device keeps the first of its pairs that are not protected.
    for_all(cases_with(Just(0)), |dropping: &Dropping, case| {
        let stays = dropping(&case.routing(), &case.placement(), case.training());
        for device in 0..case.devices {
            let pairs = case.pairs_on(device).into_iter().map(|(pair, _)| pair);
            let kept: Vec<bool> =
                pairs.filter(|(token, _)| !case.is_protected(*token)).map(|pair| stays[pair]).collect();
            prop_assert!(kept.is_sorted_by(|a, b| a >= b), "device {}: {:?}", device, kept);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the earlier goes first", &Rule::EARLIER_FIRST.dropping());
}

#[test]
fn nothing_of_a_protected_sequence_is_dropped() {
    for_all(cases(), |dropping: &Dropping, case| {
        let stays = dropping(&case.routing(), &case.placement(), case.training());
        for (t, row) in stays.rows().into_iter().enumerate() {
            prop_assert!(!case.is_protected(t) || row.iter().all(|&stays| stays), "token {}", t);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("nobody is protected", &in_phase(|factor, protected| (factor, vec![false; protected.len()])))
    .fails_for(
        "the sequences protected the other way round",
        &in_phase(|factor, protected| (factor, protected.iter().rev().copied().collect())),
    );
}

#[test]
fn within_the_budget_nothing_is_dropped() {
    for_all(cases(), |dropping: &Dropping, case| {
        let stays = dropping(&case.routing(), &case.placement(), case.training());
        for device in 0..case.devices {
            let pairs = case.pairs_on(device);
            let fits = pairs.len() <= case.capacity();
            prop_assert!(!fits || pairs.iter().all(|(pair, _)| stays[*pair]), "device {}", device);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("a budget for each expert", &Rule::CAPACITY_PER_EXPERT.dropping())
    .fails_for("the budget rounded down", &Rule::FLOOR.dropping());
}

#[test]
fn in_evaluation_and_with_an_infinite_budget_nothing_is_dropped() {
    for_all(cases(), |dropping: &Dropping, case| {
        let (routing, placement) = (case.routing(), case.placement());
        let infinite = Phase::Training { capacity_factor: f64::INFINITY, protected: &case.protected };
        for phase in [Phase::Evaluation, infinite] {
            let stays = dropping(&routing, &placement, phase);
            prop_assert!(stays.iter().all(|&stays| stays), "{:?}", phase);
            prop_assert_eq!(drop_tokens(routing.clone(), &stays).unwrap(), routing.clone());
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("evaluation drops as training does", &|routing: &Routing<f64>, placement: &Placement, phase: Phase| {
        let Phase::Evaluation = phase else { return reference(routing, placement, phase) };
        reference(routing, placement, Phase::Training { capacity_factor: 1.0, protected: &[false] })
    })
    .fails_for("never more than the average", &in_phase(|factor, protected| (factor.min(1.0), protected.to_vec())));
}

#[test]
fn what_other_devices_are_sent_does_not_matter() {
    // Devices other than the first are put together to one: their number, and so the budget, is kept.
    for_all(cases(), |dropping: &Dropping, case| {
        let merged =
            Case { device_of_expert: case.device_of_expert.iter().map(|&d| d.min(1)).collect(), ..case.clone() };
        let both = [&case, &merged].map(|case| dropping(&case.routing(), &case.placement(), case.training()));
        for (pair, _) in case.pairs_on(0) {
            prop_assert_eq!(both[0][pair], both[1][pair]);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "what fits on no other device is dropped everywhere",
        &|routing: &Routing<f64>, placement: &Placement, phase: Phase| {
            // A token that loses one of its experts loses all.
            let mut stays = reference(routing, placement, phase);
            for mut row in stays.rows_mut() {
                let all = row.iter().all(|&stays| stays);
                row.fill(all);
            }
            stays
        },
    );
}

#[test]
fn what_stays_of_a_token_keeps_its_expert_and_its_weight_to_the_bit() {
    type Apply = dyn Fn(Routing<f64>, &Array2<bool>) -> Routing<f64>;
    let apply = |routing: Routing<f64>, stays: &Array2<bool>| drop_tokens(routing, stays).unwrap();
    for_all(cases(), |apply: &Apply, case| {
        let routing = case.routing();
        let stays = reference(&routing, &case.placement(), case.training());
        let dropped = apply(routing.clone(), &stays);
        let mut expected = vec![Vec::new(); case.device_of_expert.len()];
        for ((t, slot), _) in stays.indexed_iter().filter(|(_, stays)| **stays) {
            expected[routing.topk_indices[[t, slot]] as usize].push((t, routing.topk_weights[[t, slot]]));
        }
        prop_assert_eq!(dropped.tokens_of_experts(), expected);
        prop_assert_eq!(dropped.router_logits, routing.router_logits);
        Ok(())
    })
    .holds_for(&apply)
    .fails_for("what is left is normalised again", &move |routing: Routing<f64>, stays: &Array2<bool>| {
        let mut dropped = apply(routing.clone(), stays);
        for (mut left, all) in dropped.topk_weights.rows_mut().into_iter().zip(routing.topk_weights.rows()) {
            let factor = all.sum() / left.sum();
            left.mapv_inplace(|w| w * factor);
        }
        dropped
    })
    .fails_for("a token that loses an expert loses all", &move |routing: Routing<f64>, stays: &Array2<bool>| {
        let all_of = |t: usize| stays.slice(s![t, ..]).iter().all(|&stays| stays);
        apply(routing, &Array2::from_shape_fn(stays.dim(), |(t, _)| all_of(t)))
    })
    .fails_for(
        "the weight is 0, and the expert computes all the same",
        &|routing: Routing<f64>, stays: &Array2<bool>| {
            let factor = stays.mapv(|stays| f64::from(u8::from(stays)));
            Routing { topk_weights: &routing.topk_weights * &factor, ..routing }
        },
    );
}
