//! Global memory as sectors (CUDA C++ programming guide, "Device Memory Accesses" and "Global Memory" of each compute
//! capability; best practices guide, "Coalesced Access to Global Memory").
//!
//! Memory moves in aligned sectors of 32 bytes, four of which make a cache line of 128. A request of a warp becomes one
//! transaction for every sector that some lane touches, whatever the order of the lanes. So 32 lanes that read
//! successive floats touch 4 sectors, or 5 if the first one is not aligned, and up to 32 if they are far apart.

use crate::exec::registers::{LANES, lanes};

const SECTOR: u64 = 32;
const LINE: u64 = 128;

/// What a request touches.
pub(super) struct Touched {
    pub(super) sectors: u64,
    /// The sectors that would hold its different bytes.
    pub(super) ideal: u64,
    pub(super) lines: u64,
}

/// What the lanes of `mask` touch, each with `bytes` bytes.
pub(super) fn touched(addresses: &[u64; LANES], mask: u32, bytes: u32) -> Touched {
    let (mut sorted, mut count) = ([0; LANES], 0);
    for lane in lanes(mask) {
        sorted[count] = addresses[lane];
        count += 1;
    }
    let sorted = &mut sorted[..count];
    sorted.sort_unstable();
    let bytes = u64::from(bytes);
    Touched {
        sectors: pieces(sorted, bytes, SECTOR),
        ideal: pieces(sorted, bytes, 1).div_ceil(SECTOR),
        lines: pieces(sorted, bytes, LINE),
    }
}

/// How many aligned pieces of `size` bytes are touched.
fn pieces(sorted: &[u64], bytes: u64, size: u64) -> u64 {
    let (mut count, mut next) = (0, 0);
    for address in sorted {
        let end = address.saturating_add(bytes).div_ceil(size);
        let first = (address / size).max(next);
        count += end.saturating_sub(first);
        next = next.max(end);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(address: impl Fn(u64) -> u64, mask: u32, bytes: u32) -> (u64, u64, u64) {
        let addresses = std::array::from_fn(|lane| address(lane as u64));
        let touched = touched(&addresses, mask, bytes);
        (touched.sectors, touched.ideal, touched.lines)
    }

    #[test]
    fn rules() {
        assert_eq!(count(|lane| 4 * lane, u32::MAX, 4), (4, 4, 1));
        assert_eq!(count(|lane| 4 * (31 - lane), u32::MAX, 4), (4, 4, 1));
        assert_eq!(count(|lane| 4 * (lane ^ 5), u32::MAX, 4), (4, 4, 1));
        assert_eq!(count(|lane| 4 + 4 * lane, u32::MAX, 4), (5, 4, 2));
        assert_eq!(count(|lane| 8 * lane, u32::MAX, 4), (8, 4, 2));
        assert_eq!(count(|lane| 128 * lane, u32::MAX, 4), (32, 4, 32));
        assert_eq!(count(|_| 4096, u32::MAX, 4), (1, 1, 1));
        assert_eq!(count(|lane| 16 * lane, u32::MAX, 16), (16, 16, 4));
        assert_eq!(count(|lane| lane, u32::MAX, 1), (1, 1, 1));
        assert_eq!(count(|lane| 4 * lane, 1 << 9, 4), (1, 1, 1));
        assert_eq!(count(|lane| 4 * lane, 0, 4), (0, 0, 0));
        assert_eq!(count(|_| u64::MAX, u32::MAX, 16), (1, 0, 1));
    }
}
