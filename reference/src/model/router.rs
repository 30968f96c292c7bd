//! The router: which experts a token goes to, and with what weight (paper 2.2.1 and 2.2.2, eq. 20 to 22).
//!
//! ```text
//! s_{i,t} = softmax_i(u_t^T e_i)                               over all E experts, before the selection   (22)
//! g_{i,t} = factor s_{i,t} if s_{i,t} in top-k, otherwise 0                                               (21)
//! ```
//!
//! The paper writes N_r for E, `n_routed_experts` (V2: 160, V2-Lite: 64), and K_r for k, `num_experts_per_tok` (6).
//!
//! `greedy` (V2-Lite) selects among all experts. `group_limited_greedy` (V2; the paper's device-limited routing, 2.2.2)
//! first keeps the `topk_group` = M = 3 groups, of `n_group` = D = 8 contiguous ones, whose *best* expert has the highest
//! score, then selects inside them: 6 of 60 experts, on three devices at most.
//!
//! **Why a factor of 16.** The weights are the scores themselves, not divided by their sum. A softmax over 160 experts
//! spreads 1 over all of them, and the 6 selected get 6/160 = 0.04 between them where the router is undecided: beside
//! the shared experts, whose weight is 1, the routed ones would hardly count. `routed_scaling_factor` makes up for it, 0.6
//! in this case; V2-Lite's 6 of 64 have 0.09, and a factor of 1. The paper says no more than that the hidden states of
//! routed experts are multiplied by a scaling factor (3.1.2); the values are those of config.json.
//!
//! **Trap: the group's score is the maximum.** The sum of its two best is DeepSeek-V3's rule; llama.cpp applies it to
//! V2 as well (logits wrong by 1e-2 to 7.5e-1). candle takes the top groups among the *experts* and crashes.
//! Transformers 5.0 to 5.12 cannot run this method at all.
//!
//! **Trap: `norm_topk_prob`** has no effect in Transformers. DeepSeek's code for V2 divides by the sum *instead of*
//! multiplying by the scaling factor; its later revision does both. No published V2 checkpoint sets it. Here: dialect
//! `deepseek`, the former rule.
//!
//! **Trap: the router computes in fp32** in a bf16 model too (vllm#14027 is about one in bf16).
//!
//! [`RoutingRule`] is the rule without a model, [`selection`] what it is made of. The paper's form of it, for experts
//! that are placed on devices in any way, is [`crate::paper::parallel::device_limited`].

mod groups;
mod routing;
pub mod rule;
pub mod selection;

use std::fmt::Debug;

use ndarray::ArrayView2;

pub use groups::Groups;
pub use routing::{DROPPED, Routing};
pub use rule::RoutingRule;

use crate::model::linear::Linear;
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Real, Result};

/// `mlp.gate` of a mixture-of-experts layer: it sends each token to some experts. DeepSeek-V2's is
/// [`DeepseekV2TopkRouter`]; DeepSeek-V3 has another ([`crate::deepseek_v3::router`]).
pub trait Router<T>: Debug + Send + Sync {
    /// Routes `hidden` \[N,D\].
    ///
    /// # Errors
    /// If the router refuses its logits, or a tap left an expert in them that does not exist.
    fn route(&self, hidden: ArrayView2<T>, tap: &mut Scope<T>) -> Result<Routing<T>>;
}

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
}

impl<T: Real> Router<T> for DeepseekV2TopkRouter<T> {
    fn route(&self, hidden: ArrayView2<T>, tap: &mut Scope<T>) -> Result<Routing<T>> {
        self.rule.route_with_stages(self.gate.forward(hidden), tap)
    }
}
