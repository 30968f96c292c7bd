//! The extensions from DeepSeek-V3: its router, the balancing of its load, its module for multi-token prediction.

mod load_balancing;
mod mtp;
mod router;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::router::Groups;
use ndarray::{Array1, Array2};
use proptest::collection::vec;
use proptest::prelude::*;

/// `routed_scaling_factor`.
const GAMMA: f64 = 2.5;

/// What there is to route. A token's logits are all different, 3/8 apart, and no two are the negatives of each other:
/// then no sums of two scores are equal either (sigmoid(z) + sigmoid(-z) is 1).
#[derive(Clone, Debug)]
struct Case {
    n_group: usize,
    topk_group: usize,
    k: usize,
    norm_topk_prob: bool,
    /// Rank of each expert's logit, for each token.
    ranks: Vec<Vec<usize>>,
    /// In 64ths.
    biases: Vec<i32>,
}

fn cases() -> impl Strategy<Value = Case> {
    (1..=4_usize, 1..=4_usize)
        .prop_flat_map(|(n_group, size)| (Just(n_group), Just(size), 1..=n_group))
        .prop_flat_map(|(n_group, size, topk_group)| (Just((n_group, size, topk_group)), 1..=size * topk_group))
        .prop_flat_map(|((n_group, size, topk_group), k)| {
            let experts = n_group * size;
            let ranks = vec(Just((0..experts).collect::<Vec<_>>()).prop_shuffle(), 1..=3);
            (ranks, vec(-40..=40_i32, experts), any::<bool>()).prop_map(move |(ranks, biases, norm_topk_prob)| Case {
                n_group,
                topk_group,
                k,
                norm_topk_prob,
                ranks,
                biases,
            })
        })
}

impl Case {
    fn experts(&self) -> usize {
        self.biases.len()
    }

    fn groups(&self) -> Groups {
        Groups::contiguous(self.experts(), self.n_group).unwrap()
    }

    fn logits(&self) -> Array2<f64> {
        let middle = self.experts() as f64 / 2.0 + 0.3;
        Array2::from_shape_fn((self.ranks.len(), self.experts()), |(t, e)| 0.375 * (self.ranks[t][e] as f64 - middle))
    }

    fn scores(&self) -> Array2<f64> {
        self.logits().mapv(|z| 1.0 / (1.0 + (-z).exp()))
    }

    fn bias(&self) -> Array1<f64> {
        self.biases.iter().map(|&bias| f64::from(bias) / 64.0).collect()
    }

    fn config(&self) -> DeepseekV2Config {
        DeepseekV2Config {
            n_routed_experts: Some(self.experts()),
            n_group: Some(self.n_group),
            topk_group: Some(self.topk_group),
            num_experts_per_tok: Some(self.k),
            norm_topk_prob: self.norm_topk_prob,
            routed_scaling_factor: GAMMA,
            ..DeepseekV2Config::default()
        }
    }
}
