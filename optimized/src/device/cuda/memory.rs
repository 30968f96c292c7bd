//! The driver's own memory, from which the pool takes.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;

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

    fn is_full(error: &DriverError) -> bool {
        error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }

    fn give_back(&mut self, address: u64) {
        // A failure here was reported by the call that caused it. Memory that may still be in use stays taken.
        let _ = self.0.context.run(|| {
            self.0.queue.wait()?;
            // SAFETY: given out by `take`, and given back once; the work that uses it is done.
            unsafe { result::free_sync(address) }
        });
    }
}
