//! The driver's own memory, from which the pool takes.

use cudarc::driver::result::{self, DriverError};

use super::Cuda;
use crate::device::pool::Supply;

/// The driver of a GPU, as one who has memory.
pub(super) struct Driver<'a>(pub(super) &'a Cuda);

impl Supply for Driver<'_> {
    type Error = DriverError;

    fn take(&mut self, bytes: usize) -> Result<u64, DriverError> {
        // SAFETY: memory that nobody has yet.
        self.0.context.run(|| unsafe { result::malloc_sync(bytes) })
    }

    fn give_back(&mut self, address: u64) {
        // A failure here was reported by the call that caused it.
        let _ = self.0.context.run(|| {
            let _ = self.0.queue.wait();
            // SAFETY: given out by `take`, and given back once; the work that uses it is done.
            unsafe { result::free_sync(address) }
        });
    }
}
