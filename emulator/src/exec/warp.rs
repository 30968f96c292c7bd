//! A warp: registers, and groups of lanes that are at different places in the code.
//!
//! Since sm_70 every thread has a program counter of its own (CUDA programming guide, "Independent Thread
//! Scheduling"). Here the lanes of a warp with the same program counter form a *fragment*, and the fragment with the
//! lowest counter runs until it meets another one, with which it then merges. For code as compilers lay it out this
//! brings lanes together again right behind the `if` or the loop that separated them.

use super::async_copy::Copies;
use super::registers::{LANES, Lane, Registers};
use super::unknown::Unknown;
use crate::lower::instruction::{Address, Base};
use crate::memory::store::Store;

/// Lanes that can run, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    pub(crate) pc: usize,
    pub(crate) lanes: u32,
}

/// What lanes wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Until all lanes of this mask that have not exited are there.
    Members(u32),
    /// Until the barrier is complete.
    Barrier(u32),
}

/// Lanes that wait at an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) pc: usize,
    pub(crate) lanes: u32,
    pub(crate) reason: Reason,
}

/// After so many instructions in which some lanes could run but did not, they get a turn: they may hold the lock that
/// the others spin on.
const PATIENCE: u32 = 1 << 16;

/// How long such a turn is.
pub(crate) const TURN: u32 = 1 << 12;

/// The state of one warp.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) registers: Registers,
    pub(crate) ready: Vec<Fragment>,
    pub(crate) waits: Vec<Wait>,
    /// The lanes that have not exited.
    pub(crate) live: u32,
    /// The local memory of the lanes, one behind the other.
    pub(crate) local: Store,
    pub(crate) copies: Copies,
    /// What of its registers depends on bytes that nobody wrote; nothing as long as there is none.
    pub(crate) unknown: Option<Box<Unknown>>,
    /// Instructions since the last fragment with a higher counter ran.
    pub(crate) starving: u32,
}

impl Warp {
    /// The fragment that runs next, and the program counter at which it meets another one.
    pub(crate) fn pick(&mut self) -> Option<(Fragment, usize)> {
        if self.ready.len() == 1 {
            self.starving = 0;
            return self.ready.pop().map(|fragment| (fragment, usize::MAX));
        }
        if self.starving > PATIENCE {
            self.starving = 0;
            let (at, _) = self.ready.iter().enumerate().max_by_key(|(_, fragment)| fragment.pc)?;
            return Some((self.ready.swap_remove(at), usize::MAX));
        }
        let pc = self.ready.iter().map(|fragment| fragment.pc).min()?;
        let mut first = Fragment { pc, lanes: 0 };
        let mut limit = usize::MAX;
        self.ready.retain(|fragment| {
            if fragment.pc == pc {
                first.lanes |= fragment.lanes;
            } else {
                limit = limit.min(fragment.pc);
            }
            fragment.pc != pc
        });
        Some((first, limit))
    }

    /// Adds lanes that wait, together with those that wait there already.
    pub(crate) fn wait(&mut self, pc: usize, lanes: u32, reason: Reason) {
        match self.waits.iter_mut().find(|wait| wait.pc == pc && wait.reason == reason) {
            Some(wait) => wait.lanes |= lanes,
            None => self.waits.push(Wait { pc, lanes, reason }),
        }
    }

    /// The addresses of all lanes.
    #[inline]
    pub(crate) fn addresses(&self, address: Address) -> [u64; LANES] {
        let offset = address.offset as u64;
        match address.base {
            Base::None => [offset; LANES],
            Base::Wide(slot) => u64::file(&self.registers)[slot as usize].map(|base| base.wrapping_add(offset)),
            // A 32-bit address is unsigned; the sum is one of 64 bits, so that it cannot wrap into bounds.
            Base::Narrow(slot) => {
                u32::file(&self.registers)[slot as usize].map(|base| u64::from(base).wrapping_add(offset))
            }
        }
    }
}
