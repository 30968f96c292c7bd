//! The virtual address space (PTX manual, "Generic Addressing"): which bits of an address mean what.
//!
//! Every allocation has a window of 64 GiB to itself and begins 4 GiB into it. So the allocation is found by a shift,
//! and an index that is a little too large or too small still points into the window of the allocation it was meant
//! for, never into a neighbour. Shared and local memory have windows of their own, far above.

use super::Space;

const WINDOW: u32 = 36;
const START: u64 = 1 << 32;

/// The largest allocation.
pub(crate) const LARGEST: u64 = (1 << WINDOW) - 2 * START;

/// The generic address of byte 0 of the block's shared memory.
pub(crate) const SHARED: u64 = 1 << 60;

/// The generic address of byte 0 of the thread's local memory.
pub(crate) const LOCAL: u64 = 1 << 61;

/// The generic address of byte 0 of the kernel's parameters.
pub(crate) const PARAM: u64 = 3 << 60;

/// The address of byte 0 of allocation `index`.
pub(crate) fn base(index: usize) -> u64 {
    ((index as u64 + 1) << WINDOW) + START
}

/// The allocation that an address means, and the byte in it, which may be out of bounds.
#[inline]
pub(crate) fn split(address: u64) -> (usize, i64) {
    let window = address >> WINDOW;
    let offset = (address & ((1 << WINDOW) - 1)) as i64 - START as i64;
    ((window as usize).wrapping_sub(1), offset)
}

/// The space that a generic address points into, and the address within that space.
#[inline]
pub(crate) fn generic(address: u64) -> (Space, u64) {
    // An index just below zero leaves the window downwards, so half a window belongs to it there.
    const REACH: u64 = 1 << 32;
    if address.wrapping_sub(SHARED).wrapping_add(REACH) < 2 * REACH {
        (Space::Shared, address.wrapping_sub(SHARED))
    } else if address.wrapping_sub(LOCAL).wrapping_add(REACH) < 2 * REACH {
        (Space::Local, address.wrapping_sub(LOCAL))
    } else if address.wrapping_sub(PARAM).wrapping_add(REACH) < 2 * REACH {
        (Space::Param, address.wrapping_sub(PARAM))
    } else {
        (Space::Global, address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_for_each() {
        for index in [0, 1, 1000] {
            assert_eq!(split(base(index)), (index, 0));
            assert_eq!(split(base(index) - 4), (index, -4));
            assert_eq!(split(base(index) + LARGEST), (index, LARGEST as i64));
            assert_eq!(generic(base(index)).0, Space::Global);
        }
        assert_eq!(generic(SHARED + 12), (Space::Shared, 12));
        assert_eq!(generic(LOCAL - 4), (Space::Local, (-4i64) as u64));
        assert_eq!(generic(PARAM + 8), (Space::Param, 8));
        assert_eq!(split(0).0, usize::MAX);
    }
}
