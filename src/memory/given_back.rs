//! What is freed goes back to the system at once.
//!
//! The C library of GNU systems keeps large pieces that were freed, and more of them the larger they were: 100 MB of a run that is
//! planned at 170. And each thread has pieces of its own, of which nothing is given to another: 8 MB of a run of 42. Who sets a limit
//! wants what is planned; whoever does not is served faster with what is kept.

/// From this size on, in bytes, a piece of memory is the system's again as soon as it is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 2 << 20;

/// From now on, large pieces that are freed go back to the system, and small ones to all threads. (Elsewhere than on GNU systems
/// nothing is changed.)
pub fn at_once() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these set numbers in the allocator, under the allocator's own lock. If one is refused, all stays as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
