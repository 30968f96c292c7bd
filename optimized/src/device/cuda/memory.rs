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
        self.0.in_context(|| unsafe { result::malloc_sync(bytes) })
    }

    fn give_back(&mut self, address: u64) {
        // A failure here was reported by the call that caused it.
        // SAFETY: given out by `take`, and given back once. The driver waits for work that uses it.
        let _ = self.0.in_context(|| unsafe { result::free_sync(address) });
    }
}
