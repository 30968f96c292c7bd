//! DeepSeek-V3's router, `noaux_tc` (V3 report 2.1.2). **Not DeepSeek-V2.**
//!
//! ```text
//! s_{i,t} = sigmoid(u_t^T e_i)                                                 (15)
//! select the k experts with the highest s_{i,t} + b_i, inside the kept groups      (16)
//! g_{i,t} = s_{i,t} / sum of the selected s_{j,t}, times a factor              (13)
//! ```
//!
//! | | V2 | V3 |
//! |---|---|---|
//! | score | softmax over all experts | sigmoid, each expert by itself |
//! | choice | by the score | by score + bias (`e_score_correction_bias`) |
//! | a group's score | its best expert | the sum of its two best |
//! | weights | score x factor | score (without the bias) / sum x factor |
//!
//! The report keeps the nodes with the highest sum of their k/M best experts (it writes K_r for k); that is 2 in the
//! released model (8 experts, 4 nodes), and the code has the 2 as a number.
//!
//! **Trap: a choice value can be negative,** since a bias can. DeepSeek's own modeling file sets the experts outside the
//! kept groups to 0, which then beats a kept expert below 0; Transformers 5.23 sets them to minus infinity. Here they
//! are no candidates.
//!
//! **Trap: the bias is no part of the weights,** and no gradient reaches it.
//!
//! **Trap: `routed_scaling_factor` applies whether or not the weights are normalised.** (In V2's code one excludes the
//! other.) As in Transformers, they are normalised for k = 1 too, which makes each of them the factor.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::arithmetic::activation::Activation;
use crate::model::linear::Linear;
use crate::model::router::selection::{experts_of_best_groups, highest};
use crate::model::router::{Groups, Router, Routing};
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Error, Real, Result};

/// DeepSeek-V3's score of a group: the sum of its two best experts (of all it has, if that is one).
pub fn sum_of_two_best<T: Real>(choice: ArrayView1<T>) -> T {
    highest((0..choice.len()).collect(), choice, 2).into_iter().fold(T::zero(), |sum, expert| sum + choice[expert])
}

/// Which experts are selected, and what their weights are.
#[derive(Clone, Debug)]
pub struct BiasCorrectedRule<T> {
    groups: Groups,
    topk_group: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
    routed_scaling_factor: T,
}

impl<T: Real> BiasCorrectedRule<T> {
    /// The rule of a model. The fields are those of V2 ([`super::config_from_value`]); `topk_method` is not read.
    ///
    /// # Errors
    /// If the groups are missing, do not divide the experts or hold too few.
    pub fn from_config(config: &DeepseekV2Config) -> Result<Self> {
        let (experts, k) = (config.num_experts(), config.experts_per_token()?);
        let (Some(n_group), Some(topk_group)) = (config.n_group, config.topk_group) else {
            return Err(Error::config("n_group and topk_group", "an integer each", "null"));
        };
        let mut rule = BiasCorrectedRule::new(experts, n_group, topk_group, k)?;
        rule.norm_topk_prob = config.norm_topk_prob;
        Ok(rule.scaled_by(T::from_f64(config.routed_scaling_factor)))
    }

    /// k of `experts` in `n_group` groups, of which `topk_group` are kept; the weights are the scores as they are.
    ///
    /// # Errors
    /// If the groups do not divide the experts or hold too few.
    pub fn new(experts: usize, n_group: usize, topk_group: usize, k: usize) -> Result<Self> {
        if n_group == 0 || !experts.is_multiple_of(n_group) {
            return Err(Error::config("n_group", format!("a divisor of n_routed_experts, {experts}"), n_group));
        }
        if topk_group > n_group || topk_group * (experts / n_group) < k {
            let expected = format!("at most n_group, {n_group}, and groups of {k} experts or more in all");
            return Err(Error::config("topk_group", expected, topk_group));
        }
        Ok(BiasCorrectedRule {
            groups: Groups::contiguous(experts, n_group)?,
            topk_group,
            num_experts_per_tok: k,
            norm_topk_prob: false,
            routed_scaling_factor: T::one(),
        })
    }

    /// With weights that are multiplied by `factor`.
    pub fn scaled_by(self, factor: T) -> Self {
        BiasCorrectedRule { routed_scaling_factor: factor, ..self }
    }

    /// With weights that are divided by their sum first.
    pub fn normalised(self) -> Self {
        BiasCorrectedRule { norm_topk_prob: true, ..self }
    }

