//! What happens where the system has no more memory: one line, and the end. For every program of the repository.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use dsv2_reference::file::unfinished;

/// The system's allocator, whose last word is a line and status 2. (Rust's own is an abort, which leaves what is unfinished.)
struct OrSaySo;

#[global_allocator]
static ALLOCATOR: OrSaySo = OrSaySo;

/// From this size on, in bytes. Where less than that is refused, nothing can be said either.
const LARGE: usize = 4096;

// SAFETY: every call goes to the system's allocator as it is, and what that returns is returned.
unsafe impl GlobalAlloc for OrSaySo {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        there(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        there(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        there(unsafe { System.realloc(pointer, layout, size) }, size)
    }
}

fn there(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() && size >= LARGE {
        end(size);
    }
    pointer
}

/// The first thread that comes here removes what is unfinished, says why, and ends the program; others wait for that.
#[cold]
fn end(size: usize) {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if ENDING.swap(true, Relaxed) {
        std::thread::sleep(std::time::Duration::from_secs(1));
        return;
    }
    unfinished::remove_all();
    let name = env!("CARGO_BIN_NAME");
    let _ = writeln!(
        std::io::stderr(),
        "{name}: memory: expected {size} more bytes, found that the system has not got them"
    );
    std::process::exit(2);
}
