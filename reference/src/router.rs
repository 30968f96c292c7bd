//! The router: which experts a token goes to, and with what weight (paper 2.2.1 and 2.2.2, eq. 20 to 22).
//!
//! ```text
//! s_{i,t} = softmax_i(u_t^T e_i)                               over all N_r experts, before the selection   (22)
//! g_{i,t} = s_{i,t} if s_{i,t} in top-K_r, otherwise 0                                                      (21)
//! ```
//!
//! `greedy` selects among all experts. `group_limited_greedy` (the paper's device-limited routing) first keeps the
//! `topk_group` groups, of `n_group` contiguous ones, whose *best* expert has the highest score, then selects inside
//! them. The weights are the scores at the selected experts times `routed_scaling_factor`; they do not sum to 1.
//!
//! **Trap: the group's score is the maximum.** The sum of its two best is DeepSeek-V3's rule; llama.cpp applies it to
//! V2 as well (logits wrong by 1e-2 to 7.5e-1). candle takes the top groups among the *experts* and crashes; mistral.rs
//! ends up with experts 0 and 1 at weight 0 (candle#2744). Transformers 5.0 to 5.12 cannot run this method at all.
//!
//! **Trap: `norm_topk_prob`** has no effect in Transformers. DeepSeek's code for V2 divides by the sum *instead of*
//! multiplying by the scaling factor; its later revision does both. No published V2 checkpoint sets it. Here: dialect
//! `deepseek`, the former rule.
//!
//! **Trap: the router computes in fp32** in a bf16 model too (vllm#14027 is about one in bf16).

use std::cmp::Ordering;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};

use crate::config::TopkMethod;
use crate::linear::Linear;
use crate::softmax::softmax;
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Error, Real, Result};

/// `mlp.gate`.
#[derive(Debug)]
pub struct DeepseekV2TopkRouter<T> {
    gate: Linear<T>,
    method: TopkMethod,
    num_experts_per_tok: usize,
    routed_scaling_factor: T,
    norm_topk_prob: bool,
}

/// The experts of each of N tokens.
#[derive(Debug, Clone)]
pub struct Routing<T> {
    /// u_t^T e_i before the softmax: \[N,E\].
    pub router_logits: Array2<T>,
    /// Selected experts, by falling score, equal ones by rising index: \[N,k\].
    pub topk_indices: Array2<i64>,
    /// Their weights: \[N,k\].
    pub topk_weights: Array2<T>,
}

