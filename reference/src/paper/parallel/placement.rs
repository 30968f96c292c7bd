//! Which device holds which expert (paper 2.2.2: "the experts are distributed on D devices").
//!
//! The paper writes E_i for the experts of device i. The released models place them in equal contiguous runs, one run a
//! group of the router (`n_group` = D = 8); any other placement is possible, and computes the same.

use crate::{Error, Result};

/// Experts 0 to E - 1 on devices 0 to D - 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    device_of_expert: Vec<usize>,
    experts_of_device: Vec<Vec<usize>>,
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
        let size = experts / devices;
        Placement::new((0..experts).map(|expert| expert / size).collect(), devices)
    }

    /// Any placement: the device of each expert. A device may hold none.
    ///
    /// # Errors
    /// If there is no expert, or a device is not one of `devices`.
    pub fn new(device_of_expert: Vec<usize>, devices: usize) -> Result<Self> {
        if device_of_expert.is_empty() {
            return Err(Error::input("device_of_expert", "one expert or more", "none"));
        }
        let mut experts_of_device = vec![Vec::new(); devices];
        for (expert, &device) in device_of_expert.iter().enumerate() {
            let Some(experts) = experts_of_device.get_mut(device) else {
                let found = format!("{device} for expert {expert}");
                return Err(Error::input("device_of_expert", format!("devices below {devices}"), found));
            };
            experts.push(expert);
        }
        Ok(Placement { device_of_expert, experts_of_device })
    }

    /// E.
    pub fn experts(&self) -> usize {
        self.device_of_expert.len()
    }

    /// D.
    pub fn devices(&self) -> usize {
        self.experts_of_device.len()
    }

    /// The device that holds an expert.
    pub fn device_of(&self, expert: usize) -> usize {
        self.device_of_expert[expert]
    }

    /// E_i: the experts of a device, by rising index.
    pub fn experts_of(&self, device: usize) -> &[usize] {
        &self.experts_of_device[device]
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
