//! The histories of all bytes of a memory that were accessed.
//!
//! Almost all accesses are of whole words, so four bytes share a history until one of them is accessed alone.

use std::collections::HashMap;

use super::cell::{Cell, Mark, View};

const WORD: u64 = 4;
/// Words of a page.
const PAGE: u64 = 256;

/// Four bytes.
#[derive(Clone)]
enum Word {
    Whole(Cell),
    Bytes(Box<[Cell; WORD as usize]>),
}

/// The shadow of a memory.
#[derive(Default)]
pub(super) struct Shadow {
    pages: Vec<Box<[Word]>>,
    index: HashMap<u64, usize>,
    /// The page of the last access: the next one is usually there too.
    last: Option<(u64, usize)>,
    /// Pages to be used anew: each block begins with as many as the one before has ended with.
    spare: Vec<Box<[Word]>>,
}

/// No more spare pages than the shared memory of a block takes.
const SPARE: usize = 256;

impl Shadow {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.spare.append(&mut self.pages);
        self.spare.truncate(SPARE);
        self.index.clear();
        self.last = None;
    }

    /// One lane accesses bytes; `found` gets each earlier access that it races with, with address and size.
    pub(super) fn access(
        &mut self,
        bytes: std::ops::Range<u64>,
        (new, unchanged): (&Mark, bool),
        view: &View<'_>,
        mut found: impl FnMut(Mark, u64, u32),
    ) {
        let mut at = bytes.start;
        while at < bytes.end {
            let (number, offset) = (at / WORD, at % WORD);
            let count = (WORD - offset).min(bytes.end - at);
            let word = self.word(number);
            if count == WORD
                && new.writes()
                && let Word::Bytes(cells) = word
            {
                for (byte, cell) in (at..).zip(cells.iter_mut()) {
                    cell.access(new, unchanged, view, |old| found(old, byte, 1));
                }
                // After a write of the whole word all its bytes may have the same history again.
                let [one, others @ ..] = &mut **cells;
                if others.iter().all(|other| other == one) {
                    *word = Word::Whole(std::mem::take(one));
                }
            } else {
                if count < WORD
                    && let Word::Whole(cell) = word
                {
                    *word = Word::Bytes(Box::new(std::array::from_fn(|_| cell.clone())));
                }
                match word {
                    Word::Whole(cell) => cell.access(new, unchanged, view, |old| found(old, at, WORD as u32)),
                    Word::Bytes(cells) => {
                        for byte in at..at + count {
                            let cell = &mut cells[(byte % WORD) as usize];
                            cell.access(new, unchanged, view, |old| found(old, byte, 1));
                        }
                    }
                }
            }
            at += count;
        }
    }

    fn word(&mut self, number: u64) -> &mut Word {
        let page = number / PAGE;
        let at = match self.last {
            Some((last, at)) if last == page => at,
            _ => {
                let next = self.pages.len();
                let at = *self.index.entry(page).or_insert(next);
                if at == next {
                    let page = self.spare.pop().map(|mut page| {
                        page.fill(Word::Whole(Cell::default()));
                        page
                    });
                    self.pages.push(page.unwrap_or_else(|| vec![Word::Whole(Cell::default()); PAGE as usize].into()));
                }
                self.last = Some((page, at));
                at
            }
        };
        &mut self.pages[at][(number % PAGE) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_as_documented() {
        assert_eq!((size_of::<Word>(), size_of::<Word>() + 4 * size_of::<Cell>(), size_of::<Mark>()), (80, 400, 20));
    }
}
