//! The stream in which all work is done, and pinned memory of the host for small copies.
//!
//! **Trap.** The legacy default stream cannot be captured, and what is called without a stream (`cuMemcpyHtoD`) is in it:
//! it does not wait for a stream that was made as non-blocking, nor that for it. So nothing here is called without one.

use std::slice;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// Pinned memory; and a copy of up to a quarter of it goes through there.
const PINNED: usize = 256 << 10;
pub(super) const SMALL: usize = PINNED / 4;
/// What the pieces of it are multiples of.
const PIECE: usize = 64;

/// The stream. All calls need the GPU's context to be current.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) stream: sys::CUstream,
    pinned: Mutex<Pinned>,
}

/// Memory that the GPU reads and writes by itself: a copy from there need not be waited for.
#[derive(Debug)]
struct Pinned {
    start: *mut u8,
    /// From here on nothing that is under way uses it.
    used: usize,
}

impl Queue {
    pub(super) fn open() -> Result<Self, DriverError> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        // SAFETY: memory that nobody has yet.
        match unsafe { result::malloc_host(PINNED, 0) } {
            Ok(start) => Ok(Queue { stream, pinned: Mutex::new(Pinned { start: start.cast(), used: 0 }) }),
            Err(error) => {
                // SAFETY: made above, and nobody else has it.
                let _ = unsafe { result::stream::destroy(stream) };
                Err(error)
            }
        }
    }

    /// Copies to the GPU. Says whether it waited for all work before.
    pub(super) fn upload(&self, to: u64, data: &[u8]) -> Result<bool, DriverError> {
        if data.len() > SMALL {
            // SAFETY: the driver checks the range; `data` lives until the copy was waited for.
            unsafe { result::memcpy_htod_async(to, data, self.stream) }?;
            return self.wait().map(|()| true);
        }
        let pinned = &mut *self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let (piece, waited) = pinned.piece(data.len(), || self.wait())?;
        piece.copy_from_slice(data);
        // SAFETY: the driver checks the range; the piece is used for nothing else before the stream was waited for.
        unsafe { result::memcpy_htod_async(to, piece, self.stream) }.map(|()| waited)
    }

    /// Waits for all work, then copies from the GPU.
    pub(super) fn download(&self, from: u64, data: &mut [u8]) -> Result<(), DriverError> {
        if data.len() > SMALL {
            // SAFETY: the driver checks the range; `data` lives until the copy was waited for.
            unsafe { result::memcpy_dtoh_async(data, from, self.stream) }?;
            return self.wait();
        }
        let pinned = &mut *self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let (piece, _) = pinned.piece(data.len(), || self.wait())?;
        // SAFETY: the driver checks the range; the piece is read after the stream was waited for.
        unsafe { result::memcpy_dtoh_async(piece, from, self.stream) }?;
        self.wait()?;
        data.copy_from_slice(piece);
        pinned.used = 0;
        Ok(())
    }

    /// Waits for all work.
    pub(super) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }
    }

    /// Gives everything back, once all work is done.
    pub(super) fn close(&mut self) {
        let pinned = self.pinned.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made by `open`, and given back only here, when nobody asks for anything any more.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::free_host(pinned.start.cast());
            let _ = result::stream::destroy(self.stream);
        }
    }
}

impl Pinned {
    /// A piece that nothing uses; if there is none left, all work is waited for, and it is said that it was.
    fn piece(
        &mut self,
        bytes: usize,
        wait: impl FnOnce() -> Result<(), DriverError>,
    ) -> Result<(&mut [u8], bool), DriverError> {
        let waits = self.used + bytes > PINNED;
        if waits {
            wait()?;
            self.used = 0;
        }
        // SAFETY: it lies within the memory, which lives as long as the queue; nobody has this part of it: the caller
        // holds the lock, and the pieces handed out before end at `used`.
        let piece = unsafe { slice::from_raw_parts_mut(self.start.add(self.used), bytes) };
        self.used += bytes.next_multiple_of(PIECE);
        Ok((piece, waits))
    }
}
