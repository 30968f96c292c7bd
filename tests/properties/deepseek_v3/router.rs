//! DeepSeek-V3's router: biases decide which experts, scores alone with what weight.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;
use dsv2_reference::deepseek_v3::router::{BiasCorrectedRule, sum_of_two_best};
use dsv2_reference::model::router::selection::{best, experts_of_best_groups, highest};
use dsv2_reference::model::router::{Routing, RoutingRule};
use dsv2_testing::for_all;
use ndarray::{Array1, ArrayView1, Axis};
use proptest::prelude::*;

use super::{Case, GAMMA, cases};
use crate::models::distance;

type Router = dyn Fn(&Case) -> Routing<f64>;

fn reference(case: &Case) -> Routing<f64> {
    BiasCorrectedRule::from_config(&case.config()).unwrap().route(case.logits(), case.bias().view()).unwrap()
}

/// A router that selects otherwise, from a token's scores and choice values, and weighs as it should.
fn choosing(select: impl Fn(&Case, ArrayView1<f64>, ArrayView1<f64>) -> Vec<usize>) -> impl Fn(&Case) -> Routing<f64> {
    move |case| {
        let (scores, rule) = (case.scores(), BiasCorrectedRule::from_config(&case.config()).unwrap());
        let mut routing = reference(case);
        for (token, scores) in scores.rows().into_iter().enumerate() {
            let selected = select(case, scores, (&scores + &case.bias()).view());
            let weights = rule.weigh(selected.iter().map(|&e| scores[e]).collect());
            routing.topk_weights.row_mut(token).assign(&weights);
            routing.topk_indices.row_mut(token).assign(&selected.iter().map(|&e| e as i64).collect::<Array1<_>>());
        }
        routing
    }
}

fn all(case: &Case) -> Vec<usize> {
    (0..case.experts()).collect()
}

fn best_of_group(case: &Case, _: ArrayView1<f64>, choice: ArrayView1<f64>) -> Vec<usize> {
    highest(experts_of_best_groups(&case.groups(), choice, case.topk_group, best), choice, case.k)
}

fn without_bias(case: &Case, scores: ArrayView1<f64>, _: ArrayView1<f64>) -> Vec<usize> {
    highest(experts_of_best_groups(&case.groups(), scores, case.topk_group, sum_of_two_best), scores, case.k)
}

fn groups_without_bias(case: &Case, scores: ArrayView1<f64>, choice: ArrayView1<f64>) -> Vec<usize> {
    highest(experts_of_best_groups(&case.groups(), scores, case.topk_group, sum_of_two_best), choice, case.k)
}

fn zeros_outside(case: &Case, _: ArrayView1<f64>, choice: ArrayView1<f64>) -> Vec<usize> {
    let kept = experts_of_best_groups(&case.groups(), choice, case.topk_group, sum_of_two_best);
    let masked = Array1::from_shape_fn(case.experts(), |e| if kept.contains(&e) { choice[e] } else { 0.0 });
    highest(all(case), masked.view(), case.k)
}

fn without_groups(case: &Case, _: ArrayView1<f64>, choice: ArrayView1<f64>) -> Vec<usize> {
    highest(all(case), choice, case.k)
}

fn bias_subtracted(case: &Case, scores: ArrayView1<f64>, _: ArrayView1<f64>) -> Vec<usize> {
    let choice = &scores - &case.bias();
    highest(
        experts_of_best_groups(&case.groups(), choice.view(), case.topk_group, sum_of_two_best),
        choice.view(),
        case.k,
    )
}

/// The right choice, with weights made of the choice values.
fn bias_in_the_weights(case: &Case) -> Routing<f64> {
    let rule = BiasCorrectedRule::from_config(&case.config()).unwrap();
    let mut routing = reference(case);
    let choice = case.scores() + &case.bias();
    for (token, mut weights) in routing.topk_weights.rows_mut().into_iter().enumerate() {
        weights.assign(&rule.weigh(routing.topk_indices.row(token).mapv(|e| choice[[token, e as usize]])));
    }
    routing
}

/// V2's rule, on the same logits.
fn v2(case: &Case) -> Routing<f64> {
    let method = TopkMethod::GroupLimitedGreedy { n_group: case.n_group, topk_group: case.topk_group };
    RoutingRule::new(case.experts(), method, case.k).unwrap().scaled_by(GAMMA).route(case.logits()).unwrap()
}

/// V2's published code: the factor only where the weights are not normalised.
fn normalised_instead_of_scaled(case: &Case) -> Routing<f64> {
    let mut routing = reference(case);
    if case.norm_topk_prob {
        routing.topk_weights /= GAMMA;
    }
    routing
}

/// The selected experts of each token, whatever their order.
fn chosen(routing: &Routing<f64>) -> Vec<BTreeSet<usize>> {
    routing.topk_indices.rows().into_iter().map(|row| row.iter().map(|&e| e as usize).collect()).collect()
}

/// A number that is ordered like a float.
fn ordered(x: f64) -> i64 {
    (x * 2f64.powi(40)) as i64
}

