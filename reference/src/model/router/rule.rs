//! The router's rule: from logits to experts and weights. It has no weights of its own, and needs no model.

use ndarray::{Array1, Array2, ArrayView1};

use super::groups::Groups;
use super::routing::Routing;
use super::selection::{best, experts_of_best_groups, highest};
use crate::arithmetic::softmax::softmax;
use crate::config::TopkMethod;
use crate::tap::Scope;
use crate::{DeepseekV2Config, Dialect, Error, NoTap, Real, Result};

/// Which experts are selected, and what their weights are.
#[derive(Clone, Debug)]
pub struct RoutingRule<T> {
    /// Which group each expert is in. All are in one group if there are no groups.
    groups: Groups,
    /// How many groups are kept.
    topk_group: usize,
    num_experts_per_tok: usize,
    routed_scaling_factor: T,
    norm_topk_prob: bool,
}

impl<T: Real> RoutingRule<T> {
    /// The rule of a model.
    ///
    /// # Errors
    /// If the configuration's routing is impossible.
    pub fn from_config(config: &DeepseekV2Config, dialect: Dialect) -> Result<Self> {
        let mut rule = RoutingRule::new(config.num_experts(), config.topk_method()?, config.experts_per_token()?)?;
        rule.routed_scaling_factor = T::from_f64(config.routed_scaling_factor);
        rule.norm_topk_prob = config.norm_topk_prob && dialect.honours_norm_topk_prob();
        Ok(rule)
    }

    /// k of `experts`; the weights are the scores, as in the paper (there is no `routed_scaling_factor` in it).
    ///
    /// # Errors
    /// If the groups do not divide the experts, or hold too few.
    pub fn new(experts: usize, method: TopkMethod, num_experts_per_tok: usize) -> Result<Self> {
        let (n_group, topk_group) = match method {
            TopkMethod::Greedy => (1, 1),
            TopkMethod::GroupLimitedGreedy { n_group, topk_group } => (n_group, topk_group),
        };
        RoutingRule::in_groups(Groups::contiguous(experts, n_group)?, topk_group, num_experts_per_tok)
    }

    /// k of the experts in the `topk_group` best groups.
    pub(crate) fn in_groups(groups: Groups, topk_group: usize, num_experts_per_tok: usize) -> Result<Self> {
        if !(1..=groups.count()).contains(&topk_group) {
            return Err(Error::input("topk_group", format!("an integer of 1 to {}", groups.count()), topk_group));
        }
        let mut sizes: Vec<usize> = (0..groups.count()).map(|group| groups.experts_of(group).len()).collect();
        sizes.sort_unstable();
        let selectable: usize = sizes[..topk_group].iter().sum();
        if selectable < num_experts_per_tok {
            let expected = format!("at most {selectable}, the experts of the {topk_group} smallest groups");
            return Err(Error::input("num_experts_per_tok", expected, num_experts_per_tok));
        }
        let routed_scaling_factor = T::one();
        Ok(RoutingRule { groups, topk_group, num_experts_per_tok, routed_scaling_factor, norm_topk_prob: false })
    }

    /// With weights that are multiplied by `factor`.
    pub fn scaled_by(self, factor: T) -> Self {
        RoutingRule { routed_scaling_factor: factor, ..self }
    }

    /// With weights that are divided by their sum instead of being scaled (`norm_topk_prob` in dialect `deepseek`).
    pub fn normalised(self) -> Self {
        RoutingRule { norm_topk_prob: true, ..self }
    }

    /// Routes tokens by their logits \[N,E\].
    ///
    /// A logit that is NaN or plus infinity makes all weights of its token NaN, and its experts the first ones: nothing
    /// is hidden, and no expert is selected that does not exist. Minus infinity is a score of 0; a token that has no
    /// other logit has weights of 0.
    ///
    /// # Errors
    /// If E is not the number of experts.
    pub fn route(&self, router_logits: Array2<T>) -> Result<Routing<T>> {
        self.route_with_stages(router_logits, &mut Scope::root(&mut NoTap))
    }

