//! An allocator that counts, so that a small file that takes much memory is a finding.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that are allocated now, and the most that there were since [`bounded`] began to look.
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// What a reader may allocate besides its input.
const FIXED: usize = 1 << 20;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old block and the new one may be there together.
        grow(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn grow(size: usize) {
    let held = HELD.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(held, Relaxed);
}

/// Runs `read` on an input of `length` bytes, during which no more than `factor` times that and a fixed mebibyte may be
/// allocated in all threads together.
///
/// # Panics
/// If more was allocated.
pub fn bounded<R>(length: usize, factor: usize, read: impl FnOnce() -> R) -> R {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = read();
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    let limit = factor * length + FIXED;
    assert!(peak <= limit, "{peak} bytes of memory for an input of {length} bytes; {limit} are allowed");
    result
}
