//! Routing (2.2.1, 2.2.2): which experts a token goes to, and with what weight.
//!
//! The laws are about a router as a function of the logits. Most wrong routers here were seen in other programs.

mod choice;
mod device_limited;
mod dispatch;
mod ties;
mod weights;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router::selection::{best, experts_of_best_groups, highest};
use dsv2_reference::model::router::{Groups, Routing, RoutingRule};
use ndarray::{Array1, Array2, ArrayView1};
use proptest::collection::vec;
use proptest::prelude::*;

/// The factor of the weights: a power of two, so that it is exact.
const GAMMA: f64 = 16.0;

type Router = dyn Fn(&Case) -> Routing<f64>;

/// What there is to route.
#[derive(Clone, Debug)]
struct Case {
    n_group: usize,
    topk_group: usize,
    k: usize,
    /// The logits of each token, in eighths.
    eighths: Vec<Vec<i32>>,
}

impl Case {
    fn experts(&self) -> usize {
        self.eighths[0].len()
    }

    fn group_size(&self) -> usize {
        self.experts() / self.n_group
    }

    fn groups(&self) -> Groups {
        Groups::contiguous(self.experts(), self.n_group).unwrap()
    }

    fn method(&self) -> TopkMethod {
        TopkMethod::GroupLimitedGreedy { n_group: self.n_group, topk_group: self.topk_group }
    }

    fn rule(&self) -> RoutingRule<f64> {
        RoutingRule::new(self.experts(), self.method(), self.k).unwrap().scaled_by(GAMMA)
    }

    fn logits(&self) -> Array2<f64> {
        Array2::from_shape_fn((self.eighths.len(), self.experts()), |(t, e)| f64::from(self.eighths[t][e]) / 8.0)
    }

    /// The same case with other logits.
    fn with(&self, eighths: Vec<Vec<i32>>) -> Case {
        Case { eighths, ..self.clone() }
    }

    /// The same case with one token's logits changed.
    fn with_token(&self, change: impl Fn(usize, i32) -> i32) -> Case {
        let changed = |token: &Vec<i32>| token.iter().enumerate().map(|(e, &z)| change(e, z)).collect();
        self.with(self.eighths.iter().map(changed).collect())
    }
}

/// Up to 4 groups of up to 4 experts, up to 3 tokens; `logits` gives a token's logits for a number of experts.
fn cases_with<S: Strategy<Value = Vec<i32>>>(logits: impl Fn(usize) -> S) -> impl Strategy<Value = Case> {
    (1..=4_usize, 1..=4_usize)
        .prop_flat_map(|(n_group, size)| (Just(n_group), Just(size), 1..=n_group))
        .prop_flat_map(|(n_group, size, topk_group)| (Just((n_group, size, topk_group)), 1..=size * topk_group))
        .prop_flat_map(move |((n_group, size, topk_group), k)| {
            vec(logits(n_group * size), 1..=3).prop_map(move |eighths| Case { n_group, topk_group, k, eighths })
        })
}

/// No two logits of a token are equal: they are 0, 3, 6, ... eighths in some order.
fn cases() -> impl Strategy<Value = Case> {
    cases_with(|experts| permutation(experts).prop_map(|order| order.into_iter().map(|i| 3 * i as i32).collect()))
}

/// Many logits are equal.
fn ties() -> impl Strategy<Value = Case> {
    cases_with(|experts| vec(0..3, experts))
}

fn permutation(length: usize) -> impl Strategy<Value = Vec<usize>> {
    Just((0..length).collect::<Vec<_>>()).prop_shuffle()
}

fn reference(case: &Case) -> Routing<f64> {
    case.rule().route(case.logits()).unwrap()
}

/// The selected experts of each token, whatever their order.
fn chosen(routing: &Routing<f64>) -> Vec<BTreeSet<usize>> {
    routing.topk_indices.rows().into_iter().map(|row| row.iter().map(|&e| e as usize).collect()).collect()
}

/// Equations 21 and 22 without sorting: a group is kept if fewer than `topk_group` are better, and an expert of a kept
/// group is selected if fewer than k of these are better. Of equals the one of lower index is better.
fn chosen_by_definition(groups: &Groups, topk_group: usize, k: usize, logits: &[i32]) -> BTreeSet<usize> {
    let rank = |e: usize| (logits[e], Reverse(e));
    let group_rank = |group: usize| (groups.experts_of(group).iter().map(|&e| logits[e]).max(), Reverse(group));
    let better_groups =
        |group: usize| (0..groups.count()).filter(|&other| group_rank(other) > group_rank(group)).count();
    let experts: Vec<usize> = (0..logits.len()).filter(|&e| better_groups(groups.group_of(e)) < topk_group).collect();
    let better = |e: usize| experts.iter().filter(|&&other| rank(other) > rank(e)).count();
    experts.iter().copied().filter(|&e| better(e) < k).collect()
}

