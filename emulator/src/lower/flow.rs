//! What an instruction reads and writes, apart from memory: what is needed to follow unwritten bytes through registers.

use crate::exec::registers::{Pred, Register};

/// A register of one of the three files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Narrow(u32),
    Wide(u32),
    Predicate(u32),
}

impl Cell {
    pub(crate) fn of(register: Register) -> Self {
        if register.bits > 32 { Self::Wide(register.slot) } else { Self::Narrow(register.slot) }
    }
}

/// How a result depends on sources that are not known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Rule {
    /// One unknown bit makes every bit of the result unknown.
    #[default]
    Any,
    /// A bit of the result depends on one bit of each source at most: moves, logic, shifts, selections. Then what is
    /// unknown is found by trying.
    Bitwise,
    /// The result is joined with a predicate by "and" (or by "or"), and known where that decides.
    Gate { by: Pred, and: bool },
}

/// The registers of an instruction. Constants are not among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flow {
    pub(crate) reads: Vec<Cell>,
    pub(crate) writes: Vec<Cell>,
    /// Those that hold addresses.
    pub(crate) addresses: Vec<Cell>,
    pub(crate) rule: Rule,
}
