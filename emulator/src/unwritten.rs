//! Where bytes that nobody wrote reached something that matters.
//!
//! A kernel may well read such bytes and throw them away: the slot behind the last item of a merge, the rows of a tile
//! beyond the last token. So with [`Unwritten::Follow`](crate::Unwritten) the values are followed through
//! registers and memory, bit by bit where an instruction moves bits and as a whole where it computes, and what is told
//! is where they decide something.

use std::fmt;

use crate::Space;
use crate::error::Place;

/// What unwritten bytes decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// Which bytes are accessed.
    Address,
    /// Where a thread goes on, or whether it executes a store or another instruction.
    Branch,
    /// Who waits for whom.
    Barrier,
    /// What is left in global memory. The bytes count as unwritten there, too.
    Output,
}

/// What it is that nobody wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Bytes of memory.
    Memory,
    /// A register, of which some path through the kernel leaves nothing but what happened to be there.
    Register,
    /// The register of a lane that does not take part in a shuffle: the manual leaves open what it gives.
    Lane,
}

/// Unwritten bytes, or something else that has no value, read at one place and used at another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwrittenUse {
    /// What it is.
    pub source: Source,
    /// Where they were read. Of a register: the first line that may read it before it is written.
    pub read: Place,
    /// Of memory: the space that was read, and the address there, by the first thread that did.
    pub space: Space,
    /// See `space`.
    pub address: u64,
    /// Where they were used.
    pub used: Place,
    /// For what.
    pub how: Use,
    /// `%ctaid` and `%tid` of the first thread that used them.
    pub block: [u32; 3],
    /// See `block`.
    pub thread: [u32; 3],
    /// How often a thread did.
    pub count: u64,
}

impl fmt::Display for UnwrittenUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, read, space, address, used, how, block: b, thread: t, count } = self;
        let how = match how {
            Use::Address => "an address",
            Use::Branch => "a branch or a predicate",
            Use::Barrier => "a barrier or the members of a warp-wide instruction",
            Use::Output => "what is stored in global memory",
        };
        write!(
            f,
            "{used}, block ({}, {}, {}), thread ({}, {}, {}): {how} depends on",
            b[0], b[1], b[2], t[0], t[1], t[2]
        )?;
        match source {
            Source::Memory => {
                write!(f, " bytes that nobody wrote, of {space} memory at {address:#x}, read by {read}")?;
            }
            Source::Register => write!(f, " a register that nobody wrote, read by {read}")?,
            Source::Lane => write!(f, " the register of a lane that does not take part, read by {read}")?,
        }
        if *count > 1 { write!(f, "; {count} times") } else { Ok(()) }
    }
}