/// A router that selects otherwise, from the scores of a token.
fn choosing(select: impl Fn(&Case, ArrayView1<f64>) -> Vec<usize>) -> impl Fn(&Case) -> Routing<f64> {
    move |case| {
        let mut routing = reference(case);
        let scores = routing.scores();
        for (t, scores) in scores.rows().into_iter().enumerate() {
            let mut experts = select(case, scores);
            experts.resize(case.k, 0);
            for (slot, expert) in experts.into_iter().enumerate() {
                routing.topk_indices[[t, slot]] = expert as i64;
                routing.topk_weights[[t, slot]] = GAMMA * scores[expert];
            }
        }
        routing
    }
}

/// A router that weighs otherwise, from the logits of a token and its experts.
fn weighing(weigh: impl Fn(ArrayView1<f64>, &[usize]) -> Vec<f64>) -> impl Fn(&Case) -> Routing<f64> {
    move |case| {
        let mut routing = reference(case);
        for t in 0..case.eighths.len() {
            let experts: Vec<usize> = routing.topk_indices.row(t).iter().map(|&e| e as usize).collect();
            let weights = weigh(routing.router_logits.row(t), &experts);
            routing.topk_weights.row_mut(t).assign(&Array1::from(weights));
        }
        routing
    }
}

/// k of the experts in the groups that are best by `group_score`.
fn choosing_groups_by(group_score: impl Fn(&Case, ArrayView1<f64>) -> f64) -> impl Fn(&Case) -> Routing<f64> {
    choosing(move |case, scores| {
        let group_score = |group: ArrayView1<f64>| group_score(case, group);
        highest(experts_of_best_groups(&case.groups(), scores, case.topk_group, group_score), scores, case.k)
    })
}

/// DeepSeek-V3's groups, which llama.cpp has for V2 as well: as good as the sum of their two best experts.
fn sum_of_two() -> impl Fn(&Case) -> Routing<f64> {
    choosing_groups_by(|_, group| sum_of_best(group, 2))
}

fn sum_of_best(scores: ArrayView1<f64>, count: usize) -> f64 {
    highest((0..scores.len()).collect(), scores, count).into_iter().map(|e| scores[e]).sum()
}

/// The best experts of all, whatever the groups.
fn groups_ignored() -> impl Fn(&Case) -> Routing<f64> {
    choosing(|case, scores| highest((0..scores.len()).collect(), scores, case.k))
}

/// Expert e in group e mod D.
fn groups_interleaved() -> impl Fn(&Case) -> Routing<f64> {
    choosing(|case, scores| {
        let groups = Groups::new((0..scores.len()).map(|e| e % case.n_group).collect(), case.n_group);
        highest(experts_of_best_groups(&groups, scores, case.topk_group, best), scores, case.k)
    })
}

/// candle: the best `topk_group` of the experts are taken for groups. (It crashes where there is no such group.)
fn top_groups_among_experts() -> impl Fn(&Case) -> Routing<f64> {
    choosing(|case, scores| {
        let best_experts = highest((0..scores.len()).collect(), scores, case.topk_group);
        let kept: BTreeSet<usize> = best_experts.into_iter().map(|e| e % case.n_group).collect();
        let groups = case.groups();
        highest(kept.into_iter().flat_map(|group| groups.experts_of(group)).copied().collect(), scores, case.k)
    })
}

/// Reported of a port of candle's model (candle#2744): an inverted mask leaves no expert, so that each token goes to the first ones, with
/// weight 0.
fn mask_inverted() -> impl Fn(&Case) -> Routing<f64> {
    |case| {
        let mut routing = reference(case);
        routing.topk_indices.indexed_iter_mut().for_each(|((_, slot), expert)| *expert = slot as i64);
        routing.topk_weights.fill(0.0);
        routing
    }
}

fn softmax(z: &[f64]) -> Vec<f64> {
    let sum: f64 = z.iter().map(|z| z.exp()).sum();
    z.iter().map(|z| z.exp() / sum).collect()
}
