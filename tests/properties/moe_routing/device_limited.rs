//! Device-limited routing (2.2.2), for experts placed in any way.

use std::collections::BTreeSet;

use dsv2_reference::model::router::selection::highest;
use dsv2_reference::model::router::{Groups, Routing, RoutingRule};
use dsv2_reference::paper::parallel::Placement;
use dsv2_testing::for_all;
use ndarray::{Array2, ArrayView1};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{chosen, chosen_by_definition, permutation, sum_of_best};

/// Experts on devices, and one token.
#[derive(Clone, Debug)]
struct Case {
    device_of_expert: Vec<usize>,
    devices: usize,
    /// M.
    limit: usize,
    k: usize,
    eighths: Vec<i32>,
}

impl Case {
    fn placement(&self) -> Placement {
        Placement::new(self.device_of_expert.clone(), self.devices).unwrap()
    }

    fn logits(&self) -> Array2<f64> {
        Array2::from_shape_fn((1, self.eighths.len()), |(_, e)| f64::from(self.eighths[e]) / 8.0)
    }

    /// The fewest experts that `limit` devices hold, by trying all.
    fn fewest_experts(&self) -> usize {
        let held = |devices: u32| self.device_of_expert.iter().filter(|&&d| devices >> d & 1 == 1).count();
        (0..1_u32 << self.devices).filter(|set| set.count_ones() as usize == self.limit).map(held).min().unwrap()
    }
}

/// Whether they are possible or not: up to 4 devices, up to 8 experts, some ties.
fn placements() -> impl Strategy<Value = Case> {
    (1..=4_usize, 1..=8_usize).prop_flat_map(|(devices, experts)| {
        (vec(0..devices, experts), 1..=devices, 1..=experts, vec(0..12, experts)).prop_map(
            move |(device_of_expert, limit, k, eighths)| Case { device_of_expert, devices, limit, k, eighths },
        )
    })
}

/// Only the possible ones: as many experts are selected as there may be.
fn cases() -> impl Strategy<Value = Case> {
    placements()
        .prop_map(|case| Case { k: case.k.min(case.fewest_experts()), ..case })
        .prop_filter("an expert on M devices", |case| case.k > 0)
}

type Router = dyn Fn(&Case) -> Routing<f64>;

fn reference(case: &Case) -> Routing<f64> {
    RoutingRule::device_limited(&case.placement(), case.limit, case.k).unwrap().route(case.logits()).unwrap()
}

/// Routing with other candidates, by the scores.
fn among(candidates: impl Fn(&Case, ArrayView1<f64>) -> Vec<usize>) -> impl Fn(&Case) -> Routing<f64> {
    move |case| {
        let mut routing = reference(case);
        let scores = routing.scores();
        let mut experts = highest(candidates(case, scores.row(0)), scores.row(0), case.k);
        experts.resize(case.k, 0);
        for (slot, expert) in experts.into_iter().enumerate() {
            routing.topk_indices[[0, slot]] = expert as i64;
            routing.topk_weights[[0, slot]] = scores[[0, expert]];
        }
        routing
    }
}

/// Routing to the devices with the highest `score`, of all scores and the experts of the device.
fn devices_by(score: impl Fn(&Case, ArrayView1<f64>, &[usize]) -> f64) -> impl Fn(&Case) -> Routing<f64> {
    among(move |case, scores| {
        let placement = case.placement();
        let of_devices = (0..case.devices).map(|device| score(case, scores, placement.experts_of(device)));
        let of_devices = ndarray::Array1::from_iter(of_devices);
        let kept = highest((0..case.devices).collect(), of_devices.view(), case.limit);
        kept.into_iter().flat_map(|device| placement.experts_of(device).to_vec()).collect()
    })
}

fn everywhere() -> impl Fn(&Case) -> Routing<f64> {
    among(|_, scores| (0..scores.len()).collect())
}

