//! Which experts: exact laws.

use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router::selection::highest;
use dsv2_reference::model::router::{Groups, Routing, RoutingRule};
use dsv2_testing::for_all;
use ndarray::{Array1, Axis, s};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[test]
fn a_token_gets_k_different_experts_of_m_groups_at_most() {
    for_all(cases(), |route: &Router, case| {
        let routing = route(&case);
        prop_assert_eq!(routing.topk_indices.dim(), (case.eighths.len(), case.k));
        for experts in chosen(&routing) {
            prop_assert_eq!(experts.len(), case.k);
            prop_assert!(experts.iter().all(|&e| e < case.experts()));
            let groups: BTreeSet<usize> = experts.iter().map(|e| e / case.group_size()).collect();
            prop_assert!(groups.len() <= case.topk_group, "groups {groups:?}");
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("groups ignored", &groups_ignored())
    .fails_for("expert e is in group e mod D", &groups_interleaved())
    .fails_for("the best experts taken for groups", &top_groups_among_experts());
}

#[test]
fn the_order_of_the_tokens_is_the_order_of_their_routing() {
    let cases = cases().prop_flat_map(|case| (permutation(case.eighths.len()), Just(case)));
    for_all(cases, |route: &Router, (order, case): (Vec<usize>, Case)| {
        let (whole, permuted) =
            (route(&case), route(&case.with(order.iter().map(|&t| case.eighths[t].clone()).collect())));
        prop_assert_eq!(permuted.topk_indices, whole.topk_indices.select(Axis(0), &order));
        prop_assert_eq!(permuted.topk_weights, whole.topk_weights.select(Axis(0), &order));
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "the groups of the first token for all",
        &choosing(|case, scores| {
            let first = case.logits().row(0).to_owned();
            highest(experts_of_best_groups(&case.groups(), first.view(), case.topk_group, best), scores, case.k)
        }),
    );
}

#[test]
fn other_tokens_and_padding_do_not_change_a_tokens_routing() {
    for_all(cases(), |route: &Router, case| {
        let whole = route(&case);
        for (t, token) in case.eighths.iter().enumerate() {
            let alone = route(&case.with(vec![token.clone()]));
            prop_assert_eq!(alone.topk_indices.row(0), whole.topk_indices.row(t));
            prop_assert_eq!(alone.topk_weights.row(0), whole.topk_weights.row(t));
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "the groups that are best for any token",
        &choosing(|case, scores| {
            let of_any = case.logits().fold_axis(Axis(0), f64::NEG_INFINITY, |a, &b| a.max(b));
            highest(experts_of_best_groups(&case.groups(), of_any.view(), case.topk_group, best), scores, case.k)
        }),
    )
    .fails_for("no expert twice in a batch as long as there are others", &|case: &Case| {
        let mut routing = reference(case);
        let mut free: Vec<usize> = (0..case.experts()).collect();
        for t in 0..case.eighths.len() {
            let scores = routing.scores();
            let taken = if free.len() < case.k { (0..case.experts()).collect() } else { free.clone() };
            let experts = highest(taken, scores.row(t), case.k);
            free.retain(|e| !experts.contains(e));
            routing.topk_indices.row_mut(t).assign(&Array1::from_iter(experts.into_iter().map(|e| e as i64)));
        }
        routing
    });
}

#[test]
fn other_names_for_groups_and_for_the_experts_in_them_give_the_same_choice() {
    let cases = cases().prop_flat_map(|case| {
        let experts: Vec<_> = (0..case.n_group).map(|_| permutation(case.group_size())).collect();
        (permutation(case.n_group), experts, Just(case))
    });
    type Names = (Vec<usize>, Vec<Vec<usize>>, Case);
    for_all(cases, |route: &Router, (groups, experts, case): Names| {
        let size = case.group_size();
        let name = |e: usize| groups[e / size] * size + experts[e / size][e % size];
        let rename = |token: &Vec<i32>| {
            let mut renamed = token.clone();
            token.iter().enumerate().for_each(|(e, &z)| renamed[name(e)] = z);
            renamed
        };
        let renamed = route(&case.with(case.eighths.iter().map(rename).collect()));
        let names = |experts: BTreeSet<usize>| experts.into_iter().map(name).collect::<BTreeSet<_>>();
        prop_assert_eq!(chosen(&renamed), chosen(&route(&case)).into_iter().map(names).collect::<Vec<_>>());
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("expert e is in group e mod D", &groups_interleaved())
    .fails_for("a group is as good as its first expert", &choosing_groups_by(|_, group| group[0]));
}

#[test]
fn a_shift_of_all_logits_changes_no_bit() {
    for_all((cases(), -1000..1000), |route: &Router, (case, shift): (Case, i32)| {
        let (shifted, plain) = (route(&case.with_token(|_, z| z + 8 * shift)), route(&case));
        prop_assert_eq!(shifted.topk_indices, plain.topk_indices);
        prop_assert_eq!(shifted.topk_weights, plain.topk_weights);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "sigmoid scores (DeepSeek-V3)",
        &weighing(|logits, experts| experts.iter().map(|&e| GAMMA / (1.0 + (-logits[e]).exp())).collect()),
    )
    .fails_for(
        "a softmax that does not subtract the maximum",
        &weighing(|logits, experts| {
            let scores = softmax(logits.as_slice().unwrap());
            experts.iter().map(|&e| GAMMA * scores[e]).collect()
        }),
    );
}

#[test]
fn a_positive_factor_of_all_logits_keeps_the_choice() {
    for_all((cases(), 1..20), |route: &Router, (case, factor): (Case, i32)| {
        prop_assert_eq!(chosen(&route(&case.with_token(|_, z| z * factor))), chosen(&route(&case)));
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the sum of the two best experts of a group", &sum_of_two());
}

#[test]
fn a_selected_expert_may_rise_and_any_other_may_fall() {
    // Logits are multiples of 3 eighths and move by 3n + 1 or 3n + 2: no ties.
    let movements = (0..40).prop_map(|by| by + by / 2 + 1);
    let cases = (cases(), any::<Index>(), movements);
    for_all(cases, |route: &Router, (case, expert, by): (Case, Index, i32)| {
        let case = case.with(case.eighths[..1].to_vec());
        let (before, expert) = (chosen(&route(&case)), expert.index(case.experts()));
        let up = if before[0].contains(&expert) { by } else { -by };
        let moved = case.with_token(|e, z| if e == expert { z + up } else { z });
        prop_assert_eq!(chosen(&route(&moved)), before, "expert {} by {} eighths", expert, up);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the sum of the two best experts of a group", &sum_of_two())
    .fails_for("the mean of a group", &choosing_groups_by(|_, group| group.mean().unwrap()));
}

#[test]
fn with_all_groups_or_one_it_is_plain_top_k_and_with_all_experts_everybody() {
    let cases = (cases(), any::<bool>()).prop_map(|(case, one)| {
        let n_group = if one { 1 } else { case.n_group };
        Case { n_group, topk_group: n_group, ..case }
    });
    for_all(cases, |route: &Router, case| {
        let one_group = Groups::contiguous(case.experts(), 1).unwrap();
        for (experts, logits) in chosen(&route(&case)).into_iter().zip(&case.eighths) {
            prop_assert_eq!(experts, chosen_by_definition(&one_group, 1, case.k, logits));
        }
        let everybody = chosen(&route(&Case { k: case.experts(), ..case.clone() }));
        prop_assert!(everybody.into_iter().all(|experts| experts.len() == case.experts()));
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("the best experts taken for groups", &top_groups_among_experts())
    .fails_for("an inverted mask", &mask_inverted());
}

#[test]
fn one_group_is_greedy() {
    for_all(cases(), |route: &Router, case| {
        let greedy = RoutingRule::new(case.experts(), TopkMethod::Greedy, case.k).unwrap().scaled_by(GAMMA);
        let one_group = Case { n_group: 1, topk_group: 1, ..case };
        prop_assert_eq!(route(&one_group), greedy.route(one_group.logits()).unwrap());
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("an inverted mask", &mask_inverted());
}

#[test]
fn groups_that_hold_too_few_experts_are_refused_and_no_others() {
    type Accepts = dyn Fn(usize, TopkMethod, usize) -> bool;
    let reference = |experts, method, k| RoutingRule::<f64>::new(experts, method, k).is_ok();
    for_all((1..=4_usize, 1..=4_usize, 0..=6_usize, 0..=12_usize), |accepts: &Accepts, (n_group, size, m, k)| {
        let method = TopkMethod::GroupLimitedGreedy { n_group, topk_group: m };
        prop_assert_eq!(accepts(n_group * size, method, k), (1..=n_group).contains(&m) && k <= m * size);
        Ok(())
    })
    .holds_for(&reference)
    .fails_for("filled up with experts of weight 0 (Transformers)", &|experts, method, k| {
        let TopkMethod::GroupLimitedGreedy { n_group, topk_group } = method else { return false };
        k <= experts && (1..=n_group).contains(&topk_group)
    });
}

#[test]
fn one_expert_more_keeps_the_others() {
    for_all(cases(), |route: &Router, case| {
        let fewer = route(&Case { k: case.k - 1, ..case.clone() });
        let more = route(&case);
        prop_assert_eq!(fewer.topk_indices, more.topk_indices.slice(s![.., ..case.k - 1]));
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "groups by the sum of their best k/M (DeepSeek-V3: 8/4)",
        &choosing_groups_by(|case, group| sum_of_best(group, (case.k / case.topk_group).max(1))),
    );
}

#[test]
fn one_group_more_never_lowers_the_sum_of_the_scores() {
    let sums = |routing: &Routing<f64>| routing.topk_weights.sum_axis(Axis(1));
    for_all(cases(), |route: &Router, case| {
        let more = Case { topk_group: (case.topk_group + 1).min(case.n_group), ..case.clone() };
        for (more, fewer) in sums(&route(&more)).into_iter().zip(sums(&route(&case))) {
            prop_assert!(more >= fewer, "{more} < {fewer}");
        }
        Ok(())
    })
    .holds_for(&reference)
    .fails_for(
        "as many from each group",
        &choosing(|case, scores| {
            let share = case.k.div_ceil(case.topk_group);
            let kept = experts_of_best_groups(&case.groups(), scores, case.topk_group, best);
            let shares = kept.chunks(case.group_size()).map(|group| highest(group.to_vec(), scores, share));
            highest(shares.flatten().collect(), scores, case.k)
        }),
    );
}
