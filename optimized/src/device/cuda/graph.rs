//! Graphs: the stream is captured, and what the driver makes of it is launched as a whole.

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::Cuda;
use crate::Result;
use crate::device::Graph;

/// A graph that can be launched.
#[derive(Debug)]
pub(super) struct Captured {
    device: Arc<Cuda>,
    graph: sys::CUgraphExec,
    launches: usize,
}

// SAFETY: the driver's handle may be used from any thread.
unsafe impl Send for Captured {}
// SAFETY: as above; the driver does launches one after another.
unsafe impl Sync for Captured {}

/// What a capture left, before it can be launched.
struct Template<'a>(&'a Cuda, sys::CUgraph);

impl Captured {
    pub(super) fn make(device: Arc<Cuda>, work: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let stream = device.queue.stream;
        // A kernel may be loaded in between, which takes memory: in a stricter mode the driver may refuse that.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the device.
        let begin = || device.with_context("a capture", || unsafe { result::stream::begin_capture(stream, mode) });
        let end = || {
            // SAFETY: as above.
            let end = || unsafe { result::stream::end_capture(stream) };
            Ok(Template(&device, device.with_context("the end of a capture", end)?))
        };
        let (template, launches) = device.gate.capture(begin, work, end)?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the capture made it, and it lives until the end of this.
        let graph = device.with_context("a graph", || unsafe { result::graph::instantiate(template.1, flags) })?;
        drop(template);
        Ok(Captured { graph, launches, device })
    }
}

impl Graph for Captured {
    fn launch(&self) -> Result<()> {
        let _pass = self.device.gate.outside("launching a graph")?;
        self.device.counter.graphs.add(1);
        self.device.counter.launches.add(self.launches);
        self.device.timed("graph", || {
            // SAFETY: both live as long as this.
            unsafe { result::graph::launch(self.graph, self.device.queue.stream) }
        })
    }

    fn launches(&self) -> usize {
        self.launches
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: made by `make`, and given back only here. What is under way ends first.
        let _ = self.device.context.run(|| unsafe { result::graph::exec_destroy(self.graph) });
    }
}

impl Drop for Template<'_> {
    fn drop(&mut self) {
        // SAFETY: made by a capture, and given back only here.
        let destroy = || -> std::result::Result<(), DriverError> { unsafe { result::graph::destroy(self.1) } };
        let _ = self.0.context.run(destroy);
    }
}
