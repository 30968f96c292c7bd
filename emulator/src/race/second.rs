//! The second run of a launch: are the values ever used that racing reads have read?
//!
//! Where a kernel has more threads than work, the surplus threads read what others are about to overwrite, and throw it
//! away. Which reads race is known after the first run only, and what becomes of a value after the read. So the launch
//! is run again, the values of all reads of the words in question have numbers, and at the end the numbers say which of
//! them have reached an address, a branch, a barrier or memory.
//!
//! A history forgets reads that later ones stand for. Here none may be forgotten, so the reads of these words are kept
//! one by one, until all threads have seen them.

use std::collections::HashMap;

use super::cell::{Mark, View};
use super::report::Found;
use crate::Space;
use crate::exec::unknown::USED;
use crate::observe::Words;

/// More words than this are not followed: all reads of them count as used.
const MOST: usize = 1 << 20;

/// No more races than this are kept until their outcome is known; further reads count as used.
const KEPT: usize = 1 << 23;

/// So many reads of a word are kept; further ones of a thread count as used.
const READS: usize = 1 << 10;

/// After so many more reads of a word those are looked for that nothing can race with any more.
const LOOK: usize = 1 << 8;

/// What is remembered of a launch for its second run, and in it.
#[derive(Default)]
pub(super) struct Second {
    /// The words that were read and written in a race.
    pub(super) words: Words,
    /// Whether the second run is under way.
    pub(super) runs: bool,
    /// Whether the launch has one block.
    pub(super) one_block: bool,
    pending: Vec<Pending>,
    pub(super) steps: u64,
}

/// A race whose outcome is open.
pub(super) struct Pending {
    pub(super) space: Space,
    pub(super) found: Found,
    pub(super) new: Mark,
    /// The number of the value that was read.
    pub(super) value: u32,
    /// The access that found it; of several threads that have read at one line one counts.
    pub(super) step: u64,
}

impl Second {
    /// The first run of a launch begins.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }

    /// In the first run: a race of a load with a write.
    pub(super) fn suspect(&mut self, space: Space, bytes: std::ops::Range<u64>) {
        if self.words.count() <= MOST {
            self.words.add(space, bytes);
        }
    }

    /// Whether there is something to find out by a second run.
    pub(super) fn is_wanted(&self) -> bool {
        !self.runs && (1..=MOST).contains(&self.words.count())
    }

    /// Keeps a race until it is known whether the value is used; `false` if it must be told at once.
    pub(super) fn keep(&mut self, pending: Pending) -> bool {
        let kept = pending.value != USED && self.pending.len() < KEPT;
        if kept {
            self.pending.push(pending);
        }
        kept
    }

    /// The races that are kept, and the end of the second run.
    pub(super) fn finish(&mut self) -> Vec<Pending> {
        let pending = std::mem::take(&mut self.pending);
        self.restart();
        pending
    }
}

/// A read of a word in the second run.
struct Read {
    /// With the one lane that reads.
    mark: Mark,
    /// A bit for each byte of the word.
    bytes: u8,
    value: u32,
}

/// The reads of words in question.
#[derive(Default)]
pub(super) struct Reads(HashMap<u64, Vec<Read>>);

/// The bytes of a word that a range touches.
fn bytes_of(word: u64, range: &std::ops::Range<u64>) -> u8 {
    (0..4).filter(|byte| range.contains(&(4 * word + byte))).fold(0, |set, byte| set | 1 << byte)
}

impl Reads {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// One lane reads. `is_over` says of an earlier read that whatever comes now comes after it.
    pub(super) fn add(
        &mut self,
        range: &std::ops::Range<u64>,
        mark: &Mark,
        value: u32,
        is_over: impl Fn(&Mark) -> bool,
    ) {
        for word in range.start / 4..range.end.div_ceil(4) {
            let reads = self.0.entry(word).or_default();
            let bytes = bytes_of(word, range);
            if reads.len() % LOOK == LOOK - 1 {
                reads.retain(|read| !is_over(&read.mark));
            }
            let same = |old: &Read| {
                let key = |mark: &Mark| (mark.block, mark.warp, mark.lanes, mark.time, mark.reach);
                old.bytes == bytes && key(&old.mark) == key(mark)
            };
            if reads.len() < READS {
                reads.push(Read { mark: *mark, bytes, value });
            } else if let Some(old) = reads.iter_mut().find(|old| same(old)) {
                old.value = USED;
            } else {
                reads.push(Read { mark: *mark, bytes, value: USED });
            }
        }
    }

    /// One lane writes: the reads that it races with, and the number of what each has read.
    pub(super) fn raced(
        &self,
        range: &std::ops::Range<u64>,
        new: &Mark,
        view: &View<'_>,
        mut found: impl FnMut(Found, u32),
    ) {
        for word in range.start / 4..range.end.div_ceil(4) {
            let Some(reads) = self.0.get(&word) else { continue };
            let bytes = bytes_of(word, range);
            for read in reads.iter().filter(|read| read.bytes & bytes != 0) {
                if read.mark.conflicts(new) && view.unseen(&read.mark) != 0 {
                    let address = 4 * word + u64::from((read.bytes & bytes).trailing_zeros());
                    let bytes = (read.bytes & bytes).count_ones();
                    found(Found { old: read.mark, address, bytes }, read.value);
                }
            }
        }
    }
}
