//! Laws of the mixture of experts.

use std::sync::Arc;

use dsv2_optimized::Device;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dtype, Result, Tensor};
use dsv2_testing::for_all;
use ndarray::ArrayD;
use proptest::prelude::*;
use proptest::sample::Index;

use super::runs::{Feed, Played, Program, array, bits, on, play, play_with};
use super::tiny::{Tiny, right, with_experts, wrong};
use super::truth::Truth;

const EXPERTS: &str = "model.layers.0.mlp.experts";
const LOGITS: &str = "model.layers.0.mlp.gate.router_logits";
const CHOSEN: &str = "model.layers.0.mlp.gate.topk_indices";

/// The model with another scaling factor than the config says.
fn altered(factor: fn(&DeepseekV2Config) -> f64) -> impl Fn(&Tiny, &[Feed], usize) -> dsv2_optimized::Result<Played> {
    let device = right();
    move |tiny, feeds, page_size| {
        let mut tiny = tiny.clone();
        tiny.config.routed_scaling_factor = factor(&tiny.config);
        play(&device, &tiny, feeds, tiny.form, page_size)
    }
}

#[test]
fn twice_the_scaling_factor_makes_the_experts_output_exactly_twice_as_large() {
    let law = |program: &Program, (tiny, length): (Tiny, usize)| {
        let feed = [Feed::ids(tiny.ids(1, length))];
        let experts = |tiny: &Tiny| program(tiny, &feed, 4).map(|played| played.stages[EXPERTS].clone());
        let mut doubled = tiny.clone();
        doubled.config.routed_scaling_factor *= 2.0;
        // Normalised weights are not scaled at all.
        let normalised = tiny.config.norm_topk_prob && tiny.dialect.honours_norm_topk_prob();
        let k = tiny.config.experts_per_token().expect("experts");
        let factor = if normalised && k > 1 { 1.0 } else { 2.0 };
        prop_assert_eq!(bits(&experts(&tiny)?.mapv(|x| factor * x)), bits(&experts(&doubled)?));
        Ok(())
    };
    for_all((with_experts(), 1..=5_usize), law)
        .tried(24)
        .holds_for(&on(right()))
        .fails_for("the factor is applied twice", &altered(|config| config.routed_scaling_factor.powi(2)))
        .fails_for("the factor is left out", &altered(|_| 1.0));
}

/// Weights whose expert e is expert `from[e]` of others.
struct Permuted {
    weights: GeneratedWeights,
    from: Vec<usize>,
}

impl WeightSource for Permuted {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if name.ends_with(".mlp.gate.weight") {
            let stored = self.weights.tensor(name, shape)?;
            let row = stored.bytes().len() / self.from.len();
            let rows: Vec<u8> = self.from.iter().flat_map(|e| stored.bytes()[e * row..][..row].to_vec()).collect();
            let range = 0..rows.len();
            return Tensor::new(name, Dtype::Bf16, shape, Arc::new(rows), range);
        }
        let Some((path, rest)) = name.split_once(".mlp.experts.") else { return self.weights.tensor(name, shape) };
        let (expert, rest) = rest.split_once('.').expect("the number of an expert");
        let expert = self.from[expert.parse::<usize>().expect("a number")];
        self.weights.tensor(&format!("{path}.mlp.experts.{expert}.{rest}"), shape)
    }

    fn names(&self) -> Option<Vec<String>> {
        None
    }
}

/// Some order of `count` things.
fn order(count: usize, draws: &mut impl Iterator<Item = Index>) -> Vec<usize> {
    let mut left: Vec<usize> = (0..count).collect();
    (0..count).map(|_| left.remove(draws.next().expect("enough draws").index(left.len()))).collect()
}

#[test]
fn experts_may_change_places() {
    // Groups change places, and experts within them: a group limit does not see it either. The sum over experts has
    // another order then, so that the output is near, not the same.
    let law = |device: &Arc<dyn Device>, (tiny, length, draws): (Tiny, usize, Vec<Index>)| {
        let experts = tiny.config.num_experts();
        let groups = match tiny.config.topk_method().expect("a method") {
            TopkMethod::Greedy => 1,
            TopkMethod::GroupLimitedGreedy { n_group, .. } => n_group,
        };
        let (size, draws) = (experts / groups, &mut draws.into_iter());
        let groups = order(groups, draws);
        let from: Vec<usize> =
            groups.iter().flat_map(|group| order(size, draws).into_iter().map(move |e| group * size + e)).collect();
        let feed = [Feed::ids(tiny.ids(2, length))];
        let truth = Truth::of(&tiny, &feed);
        if truth.is_near_tie(&tiny) {
            return Err(TestCaseError::reject("a near tie of two experts"));
        }
        let permuted = Permuted { weights: tiny.weights(), from: from.clone() };
        let played = play_with(&tiny.with_weights(device, &permuted), &feed, tiny.form, 4)?;
        let straight = play(device, &tiny, &feed, tiny.form, 4)?;
        let named = played.stages[CHOSEN].mapv(|e| from[e as usize] as f64);
        prop_assert_eq!(&named, &straight.stages[CHOSEN], "the same experts under other names");
        let logits = &played.stages[LOGITS];
        let back: Vec<f64> =
            logits.rows().into_iter().flat_map(|row| renamed(row.as_slice().expect("a row"), &from)).collect();
        prop_assert_eq!(bits(&array(logits.shape(), back)), bits(&straight.stages[LOGITS]), "router logits");
        let near = |what: &str, got: &ArrayD<f64>| truth.judge(what, got);
        near("permuted", &played.logits)?;
        near("straight", &straight.logits)?;
        truth.judge_stage("permuted", EXPERTS, &played.stages[EXPERTS])
    };
    let draws = prop::collection::vec(any::<Index>(), 16);
    for_all((with_experts(), 1..=5_usize, draws), law)
        .tried(24)
        .holds_for(&right())
        .fails_for("the naive kernel takes the next weights", &wrong("experts", "experts_with_the_next_weights"))
        .fails_for("weights are another pair's", &wrong("combine", "combine_with_the_weight_of_another_pair"))
        .fails_for("the last of a group is never chosen", &wrong("route", "route_skips_the_last_of_a_group"));
}

/// The numbers of experts, in the order of their old names.
fn renamed(of: &[f64], from: &[usize]) -> Vec<f64> {
    let mut old = vec![0.0; of.len()];
    from.iter().zip(of).for_each(|(e, x)| old[*e] = *x);
    old
}
