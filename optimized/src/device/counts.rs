//! How often a device was asked for what.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How often a device was asked for what; see [`Device::counts`](super::Device::counts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Memory was taken, from the driver or from what was given back before.
    pub allocations: usize,
    /// Copies from the host.
    pub uploads: usize,
    /// Copies to the host.
    pub downloads: usize,
    /// Copies within the device, and fills.
    pub copies: usize,
    /// Kernels, alone or in a graph. While a graph is captured, none runs and none is counted.
    pub launches: usize,
    /// Graphs that were launched.
    pub graphs: usize,
    /// How often the host waited for the device. Each copy to the host waits. On a GPU a copy of more than 64 KiB from the
    /// host waits, too.
    pub synchronizations: usize,
}

/// What a device counts with.
#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) allocations: Tally,
    pub(super) uploads: Tally,
    pub(super) downloads: Tally,
    pub(super) copies: Tally,
    pub(super) launches: Tally,
    pub(super) graphs: Tally,
    pub(super) synchronizations: Tally,
}

/// One number of it.
#[derive(Debug, Default)]
pub(super) struct Tally(AtomicUsize);

impl Tally {
    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Counter {
    /// The counts; then they begin anew.
    pub(super) fn take(&self) -> Counts {
        Counts {
            allocations: self.allocations.take(),
            uploads: self.uploads.take(),
            downloads: self.downloads.take(),
            copies: self.copies.take(),
            launches: self.launches.take(),
            graphs: self.graphs.take(),
            synchronizations: self.synchronizations.take(),
        }
    }
}
