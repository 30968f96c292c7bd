//! Which of equals: a rule of this reference. Others may choose otherwise (`torch.topk` does), and are judged by sets.

use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router::RoutingRule;
use dsv2_reference::model::router::selection::{best, experts_of_best_groups, highest};
use dsv2_testing::for_all;
use ndarray::{Array1, Axis};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[test]
fn of_equal_experts_and_of_equal_groups_the_lower_index_wins() {
    for_all(ties(), |route: &Router, case| {
        let routing = route(&case);
        for (t, logits) in case.eighths.iter().enumerate() {
            let experts = chosen_by_definition(&case.groups(), case.topk_group, case.k, logits);
            let mut in_order: Vec<usize> = experts.into_iter().collect();
            in_order.sort_by_key(|&e| std::cmp::Reverse(logits[e])); // stable
            prop_assert_eq!(routing.topk_indices.row(t).mapv(|e| e as usize).to_vec(), in_order);
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the higher index wins", &|case: &Case| {
        let reversed = |token: &Vec<i32>| token.iter().rev().copied().collect();
        let mut routing = reference(&case.with(case.eighths.iter().map(reversed).collect()));
        routing.topk_indices.mapv_inplace(|e| case.experts() as i64 - 1 - e);
        routing
    })
    .fails_for(
        "an unstable sort of experts, as torch.topk",
        &choosing(|case, scores| {
            let mut experts = experts_of_best_groups(&case.groups(), scores, case.topk_group, best);
            experts.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then((a * 7 % 5).cmp(&(b * 7 % 5))));
            experts[..case.k].to_vec()
        }),
    )
    .fails_for("the sum of the two best experts of a group", &sum_of_two());
}

#[test]
fn an_expert_whose_score_underflows_comes_from_a_kept_group_and_weighs_nothing() {
    // One logit is 1000 above the others: exp(-1000) is 0.
    let cases = (cases(), any::<Index>());
    for_all(cases, |route: &Router, (case, giant): (Case, Index)| {
        let giant = giant.index(case.experts());
        let case = case.with_token(|e, z| if e == giant { z + 8000 } else { z });
        let routing = route(&case);
        for (t, experts) in chosen(&routing).into_iter().enumerate() {
            let groups: BTreeSet<usize> = experts.iter().map(|e| e / case.group_size()).collect();
            prop_assert!(groups.len() <= case.topk_group, "groups {groups:?}");
            prop_assert_eq!(routing.topk_indices[[t, 0]], giant as i64);
            prop_assert_eq!(routing.topk_weights[[t, 0]], GAMMA);
            prop_assert!(routing.topk_weights.row(t).iter().skip(1).all(|&w| w == 0.0));
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "experts left out have score 0, as those underflowed (Transformers)",
        &choosing(|case, scores| {
            let kept = experts_of_best_groups(&case.groups(), scores, case.topk_group, best);
            let masked = Array1::from_shape_fn(scores.len(), |e| if kept.contains(&e) { scores[e] } else { 0.0 });
            highest((0..scores.len()).collect(), masked.view(), case.k)
        }),
    );
}

#[test]
fn minus_zero_and_zero_are_the_same_logit() {
    type OfLogits = dyn Fn(&Array1<f64>, usize) -> Vec<i64>;
    let reference = |logits: &Array1<f64>, k| {
        let rule = RoutingRule::new(logits.len(), TopkMethod::Greedy, k).unwrap();
        rule.route(logits.clone().insert_axis(Axis(0))).unwrap().topk_indices.into_iter().collect::<Vec<_>>()
    };
    for_all((1..=6_usize, vec(any::<bool>(), 6)), |choose: &OfLogits, (k, negative)| {
        let zeros: Array1<f64> = negative.into_iter().map(|negative| if negative { -0.0 } else { 0.0 }).collect();
        prop_assert_eq!(choose(&zeros, k), (0..k as i64).collect::<Vec<_>>());
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("logits in IEEE 754's total order", &|logits: &Array1<f64>, k| {
        let mut experts: Vec<i64> = (0..logits.len() as i64).collect();
        experts.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        experts[..k].to_vec()
    });
}
