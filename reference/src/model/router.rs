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
//!
//! [`RoutingRule`] is the rule without a model, [`device_limited`] the paper's form of it for any placement of experts,
//! [`selection`] what both are made of.

pub mod device_limited;
pub mod rule;
pub mod selection;

use ndarray::{Array2, ArrayView2, Axis};

pub use rule::RoutingRule;

use crate::arithmetic::softmax::softmax;
use crate::model::linear::Linear;
use crate::paper::parallel::Placement;
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Error, Real, Result};

/// `mlp.gate`: the centroids e_i, and the rule.
#[derive(Debug)]
pub struct DeepseekV2TopkRouter<T> {
    gate: Linear<T>,
    rule: RoutingRule<T>,
}

impl<T: Real> DeepseekV2TopkRouter<T> {
    /// Takes `{path}.weight` \[E,D\] from `weights`. The router never has a bias.
    ///
    /// # Errors
    /// If the weight is missing or of another shape.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, path: &str, weights: &dyn WeightSource) -> Result<Self> {
        Ok(DeepseekV2TopkRouter {
            gate: Linear::load(weights, path, config.num_experts(), config.hidden_size, false)?,
            rule: RoutingRule::from_config(config, dialect)?,
        })
    }

    /// Routes `hidden` \[N,D\].
    pub(crate) fn forward(&self, hidden: ArrayView2<T>, tap: &mut Scope<T>) -> Result<Routing<T>> {
        self.rule.route_with_stages(self.gate.forward(hidden), tap)
    }
}

/// In place of an expert: the token was dropped there ([`crate::paper::training::token_dropping`]).
pub const DROPPED: i64 = -1;

/// The experts of each of N tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing<T> {
    /// u_t^T e_i before the softmax: \[N,E\].
    pub router_logits: Array2<T>,
    /// Selected experts, by falling score, equal ones by rising index: \[N,k\]. Or [`DROPPED`].
    pub topk_indices: Array2<i64>,
    /// Their weights: \[N,k\].
    pub topk_weights: Array2<T>,
}

impl<T: Real> Routing<T> {
    /// s_{i,t}: the softmax over all experts (eq. 22), \[N,E\].
    pub fn scores(&self) -> Array2<T> {
        let mut scores = self.router_logits.clone();
        scores.rows_mut().into_iter().for_each(softmax);
        scores
    }

    /// For each expert, the tokens that selected it and their weights, in token order.
    ///
    /// # Panics
    /// If a token has an expert that does not exist ([`Routing::validate`] tells).
    pub fn tokens_of_experts(&self) -> Vec<Vec<(usize, T)>> {
        let mut tokens = vec![Vec::new(); self.router_logits.len_of(Axis(1))];
        for ((token, slot), &expert) in self.topk_indices.indexed_iter().filter(|(_, e)| **e != DROPPED) {
            tokens[expert as usize].push((token, self.topk_weights[[token, slot]]));
        }
        tokens
    }

    /// For each expert, how many tokens selected it: \[E\].
    pub fn tokens_per_expert(&self) -> Vec<usize> {
        self.tokens_of_experts().iter().map(Vec::len).collect()
    }

    /// For each token, the devices that hold its experts, by rising index, each once: the token is sent to a device
    /// once, however many of its experts are there.
    ///
    /// # Panics
    /// If a token has an expert that is on no device.
    pub fn devices_of_tokens(&self, placement: &Placement) -> Vec<Vec<usize>> {
        let devices_of = |experts: ndarray::ArrayView1<i64>| {
            let selected = experts.iter().filter(|e| **e != DROPPED);
            let mut devices: Vec<usize> = selected.map(|&e| placement.device_of(e as usize)).collect();
            devices.sort_unstable();
            devices.dedup();
            devices
        };
        self.topk_indices.rows().into_iter().map(devices_of).collect()
    }

    /// For each device, how many tokens are sent to it: \[D\].
    ///
    /// # Panics
    /// As [`Routing::devices_of_tokens`].
    pub fn tokens_per_device(&self, placement: &Placement) -> Vec<usize> {
        let mut tokens = vec![0; placement.devices()];
        self.devices_of_tokens(placement).into_iter().flatten().for_each(|device| tokens[device] += 1);
        tokens
    }