impl<T: Real> DeepseekV2TopkRouter<T> {
    /// Takes `{path}.weight` \[E,D\] from `weights`. The router never has a bias.
    ///
    /// # Errors
    /// If the weight is missing or of another shape.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, path: &str, weights: &dyn WeightSource) -> Result<Self> {
        Ok(DeepseekV2TopkRouter {
            gate: Linear::load(weights, path, config.num_experts(), config.hidden_size, false)?,
            method: config.topk_method()?,
            num_experts_per_tok: config.experts_per_token()?,
            routed_scaling_factor: T::from_f64(config.routed_scaling_factor),
            norm_topk_prob: config.norm_topk_prob && dialect.honours_norm_topk_prob(),
        })
    }

    /// Routes `hidden` \[N,D\]. A logit that is no finite number makes all weights of its token NaN: nothing is hidden.
    pub(crate) fn forward(&self, hidden: ArrayView2<T>, tap: &mut Scope<T>) -> Result<Routing<T>> {
        let mut router_logits = self.gate.forward(hidden);
        tap.real("router_logits", &mut router_logits);
        let mut scores = router_logits.clone();
        scores.rows_mut().into_iter().for_each(softmax);

        let mut topk_indices = Array2::zeros((hidden.nrows(), self.num_experts_per_tok));
        for (mut indices, scores) in topk_indices.rows_mut().into_iter().zip(scores.rows()) {
            indices.assign(&self.select(scores));
        }
        tap.index("topk_indices", &mut topk_indices);
        if let Some(bad) = topk_indices.iter().find(|&&e| !(0..scores.ncols() as i64).contains(&e)) {
            return Err(Error::input("topk_indices", format!("experts 0 to {}", scores.ncols() - 1), bad));
        }

        let mut topk_weights = Array2::zeros(topk_indices.dim());
        for ((mut weights, indices), scores) in
            topk_weights.rows_mut().into_iter().zip(topk_indices.rows()).zip(scores.rows())
        {
            weights.assign(&self.weigh(indices.mapv(|e| scores[e as usize])));
        }
        tap.real("topk_weights", &mut topk_weights);
        Ok(Routing { router_logits, topk_indices, topk_weights })
    }

    /// The selected experts of one token, from its scores \[E\]: eq. 21, inside the kept groups.
    ///
    /// Experts outside the kept groups are out of the question here. (Transformers sets their scores to 0 instead, so
    /// that they come back with weight 0 if a kept score underflows to 0: the same output.)
    fn select(&self, scores: ArrayView1<T>) -> Array1<i64> {
        let candidates: Vec<usize> = match self.method {
            TopkMethod::Greedy => (0..scores.len()).collect(),
            TopkMethod::GroupLimitedGreedy { n_group, topk_group } => {
                let size = scores.len() / n_group;
                let best =
                    |group| scores.slice(s![group * size..(group + 1) * size]).iter().copied().fold(T::zero(), T::max);
                let group_scores = Array1::from_iter((0..n_group).map(best));
                let mut kept = highest((0..n_group).collect(), group_scores.view(), topk_group);
                kept.sort_unstable();
                kept.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
            }
        };
        highest(candidates, scores, self.num_experts_per_tok).into_iter().map(|e| e as i64).collect()
    }

    /// Scores of the selected experts -> their weights \[k\].
    fn weigh(&self, scores: Array1<T>) -> Array1<T> {
        if self.norm_topk_prob && scores.len() > 1 {
            let sum = scores.sum() + T::from_f64(1e-20);
            return scores / sum; // and no routed_scaling_factor
        }
        scores * self.routed_scaling_factor
    }
}

/// The `count` candidates with the highest scores, by falling score. Of equal scores the lower index wins.
/// (`torch.topk` promises no such thing: of eight equal ones it takes 6, 5, 4.)
fn highest<T: Real>(mut candidates: Vec<usize>, scores: ArrayView1<T>, count: usize) -> Vec<usize> {
    candidates.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
    candidates.truncate(count);
    candidates
}