    /// The same, with each step shown to the tap.
    pub(super) fn route_with_stages(&self, mut router_logits: Array2<T>, tap: &mut Scope<T>) -> Result<Routing<T>> {
        let experts = self.groups.experts();
        if router_logits.ncols() != experts {
            let found = format!("{:?}", router_logits.shape());
            return Err(Error::input("router_logits", format!("a logit for each of {experts} experts"), found));
        }
        tap.real("router_logits", &mut router_logits);
        let mut scores = router_logits.clone();
        scores.rows_mut().into_iter().for_each(softmax); // (22)

        let mut topk_indices = Array2::zeros((scores.nrows(), self.num_experts_per_tok));
        for (mut indices, scores) in topk_indices.rows_mut().into_iter().zip(scores.rows()) {
            indices.assign(&self.select(scores).mapv(|e| e as i64));
        }
        tap.index("topk_indices", &mut topk_indices);
        if let Some(bad) = topk_indices.iter().find(|&&e| !(0..experts as i64).contains(&e)) {
            return Err(Error::input("topk_indices", format!("experts 0 to {}", experts - 1), bad));
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

    /// The selected experts of one token, from its scores \[E\], by falling score: eq. 21, inside the kept groups.
    ///
    /// Experts outside the kept groups are out of the question here. (Transformers sets their scores to 0 instead, so
    /// that they come back with weight 0 if a kept score underflows to 0: the same output.)
    ///
    /// # Panics
    /// If there are not as many scores as experts.
    pub fn select(&self, scores: ArrayView1<T>) -> Array1<usize> {
        let candidates = experts_of_best_groups(&self.groups, scores, self.topk_group, best);
        highest(candidates, scores, self.num_experts_per_tok).into()
    }

    /// Scores of the selected experts -> their weights \[k\].
    pub fn weigh(&self, scores: Array1<T>) -> Array1<T> {
        if self.norm_topk_prob && scores.len() > 1 {
            let sum = scores.sum() + T::from_f64(1e-20);
            return scores / sum; // and no routed_scaling_factor
        }
        scores * self.routed_scaling_factor
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    const THREE_GROUPS: TopkMethod = TopkMethod::GroupLimitedGreedy { n_group: 3, topk_group: 1 };

    fn rule(method: TopkMethod, k: usize) -> RoutingRule<f64> {
        RoutingRule::new(6, method, k).unwrap().scaled_by(10.0)
    }

    #[test]
    fn minus_infinity_is_a_score_of_zero() {
        let mut logits = Array2::from_elem((2, 6), f64::NEG_INFINITY);
        logits[[0, 3]] = 1.0;
        let routing = rule(TopkMethod::Greedy, 2).route(logits).unwrap();
        assert_eq!(routing.topk_indices, array![[3, 0], [0, 1]]);
        assert_eq!(routing.topk_weights, array![[10.0, 0.0], [0.0, 0.0]]);
    }

    #[test]
    fn impossible_rules_and_logits_are_refused() {
        let groups = |n_group, topk_group| TopkMethod::GroupLimitedGreedy { n_group, topk_group };
        for (method, k, refusal) in [
            (groups(4, 1), 1, "input `n_group`: expected a divisor of the number of experts, 6, found 4"),
            (groups(3, 4), 1, "input `topk_group`: expected an integer of 1 to 3, found 4"),
            (
                groups(3, 1),
                3,
                "input `num_experts_per_tok`: expected at most 2, the experts of the 1 smallest groups, found 3",
            ),
        ] {
            assert_eq!(RoutingRule::<f64>::new(6, method, k).unwrap_err().to_string(), refusal);
        }
        let refusal = rule(THREE_GROUPS, 2).route(Array2::zeros((2, 5))).unwrap_err().to_string();
        assert_eq!(refusal, "input `router_logits`: expected a logit for each of 6 experts, found [2, 5]");
    }
}