#[test]
fn a_token_selects_k_different_experts_in_at_most_m_groups() {
    for_all(cases(), |router: &Router, case| {
        for chosen in chosen(&router(&case)) {
            let groups: BTreeSet<usize> = chosen.iter().map(|&e| case.groups().group_of(e)).collect();
            prop_assert!(chosen.len() == case.k && groups.len() <= case.topk_group);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("groups are no limit", &choosing(without_groups))
    .fails_for("experts outside the groups count as 0, which beats a negative choice value", &choosing(zeros_outside));
}

#[test]
fn the_choice_is_that_of_the_definition() {
    // Without sorting: a group is kept if fewer than M have a larger sum of two best, and an expert of a kept group is
    // selected if fewer than k of these have a larger choice value; of equals the lower index comes first.
    for_all(cases(), |router: &Router, case| {
        let choices = case.scores() + &case.bias();
        for (choice, chosen) in choices.rows().into_iter().zip(chosen(&router(&case))) {
            let groups = case.groups();
            let rank = |e: usize| (ordered(choice[e]), Reverse(e));
            let sum_of_two = |group: usize| {
                let experts = groups.experts_of(group);
                let larger = |e: usize| experts.iter().filter(|&&other| rank(other) > rank(e)).count();
                let two = experts.iter().filter(|&&e| larger(e) < 2);
                (ordered(two.map(|&e| choice[e]).sum()), Reverse(group))
            };
            let larger =
                |group: usize| (0..case.n_group).filter(|&other| sum_of_two(other) > sum_of_two(group)).count();
            let kept: Vec<usize> =
                (0..case.experts()).filter(|&e| larger(groups.group_of(e)) < case.topk_group).collect();
            let better = |e: usize| kept.iter().filter(|&&other| rank(other) > rank(e)).count();
            let expected: BTreeSet<usize> = kept.iter().copied().filter(|&e| better(e) < case.k).collect();
            prop_assert_eq!(chosen, expected);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("a group is as good as its best expert (DeepSeek-V2)", &choosing(best_of_group))
    .fails_for("the bias is left out", &choosing(without_bias))
    .fails_for("groups are chosen without the bias", &choosing(groups_without_bias))
    .fails_for("the bias is subtracted", &choosing(bias_subtracted))
    .fails_for("experts outside the groups count as 0", &choosing(zeros_outside));
}

#[test]
fn the_bias_never_touches_the_weights() {
    // They are made of the scores of whatever was chosen: equal to 2e-16.
    for_all(cases(), |router: &Router, case| {
        let (routing, scores) = (router(&case), case.scores());
        for (token, chosen) in routing.topk_indices.rows().into_iter().enumerate() {
            let of_chosen = chosen.mapv(|e| scores[[token, e as usize]]);
            let sum = if case.norm_topk_prob { of_chosen.sum() } else { 1.0 };
            let error = distance(&routing.topk_weights.row(token).to_owned(), &(of_chosen * GAMMA / sum));
            prop_assert!(error < 1e-14, "{error:e}");
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the weights are made of scores and biases", &bias_in_the_weights)
    .fails_for("the scores are a softmax (DeepSeek-V2)", &v2)
    .fails_for("normalised weights are not scaled (DeepSeek-V2's code)", &normalised_instead_of_scaled);
}

#[test]
fn normalised_weights_are_positive_and_sum_to_the_factor() {
    for_all(cases(), |router: &Router, case| {
        let case = Case { norm_topk_prob: true, ..case };
        let routing = router(&case);
        prop_assert!(routing.topk_weights.iter().all(|&weight| weight > 0.0 && weight <= GAMMA));
        for sum in routing.topk_weights.sum_axis(Axis(1)) {
            prop_assert!((sum / GAMMA - 1.0).abs() < 1e-14, "{sum}");
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("normalised weights are not scaled (DeepSeek-V2's code)", &normalised_instead_of_scaled)
    .fails_for("the weights are made of scores and biases", &bias_in_the_weights)
    .fails_for("norm_topk_prob is ignored (Transformers' DeepSeek-V2)", &|case| {
        reference(&Case { norm_topk_prob: false, ..case.clone() })
    });
}

#[test]
fn equal_biases_are_none() {
    for_all((cases(), -128..=128_i32), |router: &Router, (case, bias)| {
        let none = router(&Case { biases: vec![0; case.experts()], ..case.clone() });
        let equal = router(&Case { biases: vec![bias; case.experts()], ..case.clone() });
        prop_assert_eq!(equal.topk_indices, none.topk_indices);
        prop_assert_eq!(equal.topk_weights, none.topk_weights);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("experts outside the groups count as 0", &choosing(zeros_outside))
    .fails_for("the weights are made of scores and biases", &bias_in_the_weights)
    .fails_for(
        "the bias is a factor",
        &choosing(|case, scores, _| {
            let choice = &scores * &case.bias();
            highest(
                experts_of_best_groups(&case.groups(), choice.view(), case.topk_group, sum_of_two_best),
                choice.view(),
                case.k,
            )
        }),
    );
}

#[test]
fn a_larger_bias_never_costs_an_expert_its_tokens() {
    // Its group rises with it. So the update of the biases pushes in the right direction.
    for_all((cases(), any::<prop::sample::Index>(), 1..=64_i32), |router: &Router, (case, expert, more)| {
        let expert = expert.index(case.experts());
        let mut raised = case.clone();
        raised.biases[expert] += more;
        for (before, after) in chosen(&router(&case)).iter().zip(chosen(&router(&raised))) {
            prop_assert!(!before.contains(&expert) || after.contains(&expert));
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the bias is subtracted", &choosing(bias_subtracted));
}

#[test]
fn a_tokens_routing_is_its_own() {
    for_all(cases(), |router: &Router, case| {
        let together = router(&case);
        for (token, ranks) in case.ranks.iter().enumerate() {
            let alone = router(&Case { ranks: vec![ranks.clone()], ..case.clone() });
            prop_assert_eq!(alone.topk_indices.row(0), together.topk_indices.row(token));
            prop_assert_eq!(alone.topk_weights.row(0), together.topk_weights.row(token));
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("weights are normalised over the batch", &|case| {
        let mut routing = reference(case);
        routing.topk_weights *= GAMMA / routing.topk_weights.sum();
        routing
    });
}