impl<T: Real> Routing<T> {
    /// For each expert, the tokens that selected it and their weights, in token order.
    pub fn tokens_of_experts(&self) -> Vec<Vec<(usize, T)>> {
        let mut tokens = vec![Vec::new(); self.router_logits.len_of(Axis(1))];
        for ((token, slot), &expert) in self.topk_indices.indexed_iter() {
            tokens[expert as usize].push((token, self.topk_weights[[token, slot]]));
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::{Dtype, NoTap, Tensor};

    /// A router whose logits are its input: the weight is the identity.
    fn router(method: TopkMethod, k: usize, norm_topk_prob: bool) -> DeepseekV2TopkRouter<f64> {
        let identity = (0..36).map(|i| f64::from(u8::from(i % 7 == 0)));
        DeepseekV2TopkRouter {
            gate: Linear::new(Tensor::from_values(Dtype::F32, &[6, 6], identity), None),
            method,
            num_experts_per_tok: k,
            routed_scaling_factor: 10.0,
            norm_topk_prob,
        }
    }

    fn route(router: &DeepseekV2TopkRouter<f64>, probabilities: [f64; 6]) -> (Vec<i64>, Vec<f64>) {
        let logits = Array2::from_shape_fn((1, 6), |(_, e)| probabilities[e].ln());
        let routing = router.forward(logits.view(), &mut Scope::root(&mut NoTap)).unwrap();
        (routing.topk_indices.into_iter().collect(), routing.topk_weights.into_iter().collect())
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} is not {expected:?}");
    }

    const PROBABILITIES: [f64; 6] = [0.05, 0.30, 0.21, 0.20, 0.04, 0.20];

    #[test]
    fn greedy_takes_the_best_and_multiplies_by_the_scaling_factor() {
        let (experts, weights) = route(&router(TopkMethod::Greedy, 3, false), PROBABILITIES);
        assert_eq!(experts, [1, 2, 3], "of experts 3 and 5, equal, the lower index");
        assert_close(&weights, &[3.0, 2.1, 2.0]);
    }

    #[test]
    fn a_group_is_as_good_as_its_best_expert() {
        // Groups {0,1}, {2,3}, {4,5}: best 0.30, 0.21, 0.20; sums 0.35, 0.41, 0.24.
        let (experts, weights) =
            route(&router(TopkMethod::GroupLimitedGreedy { n_group: 3, topk_group: 1 }, 2, false), PROBABILITIES);
        assert_eq!(experts, [1, 0], "DeepSeek-V3's sum of two would take the group {{2,3}}");
        assert_close(&weights, &[3.0, 0.5]);
    }

    #[test]
    fn weights_of_a_normalising_router_sum_to_one_and_are_not_scaled() {
        let (_, weights) = route(&router(TopkMethod::Greedy, 2, true), PROBABILITIES);
        assert_close(&weights, &[0.30 / 0.51, 0.21 / 0.51]);
        let (_, single) = route(&router(TopkMethod::Greedy, 1, true), PROBABILITIES);
        assert_close(&single, &[3.0]);
    }

    #[test]
    fn underflowed_experts_are_taken_from_the_kept_groups() {
        let router = router(TopkMethod::GroupLimitedGreedy { n_group: 3, topk_group: 1 }, 2, false);
        let logits = array![[0.0, 0.0, 0.0, 0.0, 0.0, 2000.0]];
        let routing = router.forward(logits.view(), &mut Scope::root(&mut NoTap)).unwrap();
        assert_eq!(routing.topk_indices, array![[5, 4]]);
        assert_eq!(routing.topk_weights, array![[10.0, 0.0]]);
    }

    #[test]
    fn a_tap_may_choose_the_experts_and_the_weights_follow() {
        let mut force = |name: &str, value: crate::StageValue<'_, f64>| {
            if let (true, crate::StageValue::Index(mut experts)) = (name.ends_with("topk_indices"), value) {
                experts.fill(4);
            }
        };
        let logits = Array2::from_shape_fn((1, 6), |(_, e)| PROBABILITIES[e].ln());
        let router = router(TopkMethod::Greedy, 1, false);
        let routing = router.forward(logits.view(), &mut Scope::root(&mut force)).unwrap();
        assert_close(routing.topk_weights.as_slice().unwrap(), &[0.4]);

        let mut impossible = |_: &str, value: crate::StageValue<'_, f64>| {
            if let crate::StageValue::Index(mut experts) = value {
                experts.fill(6);
            }
        };
        let error = router.forward(logits.view(), &mut Scope::root(&mut impossible)).unwrap_err();
        assert_eq!(error.to_string(), "input `topk_indices`: expected experts 0 to 5, found 6");
    }

    #[test]
    fn a_logit_that_is_no_number_shows_in_the_weights() {
        for bad in [f64::NAN, f64::INFINITY] {
            for method in [TopkMethod::Greedy, TopkMethod::GroupLimitedGreedy { n_group: 3, topk_group: 2 }] {
                let logits = array![[0.0, bad, 0.0, 1.0, 0.0, 0.0]];
                let routing = router(method, 2, false).forward(logits.view(), &mut Scope::root(&mut NoTap)).unwrap();
                assert!(routing.topk_weights.iter().all(|w| w.is_nan()));
            }
        }
    }

    #[test]
    fn each_expert_sees_its_tokens_in_order() {
        let routing = Routing {
            router_logits: Array2::zeros((2, 3)),
            topk_indices: array![[2, 0], [0, 1]],
            topk_weights: array![[0.5, 0.25], [0.75, 0.125]],
        };
        assert_eq!(routing.tokens_of_experts(), [vec![(0, 0.25), (1, 0.75)], vec![(1, 0.125)], vec![(0, 0.5)]]);
    }
}
