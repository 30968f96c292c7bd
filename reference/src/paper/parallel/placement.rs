//! Which device holds which expert (paper 2.2.2: "the experts are distributed on D devices").
//!
//! The paper writes E_i for the experts of device i. The released models place them in equal contiguous runs, one run a
//! group of the router (`n_group` = D = 8); any other placement is possible, and computes the same.

use ndarray::ArrayView1;

use crate::model::router::{DROPPED, Groups, Routing};
use crate::{Error, Real, Result};

/// Experts 0 to E - 1 on devices 0 to D - 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The experts of each device, as a group.
    groups: Groups,
}

impl Placement {
    /// Device `d` holds the experts from d·E/D on.
    ///
    /// # Errors
    /// If `devices` does not divide `experts`, or there is none.
    pub fn contiguous(experts: usize, devices: usize) -> Result<Self> {
        if devices == 0 || experts == 0 || !experts.is_multiple_of(devices) {
            return Err(Error::input("devices", format!("a divisor of the number of experts, {experts}"), devices));
        }
        Ok(Placement { groups: Groups::contiguous(experts, devices)? })
    }

    /// Any placement: the device of each expert. A device may hold none.
    ///
    /// # Errors
    /// If there is no expert, or a device is not one of `devices`.
    pub fn new(device_of_expert: Vec<usize>, devices: usize) -> Result<Self> {
        if device_of_expert.is_empty() {
            return Err(Error::input("device_of_expert", "one expert or more", "none"));
        }
        if let Some((expert, device)) = device_of_expert.iter().enumerate().find(|(_, device)| **device >= devices) {
            let found = format!("{device} for expert {expert}");
            return Err(Error::input("device_of_expert", format!("devices below {devices}"), found));
        }
        Ok(Placement { groups: Groups::new(device_of_expert, devices) })
    }

    /// The devices as groups of experts, for the router's rule.
    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// E.
    pub fn experts(&self) -> usize {
        self.groups.experts()
    }

    /// D.
    pub fn devices(&self) -> usize {
        self.groups.count()
    }

    /// The device that holds an expert.
    pub fn device_of(&self, expert: usize) -> usize {
        self.groups.group_of(expert)
    }

    /// E_i: the experts of a device, by rising index.
    pub fn experts_of(&self, device: usize) -> &[usize] {
        self.groups.experts_of(device)
    }
}

impl<T: Real> Routing<T> {
    /// For each token, the devices that hold its experts, by rising index, each once: the token is sent to a device
    /// once, however many of its experts are there.
    ///
    /// # Panics
    /// If a token has an expert that is on no device.
    pub fn devices_of_tokens(&self, placement: &Placement) -> Vec<Vec<usize>> {
        let devices_of = |experts: ArrayView1<i64>| {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_runs_of_equal_length() {
        let placement = Placement::contiguous(6, 3).unwrap();
        assert_eq!((placement.experts(), placement.devices(), placement.device_of(3)), (6, 3, 1));
        assert_eq!(placement.experts_of(2), [4, 5]);
    }

    #[test]
    fn impossible_placements_are_refused() {
        let refusal = |placement: Result<Placement>| placement.unwrap_err().to_string();
        assert_eq!(
            refusal(Placement::contiguous(6, 4)),
            "input `devices`: expected a divisor of the number of experts, 6, found 4"
        );
        assert_eq!(
            refusal(Placement::new(vec![0, 2], 2)),
            "input `device_of_expert`: expected devices below 2, found 2 for expert 1"
        );
    }
}