    /// Checks what anybody may have put together: that the shapes agree, and that each token has k different experts
    /// which exist, none of them dropped.
    ///
    /// # Errors
    /// What does not hold.
    pub fn validate(&self) -> Result<()> {
        let (tokens, experts) = self.router_logits.dim();
        if self.topk_indices.nrows() != tokens {
            return Err(Error::input("topk_indices", format!("{tokens} tokens"), self.topk_indices.nrows()));
        }
        if self.topk_weights.dim() != self.topk_indices.dim() {
            let expected = format!("{:?}, as the indices", self.topk_indices.shape());
            return Err(Error::input("topk_weights", expected, format!("{:?}", self.topk_weights.shape())));
        }
        for (token, selected) in self.topk_indices.rows().into_iter().enumerate() {
            let mut seen = vec![false; experts];
            for &expert in selected {
                let unseen = usize::try_from(expert).ok().and_then(|e| seen.get_mut(e)).filter(|seen| !**seen);
                let Some(unseen) = unseen else {
                    let expected = format!("different experts below {experts} for each token");
                    return Err(Error::input("topk_indices", expected, format!("{selected} for token {token}")));
                };
                *unseen = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::config::TopkMethod;
    use crate::{Dtype, NoTap, Tensor};

    /// A router whose logits are its input: the weight is the identity.
    fn router(method: TopkMethod, k: usize) -> DeepseekV2TopkRouter<f64> {
        let identity = (0..36).map(|i| f64::from(u8::from(i % 7 == 0)));
        DeepseekV2TopkRouter {
            gate: Linear::new(Tensor::from_values(Dtype::F32, &[6, 6], identity), None),
            rule: RoutingRule::new(6, method, k).unwrap().scaled_by(10.0),
        }
    }

    #[test]
    fn a_tap_may_choose_the_experts_and_the_weights_follow() {
        let mut force = |name: &str, value: crate::StageValue<'_, f64>| {
            if let (true, crate::StageValue::Index(mut experts)) = (name.ends_with("topk_indices"), value) {
                experts.fill(4);
            }
        };
        let logits = array![[0.05, 0.30, 0.21, 0.20, 0.04, 0.20_f64]].ln();
        let router = router(TopkMethod::Greedy, 1);
        let routing = router.forward(logits.view(), &mut Scope::root(&mut force)).unwrap();
        assert!((routing.topk_weights[[0, 0]] - 0.4).abs() < 1e-12);

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
                let routing = router(method, 2).forward(logits.view(), &mut Scope::root(&mut NoTap)).unwrap();
                assert!(routing.topk_weights.iter().all(|w| w.is_nan()));
            }
        }
    }

    fn two_tokens() -> Routing<f64> {
        Routing {
            router_logits: Array2::zeros((2, 3)),
            topk_indices: array![[2, 0], [0, 1]],
            topk_weights: array![[0.5, 0.25], [0.75, 0.125]],
        }
    }

    #[test]
    fn each_expert_sees_its_tokens_in_order() {
        let mut routing = two_tokens();
        assert_eq!(routing.tokens_of_experts(), [vec![(0, 0.25), (1, 0.75)], vec![(1, 0.125)], vec![(0, 0.5)]]);
        assert_eq!(routing.tokens_per_expert(), [2, 1, 1]);
        routing.topk_indices[[0, 1]] = DROPPED;
        assert_eq!(routing.tokens_of_experts(), [vec![(1, 0.75)], vec![(1, 0.125)], vec![(0, 0.5)]]);
    }

    #[test]
    fn a_token_is_sent_to_a_device_once() {
        let placement = Placement::new(vec![1, 1, 0], 2).unwrap();
        assert_eq!(two_tokens().devices_of_tokens(&placement), [vec![0, 1], vec![1]]);
        assert_eq!(two_tokens().tokens_per_device(&placement), [1, 2]);
    }

    #[test]
    fn a_routing_that_cannot_be_is_refused() {
        assert!(two_tokens().validate().is_ok());
        for bad in [DROPPED, 3, 2] {
            let mut routing = two_tokens();
            routing.topk_indices[[0, 1]] = bad;
            assert_eq!(
                routing.validate().unwrap_err().to_string(),
                format!(
                    "input `topk_indices`: expected different experts below 3 for each token, \
                     found [2, {bad}] for token 0"
                )
            );
        }
        let routing = Routing { topk_weights: Array2::zeros((2, 1)), ..two_tokens() };
        assert_eq!(
            routing.validate().unwrap_err().to_string(),
            "input `topk_weights`: expected [2, 2], as the indices, found [2, 1]"
        );
    }
}
