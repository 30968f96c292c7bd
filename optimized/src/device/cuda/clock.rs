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
    running: Vec<(String, Event, Event)>,
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
        let start = Event::record(queue)?;
        launch()?;
        self.running.push((kernel.to_string(), start, Event::record(queue)?));
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
            // SAFETY: both were recorded, in the same stream.
            let milliseconds = unsafe { result::event::elapsed(start.0, end.0) }?;
            let (launches, microseconds) = self.times.entry(kernel).or_default();
            *launches += 1;
            *microseconds += 1e3 * f64::from(milliseconds);
        }
        Ok(())
    }

    /// Gives all events back; the GPU's context must be current.
    pub(super) fn close(&mut self) {
        self.running.clear();
    }
}

/// An event in the stream that kernels are launched into: the GPU writes the time into it when it comes by.
#[derive(Debug)]
struct Event(sys::CUevent);

impl Event {
    fn record(queue: &Queue) -> Result<Self, DriverError> {
        let event = Event(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        // SAFETY: the event was just made.
        unsafe { result::event::record(event.0, queue.stream) }.map(|()| event)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `record`, and given back only here.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
