//! What is remembered of unwritten bytes while a launch runs, and what is told of it.

use std::collections::HashMap;

use super::memory::GLOBAL;
use super::{Origin, REGISTER, Values};
use crate::Space;
use crate::lower::instruction::{Collective, Op};
use crate::unwritten::{Source, UnwrittenUse, Use};

/// What a block remembers of unwritten bytes, and what it has printed.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// What the first thread read at a load.
    pub(super) reads: HashMap<Origin, (Space, u64)>,
    /// Where values came from that were stored although they are unknown, by space and word.
    pub(super) stored: HashMap<u64, Origin>,
    /// By the place of the load, the place of the use and its sort: the first, and how many.
    pub(crate) uses: HashMap<(Origin, usize, Use), Found>,
    /// What was printed, by block.
    pub(crate) printed: Vec<([u32; 3], String)>,
    /// In a second run: the values that are followed.
    pub(crate) values: Option<Values>,
}

/// The first use of a sort.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(super) read: (Space, u64),
    pub(super) block: [u32; 3],
    pub(super) thread: [u32; 3],
    pub(super) count: u64,
}

impl Log {
    /// An empty one; of a second run if values are followed.
    pub(crate) fn new(follows_values: bool) -> Self {
        Self { values: follows_values.then(Values::default), ..Self::default() }
    }

    /// The origin of what depends on two values. Of unwritten bytes the first is told; followed values are all kept.
    pub(super) fn join(&mut self, a: Origin, b: Origin) -> Origin {
        match &mut self.values {
            Some(values) => values.join(a, b),
            None if a != 0 => a,
            None => b,
        }
    }

    /// Forgets what was in the memory of a block.
    pub(crate) fn begin_block(&mut self) {
        self.stored.retain(|key, _| key & GLOBAL != 0);
    }

    /// Adds what another thread of the host has found. `order` tells which of two blocks comes first.
    pub(crate) fn add(&mut self, other: Self) {
        self.printed.extend(other.printed);
        let order = |found: &Found| (found.block[2], found.block[1], found.block[0], found.thread);
        for (key, found) in other.uses {
            match self.uses.get_mut(&key) {
                None => {
                    self.uses.insert(key, found);
                }
                Some(mine) => {
                    let count = mine.count + found.count;
                    *mine = if order(&found) < order(mine) { found } else { *mine };
                    mine.count = count;
                }
            }
        }
    }

    /// What was printed, the first block first.
    pub(crate) fn printed(&self) -> String {
        let mut all: Vec<_> = self.printed.iter().collect();
        all.sort_by_key(|([x, y, z], _)| (*z, *y, *x));
        all.into_iter().map(|(_, text)| text.as_str()).collect()
    }

    /// What is told of it, in the order of the kernel's text.
    pub(crate) fn report(&self, kernel: &crate::lower::Kernel) -> Vec<UnwrittenUse> {
        let mut all: Vec<_> = self.uses.iter().collect();
        all.sort_by_key(|((origin, pc, how), _)| (*pc, *origin, *how));
        let told = all.into_iter().map(|((origin, pc, how), found)| {
            let Found { read: (space, address), block, thread, count } = *found;
            let at = (*origin & !REGISTER) as usize - 1;
            let source = match kernel.code[at].op {
                _ if *origin & REGISTER != 0 => Source::Register,
                Op::Warp(_, Collective::Shuffle { .. }) => Source::Lane,
                _ => Source::Memory,
            };
            let (read, used) = (kernel.place(at), kernel.place(*pc));
            UnwrittenUse { source, read, space, address, used, how: *how, block, thread, count }
        });
        told.collect()
    }
}
