//! What a launch has changed in global memory, page by page, so that it can begin anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Memory;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// More than 256 MiB of changed memory are not kept: they take twice as much of the host's.
const MOST: usize = 1 << 16;

/// The pages that were stored to, as they were before.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    pages: HashMap<u64, Vec<(u32, u8)>>,
    /// The page of the last store.
    last: Option<u64>,
    overfull: bool,
}

impl Undo {
    /// Something will be stored at an address, aligned as it must be.
    #[inline]
    pub(crate) fn note(&mut self, memory: &Memory, address: u64) {
        if self.last != Some(address / PAGE) {
            self.note_page(memory, address / PAGE);
        }
    }

    fn note_page(&mut self, memory: &Memory, page: u64) {
        self.last = Some(page);
        let full = self.pages.len() >= MOST;
        // An address where nothing is makes the launch fail soon.
        let Ok((allocation, offset)) = memory.locate(page * PAGE, 0) else { return };
        let Entry::Vacant(place) = self.pages.entry(page) else { return };
        if full {
            self.overfull = true;
            return;
        }
        let first = (offset / 4) as usize;
        let end = (offset + PAGE).min(allocation.store.bytes()).div_ceil(4) as usize;
        place.insert(allocation.store.words(first..end));
    }

    /// Whether memory can be put back.
    pub(crate) fn is_whole(&self) -> bool {
        !self.overfull
    }

    /// Exchanges what is in memory for what was there; a second time, back again.
    pub(crate) fn exchange(&mut self, memory: &Memory) {
        for (page, words) in &mut self.pages {
            let Ok((allocation, offset)) = memory.locate(page * PAGE, 0) else { continue };
            let first = (offset / 4) as usize;
            let now = allocation.store.words(first..first + words.len());
            allocation.store.put_words(first, words);
            *words = now;
        }
    }
}
