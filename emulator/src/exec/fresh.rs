//! Blocks before they begin.

use super::async_copy::Copies;
use super::barrier::State;
use super::block::Block;
use super::launch::Launch;
use super::registers::{LANES, Registers};
use super::specials;
use super::unknown::Unknown;
use super::warp::{Fragment, Warp};
use crate::lower::control::BARRIERS;
use crate::lower::flow::Cell;
use crate::memory::store::Store;

impl<'a> Block<'a> {
    /// The warps and the shared memory of a block.
    pub(super) fn fresh(launch: &Launch<'_>) -> (Vec<Warp>, Store) {
        let threads: u32 = launch.block.iter().product();
        let kernel = launch.kernel;
        let warps = (0..threads.div_ceil(LANES as u32)).map(|_| Warp {
            registers: Registers::new(kernel.narrow, kernel.wide, kernel.predicates),
            ready: vec![],
            waits: vec![],
            live: 0,
            local: Store::new(kernel.local_bytes.next_multiple_of(16) * LANES as u64, false),
            copies: Copies::default(),
            unknown: None,
            starving: 0,
        });
        (warps.collect(), Store::new(launch.shared_bytes, false))
    }

    /// The registers that somebody may read before the block has written them; `None` if others may be looked at, too: by
    /// an observer, in the lanes that do not take part in a shuffle, or where nobody knows.
    fn seen(&self) -> Option<&'a [(Cell, usize)]> {
        let used = self.warps.first().is_some_and(|warp| warp.registers.used);
        if used && self.launch.checked && self.observer.is_none() { self.launch.kernel.unassigned() } else { None }
    }

    /// Everything as a block finds it.
    pub(super) fn reset(&mut self) {
        self.log.begin_block();
        self.shared.reset();
        self.barriers = [State::EMPTY; BARRIERS];
        let threads: u32 = self.launch.block.iter().product();
        let seen = self.seen();
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let first = (index * LANES) as u32;
            let count = (threads - first).min(LANES as u32);
            warp.live = if count == 32 { u32::MAX } else { (1 << count) - 1 };
            warp.ready = vec![Fragment { pc: 0, lanes: warp.live }];
            warp.waits.clear();
            warp.local.reset();
            warp.copies = Copies::default();
            warp.unknown = None;
            warp.starving = 0;
            specials::fill(self.launch, self.id, index, &mut warp.registers, seen);
            if self.launch.follow && self.launch.words.is_none() {
                warp.unknown =
                    Unknown::of_unassigned(&warp.registers, self.launch.kernel.unassigned().unwrap_or_default());
            }
        }
    }
}
