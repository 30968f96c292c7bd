//! Bytes with a shadow: a piece of memory that knows which of its bytes were ever written.
//!
//! Blocks on several threads may work on the same allocation, so the words are atomics. All accesses are relaxed,
//! which on today's machines costs nothing; the order between threads comes from the joins at the end of a launch.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

/// What unwritten and not yet landed bytes hold: as a float it is a NaN, as an index it is out of bounds.
const PATTERN: u32 = 0xffff_ffff;

/// A piece of memory. Offsets must have been checked: an access beyond the end would be an index panic.
#[derive(Debug)]
pub(crate) struct Store {
    words: Box<[AtomicU32]>,
    /// Four bits per word, one for each byte that was written.
    written: Box<[AtomicU8]>,
    bytes: u64,
    /// Whether other threads may write the other bytes of a word at the same time.
    concurrent: bool,
}

impl Store {
    /// Unwritten memory.
    pub(crate) fn new(bytes: u64, concurrent: bool) -> Self {
        let count = bytes.div_ceil(4) as usize;
        let words = (0..count).map(|_| AtomicU32::new(PATTERN)).collect();
        let written = (0..count).map(|_| AtomicU8::new(0)).collect();
        Self { words, written, bytes, concurrent }
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.words.iter_mut().for_each(|word| *word.get_mut() = PATTERN);
        self.written.iter_mut().for_each(|bits| *bits.get_mut() = 0);
    }

    /// Loads 1, 2, 4 or 8 bytes; the offset is a multiple of `bytes`.
    #[inline]
    pub(crate) fn load(&self, offset: u64, bytes: u32) -> u64 {
        let at = (offset / 4) as usize;
        let low = u64::from(self.words[at].load(Relaxed));
        match bytes {
            4 => low,
            8 => low | u64::from(self.words[at + 1].load(Relaxed)) << 32,
            2 => low >> (offset % 4 * 8) & 0xffff,
            _ => low >> (offset % 4 * 8) & 0xff,
        }
    }

    /// Stores 1, 2, 4 or 8 bytes; the offset is a multiple of `bytes`.
    #[inline]
    pub(crate) fn store(&self, offset: u64, bytes: u32, value: u64) {
        let at = (offset / 4) as usize;
        match bytes {
            4 => self.store_word(at, value as u32),
            8 => {
                self.store_word(at, value as u32);
                self.store_word(at + 1, (value >> 32) as u32);
            }
            _ => {
                let (shift, ones) = ((offset % 4) as u32, (1u32 << (bytes * 8)) - 1);
                self.store_part(at, ones << (shift * 8), (value as u32 & ones) << (shift * 8), byte_bits(shift, bytes));
            }
        }
    }

    /// Loads words, each so many bytes behind the one before it.
    #[inline]
    pub(crate) fn load_words(&self, offset: u64, step: u64, values: &mut [u32]) {
        let (first, step) = ((offset / 4) as usize, (step / 4) as usize);
        for (at, value) in values.iter_mut().enumerate() {
            *value = self.words[first + at * step].load(Relaxed);
        }
    }

    /// Stores words, each so many bytes behind the one before it.
    #[inline]
    pub(crate) fn store_words(&self, offset: u64, step: u64, values: &[u32]) {
        let (first, step) = ((offset / 4) as usize, (step / 4) as usize);
        for (at, value) in values.iter().enumerate() {
            self.store_word(first + at * step, *value);
        }
    }

    #[inline]
    fn store_word(&self, at: usize, value: u32) {
        self.words[at].store(value, Relaxed);
        self.written[at].store(0xf, Relaxed);
    }

    /// Only the bytes of `mask` change; another thread may be changing the others.
    fn store_part(&self, at: usize, mask: u32, value: u32, bits: u8) {
        let (word, written) = (&self.words[at], &self.written[at]);
        if self.concurrent {
            // Flips the bits that are to change, and touches no other: half the price of clearing and setting.
            word.fetch_xor((word.load(Relaxed) ^ value) & mask, Relaxed);
            if written.load(Relaxed) & bits != bits {
                written.fetch_or(bits, Relaxed);
            }
        } else {
            word.store(word.load(Relaxed) & !mask | value, Relaxed);
            written.store(written.load(Relaxed) | bits, Relaxed);
        }
    }

    /// Whether every byte of the range was written.
    #[inline]
    pub(crate) fn is_written(&self, offset: u64, bytes: u32) -> bool {
        let at = (offset / 4) as usize;
        if bytes < 4 {
            let bits = byte_bits((offset % 4) as u32, bytes);
            return self.written[at].load(Relaxed) & bits == bits;
        }
        // Without a way out of the loop: hardly ever is a byte missing.
        self.written[at..at + bytes as usize / 4].iter().fold(0xf, |all, bits| all & bits.load(Relaxed)) == 0xf
    }