    /// Routes tokens by their logits \[N,E\] and the experts' biases \[E\].
    ///
    /// # Errors
    /// If E is not the number of experts, or a logit is NaN: the sigmoid works expert by expert, so that a NaN would
    /// just be a low score, and be hidden. (In V2 it makes all weights of its token NaN.)
    pub fn route(&self, router_logits: Array2<T>, bias: ArrayView1<T>) -> Result<Routing<T>> {
        let experts = self.groups.experts();
        if router_logits.ncols() != experts || bias.len() != experts {
            let found = format!("{} logits and {} biases", router_logits.ncols(), bias.len());
            return Err(Error::input("router_logits", format!("a logit and a bias for each of {experts}"), found));
        }
        if let Some((at, _)) = router_logits.indexed_iter().find(|(_, logit)| logit.is_nan()) {
            return Err(Error::input("router_logits", "numbers", format!("NaN at {at:?}")));
        }
        let scores = router_logits.mapv(|logit| Activation::Sigmoid.apply(logit)); // (15)
        let choice = &scores + &bias;
        let mut topk_indices = Array2::zeros((scores.nrows(), self.num_experts_per_tok));
        let mut topk_weights = Array2::zeros(topk_indices.dim());
        for (token, scores) in scores.rows().into_iter().enumerate() {
            let selected = self.select(choice.row(token));
            topk_weights.row_mut(token).assign(&self.weigh(selected.mapv(|expert| scores[expert])));
            topk_indices.row_mut(token).assign(&selected.mapv(|expert| expert as i64));
        }
        Ok(Routing { router_logits, topk_indices, topk_weights })
    }

    /// The selected experts of one token, from its choice values s + b \[E\], by falling value (16).
    ///
    /// # Panics
    /// If there are not as many values as experts.
    pub fn select(&self, choice: ArrayView1<T>) -> Array1<usize> {
        let candidates = experts_of_best_groups(&self.groups, choice, self.topk_group, sum_of_two_best);
        highest(candidates, choice, self.num_experts_per_tok).into()
    }

    /// Scores of the selected experts, *without* their biases -> their weights \[k\] (13).
    pub fn weigh(&self, scores: Array1<T>) -> Array1<T> {
        let sum = if self.norm_topk_prob { scores.sum() + T::from_f64(1e-20) } else { T::one() };
        scores / sum * self.routed_scaling_factor
    }
}

/// `mlp.gate`: the centroids e_i, the biases b_i, and the rule.
#[derive(Debug)]
pub struct DeepseekV3TopkRouter<T> {
    gate: Linear<T>,
    e_score_correction_bias: Array1<T>,
    rule: BiasCorrectedRule<T>,
}

impl<T: Real> DeepseekV3TopkRouter<T> {
    /// Takes `{path}.weight` \[E,D\] and `{path}.e_score_correction_bias` \[E\] from `weights`.
    ///
    /// # Errors
    /// If one is missing or of another shape, or the config's routing is impossible.
    pub fn load(config: &DeepseekV2Config, path: &str, weights: &dyn WeightSource) -> Result<Self> {
        let rule = BiasCorrectedRule::from_config(config)?;
        let bias = weights.tensor(&format!("{path}.e_score_correction_bias"), &[config.num_experts()])?;
        Ok(DeepseekV3TopkRouter {
            gate: Linear::load(weights, path, config.num_experts(), config.hidden_size, false)?,
            e_score_correction_bias: bias.to_array(),
            rule,
        })
    }
}

impl<T: Real> Router<T> for DeepseekV3TopkRouter<T> {
    fn route(&self, hidden: ArrayView2<T>, tap: &mut Scope<T>) -> Result<Routing<T>> {
        let mut router_logits = self.gate.forward(hidden);
        tap.real("router_logits", &mut router_logits);
        self.rule.route(router_logits, self.e_score_correction_bias.view())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::aview1;

    use super::*;

    fn rule(n_group: usize, topk_group: usize, k: usize, norm_topk_prob: bool) -> BiasCorrectedRule<f64> {
        let config = DeepseekV2Config {
            n_routed_experts: Some(6),
            n_group: Some(n_group),
            topk_group: Some(topk_group),
            num_experts_per_tok: Some(k),
            norm_topk_prob,
            routed_scaling_factor: 10.0,
            ..DeepseekV2Config::default()
        };
        BiasCorrectedRule::from_config(&config).unwrap()
    }

    /// The logit whose sigmoid is `score`.
    fn logits(scores: [f64; 6]) -> Array2<f64> {
        Array2::from_shape_fn((1, 6), |(_, e)| (scores[e] / (1.0 - scores[e])).ln())
    }

    const SCORES: [f64; 6] = [0.9, 0.1, 0.6, 0.6, 0.5, 0.2];

    #[test]
    fn impossible_rules_and_logits_are_refused() {
        let config = DeepseekV2Config { n_group: Some(3), num_experts_per_tok: Some(2), ..Default::default() };
        let refused =
            |config: &DeepseekV2Config| BiasCorrectedRule::<f64>::from_config(config).unwrap_err().to_string();
        assert_eq!(refused(&config), "config: n_group and topk_group: expected an integer each, found null");
        let config = DeepseekV2Config { topk_group: Some(1), ..config };
        assert_eq!(refused(&config), "config: n_group: expected a divisor of n_routed_experts, 64, found 3");
        let mut logits = logits(SCORES);
        logits[[0, 4]] = f64::NAN;
        let refused = rule(3, 1, 2, true).route(logits, aview1(&[0.0; 6])).unwrap_err().to_string();
        assert_eq!(refused, "input `router_logits`: expected numbers, found NaN at (0, 4)");
    }
}
