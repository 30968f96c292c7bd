//! Watching a launch: every instruction, every memory access and every synchronisation passes here.
//!
//! A race detector or a profiler is an [`Observer`]; the interpreter knows nothing of what it does. All methods have an
//! empty default, and a launch without an observer pays next to nothing.

use std::collections::HashSet;

use crate::Space;
use crate::memory::address;

/// Where an event happens.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The kernel.
    pub kernel: &'a str,
    /// The opcode with all its modifiers.
    pub opcode: &'a str,
    /// The line in the PTX text.
    pub line: u32,
    /// File and line of the source, if the module has `.loc`.
    pub source: Option<(&'a str, u32)>,
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// The warp within the block.
    pub warp: u32,
    /// The lanes that take part.
    pub lanes: u32,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic operation.
    Atomic,
    /// An asynchronous copy reads its source.
    CopyRead,
    /// An asynchronous copy will write here, at any time from now until it is waited for.
    CopyWrite,
    /// The bytes of an asynchronous copy become visible to the thread that issued it.
    CopyLand,
}

/// One memory access of a warp.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// What it does.
    pub kind: Kind,
    /// The space that the instruction names.
    pub space: Space,
    /// The address of each lane that takes part, within that space.
    pub addresses: &'a [u64; 32],
    /// How many bytes each lane accesses. (The lanes of `ldmatrix` are those that give the addresses of rows.)
    pub bytes: u32,
    /// The lanes of a store by which memory does not change: what they store is there already.
    pub unchanged: u32,
    /// Of a store: whether it differs from an earlier one by rounding only.
    pub rounding: Option<Rounding<'a>>,
    /// In a second run, see [`Observer::again`]: for each lane of a load the number of the value that it reads; zero for
    /// what is not followed.
    pub values: Option<&'a [u32; 32]>,
}

impl<'a> Access<'a> {
    /// An access of lanes to so many bytes each.
    pub fn new(kind: Kind, space: Space, addresses: &'a [u64; 32], bytes: u32) -> Self {
        Self { kind, space, addresses, bytes, unchanged: 0, rounding: None, values: None }
    }
}

/// Words of memory whose readers are followed in a second run.
#[derive(Clone, Debug, Default)]
pub struct Words(HashSet<(Space, u64)>);

impl Words {
    /// Adds the words of some bytes.
    pub fn add(&mut self, space: Space, bytes: std::ops::Range<u64>) {
        self.0.extend(Self::of(bytes).map(|word| (space, word)));
    }

    /// Whether some of the bytes are in one of them.
    pub fn touch(&self, space: Space, bytes: std::ops::Range<u64>) -> bool {
        Self::of(bytes).any(|word| self.0.contains(&(space, word)))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    fn of(bytes: std::ops::Range<u64>) -> std::ops::Range<u64> {
        bytes.start / 4..bytes.end.div_ceil(4)
    }
}

/// Compares what a lane stores with what is there.
#[derive(Clone, Copy)]
pub struct Rounding<'a>(&'a dyn Fn(usize, [usize; 2]) -> Option<f64>);

impl<'a> Rounding<'a> {
    /// From a lane, and warp and lane of an earlier one, to the answer of [`apart`](Self::apart).
    pub(crate) fn new(apart: &'a dyn Fn(usize, [usize; 2]) -> Option<f64>) -> Self {
        Self(apart)
    }

    /// If what a lane stores would be, without rounding, what another one (its warp and lane) of the same block has stored
    /// there by the same instruction: how far the values are apart, relative to the larger one.
    pub fn apart(&self, lane: usize, other: [usize; 2]) -> Option<f64> {
        (self.0)(lane, other)
    }
}

impl std::fmt::Debug for Rounding<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rounding")
    }
}

impl Access<'_> {
    /// The space that a lane really accesses, and the address within it: generic addresses are resolved. Local addresses
    /// are those of the thread; the same number means another byte in every thread.
    pub fn place(&self, lane: usize) -> Option<(Space, u64)> {
        let address = *self.addresses.get(lane)?;
        Some(if self.space == Space::Generic { address::generic(address) } else { (self.space, address) })
    }
}

/// One synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// The lanes of a warp came together for `bar.warp.sync` or another `.sync` instruction.
    Warp,
    /// The lanes arrive at a named barrier.
    Arrive(u32),
    /// The lanes leave a named barrier: all that arrived before is visible to them.
    Leave(u32),
    /// A named barrier is complete and starts anew.
    Complete(u32),
    /// `membar` or `fence`.
    Fence,
    /// `cp.async.commit_group`
    Commit,
    /// `cp.async.wait_group n` or, with nothing, `wait_all`.
    Wait(Option<u32>),
    /// `cp.async.mbarrier.arrive`: the copies of the lane up to here will arrive at the barrier at this address of shared
    /// memory.
    CopyArrive(u64),
    /// They have landed, and arrive there; in the order in which they were told to.
    CopyArrived(u64),
    /// The lanes have exited.
    Exit,
}

/// Something that watches a launch. Blocks begin in order, one after the other; one that waits for others is left for
/// them, and goes on later.
pub trait Observer {
    /// Whether it wants to hear of every instruction ([`issue`](Self::issue)); asked once for a launch.
    fn hears_all(&self) -> bool {
        true
    }

    /// Whether it may want to see a launch twice. Then what the launch changes in global memory is remembered.
    fn repeats(&self) -> bool {
        false
    }

    /// A block begins; it has so many threads.
    fn begin(&mut self, _block: [u32; 3], _threads: u32) {}

    /// The block that runs seems to wait for others and is left for them.
    fn leave(&mut self, _block: [u32; 3]) {}

    /// A block that was left goes on: what follows is of this block.
    fn resume(&mut self, _block: [u32; 3]) {}

    /// A warp executes an instruction in some of its lanes.
    fn issue(&mut self, _site: &Site<'_>) {}

    /// A warp accesses memory.
    fn access(&mut self, _site: &Site<'_>, _access: &Access<'_>) {}

    /// Threads synchronise.
    fn sync(&mut self, _site: &Site<'_>, _event: Sync) {}

    /// The launch has ended. Whoever wants to know whether values are ever used that are read from some words has it run
    /// once more, from the beginning and with the same memory. Then these values have numbers.
    fn again(&mut self) -> Option<Words> {
        None
    }

    /// The second run has ended: `is_used` tells of a number whether the value has reached an address, a branch, a
    /// barrier or memory.
    fn outcome(&mut self, _is_used: &dyn Fn(u32) -> bool) {}
}