#[test]
fn a_token_goes_to_the_best_experts_on_the_devices_of_the_best_experts() {
    for_all(cases(), |route: &Router, case| {
        let groups = Groups::new(case.device_of_expert.clone(), case.devices);
        let expected = chosen_by_definition(&groups, case.limit, case.k, &case.eighths);
        prop_assert_eq!(chosen(&route(&case)), [expected]);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "the sum of a device's two best experts (DeepSeek-V3)",
        &devices_by(|_, scores, experts| sum_of_best(scores.select(ndarray::Axis(0), experts).view(), 2)),
    )
    .fails_for(
        "the affinity of all of a device's experts",
        &devices_by(|_, scores, experts| experts.iter().map(|&e| scores[e]).sum()),
    )
    .fails_for(
        "the devices with the most of the k best experts",
        &devices_by(|case, scores, experts| {
            let best = highest((0..scores.len()).collect(), scores, case.k);
            experts.iter().filter(|e| best.contains(e)).count() as f64
        }),
    )
    .fails_for("no limit", &everywhere());
}

#[test]
fn a_token_is_sent_to_m_devices_at_most() {
    for_all(cases(), |route: &Router, case| {
        prop_assert!(route(&case).devices_of_tokens(&case.placement())[0].len() <= case.limit);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("no limit", &everywhere())
    .fails_for("M + 1 devices", &|case: &Case| {
        reference(&Case { limit: (case.limit + 1).min(case.devices), ..case.clone() })
    });
}

#[test]
fn on_equal_contiguous_devices_it_is_group_limited_greedy() {
    for_all(super::cases(), |route: &Router, groups: super::Case| {
        let of_groups = groups.groups();
        let by_groups = groups.rule().scaled_by(1.0);
        for eighths in &groups.eighths {
            let case = Case {
                device_of_expert: (0..groups.experts()).map(|e| of_groups.group_of(e)).collect(),
                devices: groups.n_group,
                limit: groups.topk_group,
                k: groups.k,
                eighths: eighths.clone(),
            };
            prop_assert_eq!(route(&case), by_groups.route(case.logits()).unwrap());
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("experts dealt out to the devices in turn", &|case: &Case| {
        let in_turn = (0..case.eighths.len()).map(|e| e % case.devices).collect();
        reference(&Case { device_of_expert: in_turn, ..case.clone() })
    })
    .fails_for("no limit", &everywhere());
}

#[test]
fn where_an_expert_is_called_or_a_device_numbered_makes_no_difference() {
    let cases = cases().prop_flat_map(|case| {
        let logits = permutation(case.eighths.len()); // no ties
        (permutation(case.devices), permutation(case.eighths.len()), logits, Just(case))
    });
    type Names = (Vec<usize>, Vec<usize>, Vec<usize>, Case);
    for_all(cases, |route: &Router, (devices, experts, logits, case): Names| {
        let case = Case { eighths: logits.into_iter().map(|z| 3 * z as i32).collect(), ..case };
        let mut renamed = case.clone();
        for (e, &name) in experts.iter().enumerate() {
            renamed.device_of_expert[name] = devices[case.device_of_expert[e]];
            renamed.eighths[name] = case.eighths[e];
        }
        let names: BTreeSet<usize> = chosen(&route(&case))[0].iter().map(|&e| experts[e]).collect();
        prop_assert_eq!(chosen(&route(&renamed)), [names]);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "the first M devices that hold one of the k best experts",
        &among(|case, scores| {
            let placement = case.placement();
            let best = highest((0..scores.len()).collect(), scores, case.k);
            let holding: BTreeSet<usize> = best.into_iter().map(|e| placement.device_of(e)).collect();
            holding.into_iter().take(case.limit).flat_map(|device| placement.experts_of(device).to_vec()).collect()
        }),
    );
}

#[test]
fn k_experts_are_refused_if_some_m_devices_hold_fewer() {
    type Accepts = dyn Fn(&Case) -> bool;
    for_all(placements(), |accepts: &Accepts, case| {
        prop_assert_eq!(accepts(&case), case.k <= case.fewest_experts());
        Ok(())
    })
    .holds_for(&|case: &Case| RoutingRule::<f64>::device_limited(&case.placement(), case.limit, case.k).is_ok())
    .fails_for("M E/D < K_r, as if all devices held as many", &|case: &Case| {
        case.k * case.devices <= case.limit * case.eighths.len()
    })
    .fails_for("if any M devices hold enough", &|case: &Case| {
        let mut sizes: Vec<usize> = (0..case.devices).map(|d| case.placement().experts_of(d).len()).collect();
        sizes.sort_unstable_by_key(|&size| std::cmp::Reverse(size));
        case.k <= sizes[..case.limit].iter().sum()
    });
}
