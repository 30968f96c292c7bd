//! Room in which blocks that share a result leave their parts of it.

use std::sync::Arc;

use crate::{Device, Element, Result, Tensor};

/// Room for the parts of one launch, and counters of which blocks have come. One serves all launches of a device's stream:
/// a launch leaves nothing in it that the next one needs, also one that failed.
#[derive(Clone, Debug)]
pub struct Scratch {
    parts: Tensor,
    arrivals: Tensor,
}

impl Scratch {
    /// For how many results there are counters.
    pub(crate) const RESULTS: usize = 1 << 14;

    /// Room for parts of so many f32 numbers in all.
    ///
    /// # Errors
    /// If there is no room on the device.
    pub fn new(device: &Arc<dyn Device>, numbers: usize) -> Result<Self> {
        Self::with_counters(device, numbers, Self::RESULTS)
    }

    /// The same, with so many counters.
    ///
    /// # Errors
    /// If there is no room on the device.
    pub fn with_counters(device: &Arc<dyn Device>, numbers: usize, counters: usize) -> Result<Self> {
        let parts = Tensor::empty(device, Element::F32, &[numbers])?;
        let arrivals = Tensor::empty(device, Element::I32, &[counters])?;
        // Each launch finds them at zero, and leaves them at zero.
        device.fill(arrivals.address(), 0, arrivals.len() * arrivals.element().bytes())?;
        Ok(Scratch { parts, arrivals })
    }

    /// Where it is.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.parts.device()
    }

    /// What a launch that uses it came to. After one that failed the counters may stand anywhere: they are put back.
    pub(super) fn after(&self, launch: Result<()>) -> Result<()> {
        launch.inspect_err(|_| {
            let bytes = self.arrivals.len() * self.arrivals.element().bytes();
            // On a device that has failed for good there is nothing to put back.
            let _ = self.arrivals.device().fill(self.arrivals.address(), 0, bytes);
        })
    }

    /// Where the parts and the counters are, if there is room for `results` results of `numbers` f32 numbers each.
    pub(super) fn places(&self, results: usize, numbers: usize) -> Option<[u64; 2]> {
        self.room(results.saturating_mul(numbers), results)
    }

    /// The same for so many numbers and counters in all.
    pub(super) fn room(&self, numbers: usize, counters: usize) -> Option<[u64; 2]> {
        let room = numbers <= self.parts.len() && counters <= self.arrivals.len();
        room.then(|| [self.parts.address(), self.arrivals.address()])
    }

    /// Where the counter of a result is, if there are so many.
    pub(super) fn counter(&self, result: usize) -> Option<u64> {
        (result < self.arrivals.len()).then(|| self.arrivals.address() + 4 * result as u64)
    }
}
