//! Shared memory as banks (CUDA C++ programming guide, "Shared Memory" of compute capability 5.x, to which those of 8.x
//! and 9.0 refer).
//!
//! Successive words of 4 bytes lie in successive banks, 32 of them, and a bank gives one word at a time. Lanes that
//! want the same word, or bytes of it, share it; of lanes that write the same word one wins. Lanes that want different
//! words of one bank are served one after the other: a *conflict*.
//!
//! A warp wants more than 32 words when each lane wants 8 or 16 bytes. Then its halves or quarters go one after the
//! other, and conflicts arise only within such a group. The rows of `ldmatrix` are 16 bytes each, and the eight lanes
//! that give the rows of one matrix are such a quarter.
//!
//! The guide does not say what atomic operations cost. Here each lane is served alone, even for the same word.

use crate::exec::registers::{LANES, lanes};

const BANKS: usize = 32;
const WORD: u64 = 4;

/// What a request costs.
pub(super) struct Passes {
    /// Wavefronts with the conflicts that there are.
    pub(super) needed: u64,
    /// Wavefronts without conflicts.
    pub(super) ideal: u64,
}

/// The wavefronts of one request: each lane of `mask` accesses `bytes` bytes.
pub(super) fn passes(addresses: &[u64; LANES], mask: u32, bytes: u32, atomic: bool) -> Passes {
    let together = match bytes {
        0..=4 => LANES,
        5..=8 => LANES / 2,
        _ => LANES / 4,
    };
    let mut passes = Passes { needed: 0, ideal: 0 };
    for first in (0..LANES).step_by(together) {
        let group = mask & (u32::MAX >> (LANES - together)) << first;
        if group != 0 {
            passes.ideal += 1;
            passes.needed += serial(addresses, group, bytes, atomic);
        }
    }
    passes
}

/// The wavefronts of lanes that go together: as many as the busiest bank has words to give.
fn serial(addresses: &[u64; LANES], group: u32, bytes: u32, atomic: bool) -> u64 {
    let mut words = Vec::with_capacity(LANES);
    for lane in lanes(group) {
        let address = addresses[lane];
        let last = address.saturating_add(u64::from(bytes.saturating_sub(1)));
        words.extend(address / WORD..=last / WORD);
    }
    if !atomic {
        words.sort_unstable();
        words.dedup();
    }
    let mut load = [0u64; BANKS];
    words.iter().for_each(|word| load[*word as usize % BANKS] += 1);
    load.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(address: impl Fn(u64) -> u64, mask: u32, bytes: u32) -> (u64, u64) {
        let addresses = std::array::from_fn(|lane| address(lane as u64));
        let passes = passes(&addresses, mask, bytes, false);
        (passes.needed, passes.ideal)
    }

    #[test]
    fn words() {
        for stride in 1..=64 {
            let common = 1 << u64::trailing_zeros(stride).min(5);
            assert_eq!(count(|lane| 4 * stride * lane, u32::MAX, 4), (common, 1), "stride {stride}");
        }
        assert_eq!(count(|_| 40, u32::MAX, 4), (1, 1));
        // Bytes and halves of one word are one word; two words in one bank are two.
        assert_eq!(count(|lane| lane, u32::MAX, 1), (1, 1));
        assert_eq!(count(|lane| 2 * lane, u32::MAX, 2), (1, 1));
        assert_eq!(count(|lane| 128 * (lane / 16), u32::MAX, 4), (2, 1));
        assert_eq!(count(|lane| 128 * lane, 0b111, 4), (3, 1));
    }

    #[test]
    fn wide_accesses_go_in_parts() {
        assert_eq!(count(|lane| 8 * lane, u32::MAX, 8), (2, 2));
        assert_eq!(count(|lane| 16 * lane, u32::MAX, 8), (4, 2));
        assert_eq!(count(|lane| 16 * lane, u32::MAX, 16), (4, 4));
        assert_eq!(count(|lane| 32 * lane, u32::MAX, 16), (8, 4));
        // Rows of 128 bytes for ldmatrix: all eight rows of a matrix begin in bank 0. A row more of 16 bytes mends it.
        assert_eq!(count(|lane| 128 * lane, 0xff, 16), (8, 1));
        assert_eq!(count(|lane| 144 * lane, 0xff, 16), (1, 1));
        // A half in which no lane takes part costs nothing.
        assert_eq!(count(|lane| 8 * lane, 0xffff_0000, 8), (1, 1));
    }

    #[test]
    fn atomics_and_odd_addresses() {
        assert_eq!(passes(&[64; LANES], u32::MAX, 4, true).needed, 32);
        assert_eq!(passes(&[u64::MAX; LANES], u32::MAX, 16, false).needed, 4);
    }
}
