//! Device-limited routing as the paper has it (2.2.2), for experts that are placed on devices in any way.
//!
//! > For each token, we first select M devices that have experts with the highest affinity scores in them. Then, we
//! > perform top-K selection among experts on these M devices.
//!
//! A token is then sent to M devices at most (fewer, if a selected device ends up without one of its K_r experts).
//!
//! The released code knows no devices, only `n_group` equal contiguous groups of which `topk_group` are kept
//! (`group_limited_greedy`). That is this, for [`Placement::contiguous`]: D = `n_group` = 8, M = `topk_group` = 3 in
//! V2, 160 experts. "The devices that have experts with the highest scores in them" is pinned with the code: the
//! devices in the order of their *best* expert.

use crate::model::router::RoutingRule;
use crate::paper::parallel::Placement;
use crate::{Real, Result};

impl<T: Real> RoutingRule<T> {
    /// K_r = `num_experts_per_tok` of the experts on each token's M = `device_limit` best devices; the weights are the
    /// scores (eq. 20, 21).
    ///
    /// # Errors
    /// If M is not one of 1 to D, or M devices may hold fewer than K_r experts. (Transformers fills up with experts
    /// of other groups then, at weight 0.)
    pub fn device_limited(placement: &Placement, device_limit: usize, num_experts_per_tok: usize) -> Result<Self> {
        RoutingRule::in_groups(placement.groups().clone(), device_limit, num_experts_per_tok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_experts_on_the_smallest_devices_are_refused() {
        let placement = Placement::new(vec![0, 0, 0, 1, 2], 3).unwrap();
        assert!(RoutingRule::<f64>::device_limited(&placement, 2, 2).is_ok());
        assert_eq!(
            RoutingRule::<f64>::device_limited(&placement, 2, 3).unwrap_err().to_string(),
            "input `num_experts_per_tok`: expected at most 2, the experts of the 2 smallest groups, found 3"
        );
    }
}