    /// Makes the bytes of a word-aligned range unwritten again: an asynchronous copy is on its way to them.
    pub(crate) fn poison(&self, offset: u64, bytes: u32) {
        for at in (offset / 4) as usize..((offset + u64::from(bytes)) / 4) as usize {
            self.words[at].store(PATTERN, Relaxed);
            self.written[at].store(0, Relaxed);
        }
    }

    /// Which of at most 8 bytes were written, a bit for each; the offset is a multiple of `bytes`.
    pub(crate) fn written_bytes(&self, offset: u64, bytes: u32) -> u32 {
        (0..bytes).filter(|byte| self.is_written(offset + u64::from(*byte), 1)).fold(0, |set, byte| set | 1 << byte)
    }

    /// Makes some of at most 8 bytes unwritten again, which keep their values.
    pub(crate) fn forget(&self, offset: u64, bytes: u32) {
        for byte in (0..8).filter(|byte| bytes >> byte & 1 == 1) {
            let at = offset + byte;
            self.written[(at / 4) as usize].fetch_and(!byte_bits((at % 4) as u32, 1), Relaxed);
        }
    }

    /// A copy of some words, with what was written of each.
    pub(crate) fn words(&self, words: std::ops::Range<usize>) -> Vec<(u32, u8)> {
        words.map(|at| (self.words[at].load(Relaxed), self.written[at].load(Relaxed))).collect()
    }

    /// Puts words back as they were.
    pub(crate) fn put_words(&self, first: usize, words: &[(u32, u8)]) {
        for (at, (word, written)) in (first..).zip(words) {
            self.words[at].store(*word, Relaxed);
            self.written[at].store(*written, Relaxed);
        }
    }

    /// Stores bytes at any offset; for the host.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let (mut at, mut rest) = (offset, data);
        while let Some((first, tail)) = rest.split_first() {
            if at % 4 == 0
                && let Some((word, tail)) = rest.split_first_chunk::<4>()
            {
                self.store_word((at / 4) as usize, u32::from_le_bytes(*word));
                (at, rest) = (at + 4, tail);
            } else {
                self.store(at, 1, u64::from(*first));
                (at, rest) = (at + 1, tail);
            }
        }
    }

    /// Loads bytes at any offset, or gives the offset of the first that was never written; for the host.
    pub(crate) fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, u64> {
        let mut out = Vec::with_capacity(bytes as usize);
        for at in offset..offset + bytes {
            if !self.is_written(at, 1) {
                return Err(at);
            }
            out.push(self.load(at, 1) as u8);
        }
        Ok(out)
    }

    /// Loads the bytes that were written, at any offset, and leaves the others of `out` as they are; how many were; for
    /// the host.
    pub(crate) fn read_written(&self, offset: u64, out: &mut [u8]) -> u64 {
        let (mut at, mut rest, mut count) = (offset, out, 0);
        while !rest.is_empty() {
            if at % 4 == 0 && rest.len() >= 4 && self.is_written(at, 4) {
                let (word, tail) = rest.split_at_mut(4);
                word.copy_from_slice(&(self.load(at, 4) as u32).to_le_bytes());
                (at, rest, count) = (at + 4, tail, count + 4);
                continue;
            }
            let (byte, tail) = rest.split_at_mut(1);
            if self.is_written(at, 1) {
                byte[0] = self.load(at, 1) as u8;
                count += 1;
            }
            (at, rest) = (at + 1, tail);
        }
        count
    }
}

fn byte_bits(first: u32, count: u32) -> u8 {
    (((1u32 << count) - 1) << first) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_words_do_not_disturb_each_other() {
        for concurrent in [false, true] {
            let store = Store::new(17, concurrent);
            store.store(1, 1, 0xab);
            store.store(2, 2, 0x1234);
            assert!(!store.is_written(0, 1) && !store.is_written(0, 4) && store.is_written(2, 2));
            assert_eq!(store.load(0, 4), 0x1234_abff);
            store.store(8, 8, 0x0102_0304_0506_0708);
            assert_eq!(store.load(12, 2), 0x0304);
            assert_eq!(store.read(8, 8).unwrap(), 0x0102_0304_0506_0708u64.to_le_bytes());
            store.write(3, &[1, 2, 3, 4, 5, 6]);
            assert_eq!(store.read(3, 6).unwrap(), [1, 2, 3, 4, 5, 6]);
            assert_eq!(store.read(0, 4), Err(0));
            let mut bytes = [0; 9];
            assert_eq!((store.read_written(0, &mut bytes), bytes), (8, [0, 0xab, 0x34, 1, 2, 3, 4, 5, 6]));
            store.poison(4, 4);
            assert_eq!(store.read(3, 6), Err(4));
            store.store(16, 1, 9);
            assert_eq!(store.load(16, 1), 9);
        }
    }
}
