//! Counts the bytes that a piece of code takes from the allocator, while it is asked to. Otherwise an allocation costs one
//! relaxed load more than without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ON: AtomicBool = AtomicBool::new(false);
/// Taken and not given back since counting began.
static LIVE: AtomicI64 = AtomicI64::new(0);
/// The most that it was.
static MOST: AtomicI64 = AtomicI64::new(0);

/// What a piece of code took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Bytes that it took and has not given back.
    pub kept: u64,
    /// The most that it had at a time.
    pub most: u64,
}

/// Begins to count, from zero, on all threads.
pub fn begin() {
    LIVE.store(0, Relaxed);
    MOST.store(0, Relaxed);
    ON.store(true, Relaxed);
}

/// Stops counting.
pub fn end() -> Taken {
    ON.store(false, Relaxed);
    let bytes = |count: &AtomicI64| count.load(Relaxed).max(0) as u64;
    Taken { kept: bytes(&LIVE), most: bytes(&MOST) }
}

fn count(taken: usize, given_back: usize) {
    if ON.load(Relaxed) {
        let change = taken as i64 - given_back as i64;
        let live = LIVE.fetch_add(change, Relaxed) + change;
        MOST.fetch_max(live, Relaxed);
    }
}

// SAFETY: every call goes on to the system's allocator as it came, so what that one promises holds here too.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}
