//! The time of each launch: an event before it, an event after it, and the difference of what the GPU wrote into both.

use std::collections::HashMap;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::queue::Queue;

/// After how many launches events are read, so that they do not pile up.
const MOST_RUNNING: usize = 4096;

/// The time that the launches of a kernel took.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// The kernel's entry.
    pub kernel: String,
    /// How often it was launched.
    pub launches: usize,
    /// All launches together.
    pub microseconds: f64,
}

/// What was measured. All calls need the GPU's context to be current.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Launches whose events were not read yet: the kernel, and the events before and after it.
    running: Vec<(String, sys::CUevent, sys::CUevent)>,
    /// By kernel: launches, and microseconds.
    times: HashMap<String, (usize, f64)>,
}

impl Clock {
    /// Launches, between two events.
    pub(super) fn around(
        &mut self,
        kernel: &str,
        queue: &Queue,
        launch: impl FnOnce() -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        let start = record(queue)?;
        launch()?;
        self.running.push((kernel.to_string(), start, record(queue)?));
        if self.running.len() == MOST_RUNNING { self.settle(queue) } else { Ok(()) }
    }

    /// The times so far, the longest first; then it begins anew.
    pub(super) fn take(&mut self, queue: &Queue) -> Result<Vec<KernelTime>, DriverError> {
        self.settle(queue)?;
        let time = |(kernel, (launches, microseconds))| KernelTime { kernel, launches, microseconds };
        let mut times: Vec<KernelTime> = self.times.drain().map(time).collect();
        times.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds).then_with(|| a.kernel.cmp(&b.kernel)));
        Ok(times)
    }

    /// Waits for all work, reads the events, and gives them back.
    fn settle(&mut self, queue: &Queue) -> Result<(), DriverError> {
        queue.wait()?;
        for (kernel, start, end) in self.running.drain(..) {
            // SAFETY: both were recorded, in the same stream, and are given back only here.
            let milliseconds = unsafe {
                let elapsed = result::event::elapsed(start, end);
                result::event::destroy(start)?;
                result::event::destroy(end)?;
                elapsed?
            };
            let (launches, microseconds) = self.times.entry(kernel).or_default();
            *launches += 1;
            *microseconds += 1e3 * f64::from(milliseconds);
        }
        Ok(())
    }
}

/// Puts an event into the stream that kernels are launched into: the GPU writes the time into it when it comes by.
fn record(queue: &Queue) -> Result<sys::CUevent, DriverError> {
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
    // SAFETY: the event was just made.
    unsafe { result::event::record(event, queue.stream) }.map(|()| event)
}
