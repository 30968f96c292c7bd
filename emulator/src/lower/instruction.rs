//! What the interpreter runs: instructions whose operands are slots and whose labels are positions.

use super::flow::Flow;
use super::wmma::{Placed, TileProduct};
use crate::Space;
use crate::exec::lanes::Lanes;
use crate::exec::registers::{Pred, Register};
use crate::numeric::Rounding;
use crate::numeric::format::Half;
use crate::numeric::product::{Floats, Integers, Shape};

/// One instruction of a lowered kernel.
pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// The lanes in which it executes: `@p`, `@!p`, or all.
    pub(crate) guard: Option<Pred>,
    pub(crate) opcode: Box<str>,
    pub(crate) line: u32,
    /// File number and line of the source.
    pub(crate) source: Option<(u32, u32)>,
    pub(crate) flow: Box<Flow>,
}

/// What an instruction does. Arithmetic is a closure; the rest needs more than the registers of one warp.
pub(crate) enum Op {
    /// Registers of the warp only.
    Lanes(Lanes),
    Branch(usize),
    /// `brx.idx`: the slot of the index, and the targets.
    BranchIndex(u32, Vec<usize>),
    /// A call of a function of the driver: where in local memory its result and its arguments lie.
    System {
        system: System,
        result: Option<u64>,
        arguments: Vec<u64>,
    },
    /// A call through a pointer, in this register, that no function answers.
    NoFunction(Register),
    Exit,
    Trap,
    Load(Load),
    Store(Store),
    Atomic(Atomic),
    /// `cp.async`
    Copy(Copy),
    Commit,
    /// `cp.async.wait_group n`; `None` for `wait_all`.
    WaitGroups(Option<u32>),
    /// `cp.async.mbarrier.arrive`: the barrier, in shared or generic memory, and whether the arrival is counted on top of
    /// those that it waits for (without `.noinc`).
    CopyArrive {
        address: Address,
        space: Space,
        counted: bool,
    },
    /// Instructions for which the lanes of a mask come together.
    Warp(Members, Collective),
    Barrier(Barrier),
    Fence,
}

/// A function of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// `vprintf(format, arguments)`
    Print,
    /// `__assertfail(condition, file, line, function, size of a character)`
    Assert,
}

/// `[base + offset]`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Base,
    pub(crate) offset: i64,
}

/// The register of an address, of 32 or 64 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    None,
    Narrow(u32),
    Wide(u32),
}

/// `ld`: one to four elements; `None` for `_`.
pub(crate) struct Load {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    pub(crate) parts: Vec<Option<Register>>,
    /// Whether it may wait for what another block writes: a strong load of global memory.
    pub(crate) polls: bool,
}

/// `st`: one to four elements.
pub(crate) struct Store {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) bytes: u32,
    pub(crate) parts: Vec<Register>,
}

/// The new value from the old one and two operands; the second is only for `cas`.
pub(crate) type Update = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

/// `atom` and, without a destination, `red`.
pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) bytes: u32,
    pub(crate) update: Update,
    /// The operands of each element, one behind the other in memory; vectors have several.
    pub(crate) parts: Vec<[Register; 2]>,
    /// Where the old values go.
    pub(crate) old: Vec<Option<Register>>,
    /// Whether the old value matters, and must have been written.
    pub(crate) reads: bool,
    /// A predicate that is made of the old value.
    pub(crate) answer: Option<Answer>,
}

/// The answer of `mbarrier.test_wait`: the slot of its predicate, and what it says of the old value and the operand.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) p: u32,
    pub(crate) holds: fn(u64, u64) -> bool,
}

/// `cp.async.ca` and `cp.async.cg`.
pub(crate) struct Copy {
    pub(crate) target: Address,
    pub(crate) source: Address,
    pub(crate) bytes: u32,
    /// The slot that says how many bytes come from the source; the rest is zero.
    pub(crate) source_bytes: Option<u32>,
    /// The predicate that turns the source off altogether.
    pub(crate) ignore: Option<Pred>,
}

/// Which lanes must come together.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Members {
    /// Every lane of the warp that has not exited: the `.aligned` instructions.
    All,
    /// The mask in a slot.
    Mask(u32),
}

/// A warp-wide instruction.
pub(crate) enum Collective {
    Sync,
    /// `lane` is operand b, `clamp` operand c with its segment mask.
    Shuffle {
        mode: Shuffle,
        d: u32,
        valid: Option<u32>,
        a: u32,
        lane: u32,
        clamp: u32,
    },
    Vote {
        mode: Vote,
        d: u32,
        source: Pred,
    },
    MatchAny {
        d: u32,
        a: Register,
    },
    MatchAll {
        d: u32,
        same: Option<u32>,
        a: Register,
    },
    Reduce {
        d: u32,
        a: u32,
        combine: fn(u32, u32) -> u32,
    },
    /// `ldmatrix`: the destination registers, as many as matrices.
    LoadMatrix {
        d: Vec<u32>,
        address: Address,
        space: Space,
        transposed: bool,
    },
    /// `stmatrix`: the source registers, as many as matrices.
    StoreMatrix {
        sources: Vec<u32>,
        address: Address,
        space: Space,
        transposed: bool,
    },
    /// `movmatrix`: a matrix transposed in registers.
    MoveMatrix {
        d: u32,
        a: u32,
    },
    /// `elect.sync`: one lane of the members, always the first.
    Elect {
        d: u32,
        chosen: u32,
    },
    MatrixProduct(Box<Product>),
    /// `wmma.load`, `wmma.store` and `wmma.mma`
    LoadTile(Box<Placed>),
    StoreTile(Box<Placed>),
    TileProduct(Box<TileProduct>),
}

/// `mma.sync`: the slots of the four fragments and how they are multiplied.
pub(crate) struct Product {
    pub(crate) d: Vec<u32>,
    pub(crate) a: Vec<u32>,
    pub(crate) b: Vec<u32>,
    pub(crate) c: Vec<u32>,
    pub(crate) shape: Shape,
    pub(crate) kind: Factors,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Factors {
    /// f16 or bf16, summed in f32, in m16n8k16 and m16n8k8: most kernels need nothing else.
    Halves(Half),
    Floats(Floats),
    Integers(Integers),
    /// Single bits, by "and" or by "exclusive or".
    Bits {
        and: bool,
    },
    Doubles(Rounding),
}

/// The four modes of `shfl.sync`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// The four modes of `vote.sync`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// `bar` and `barrier`.
pub(crate) struct Barrier {
    /// The slot with its number.
    pub(crate) id: u32,
    /// The slot with the number of threads, if one is given.
    pub(crate) threads: Option<u32>,
    /// The whole warp takes part at once.
    pub(crate) aligned: bool,
    pub(crate) action: Action,
}

/// What a thread does at a barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// It says that it was here and goes on.
    Arrive,
    /// It waits.
    Sync,
    /// It waits, and gets the result over the predicates of all: the count, their "and" or their "or".
    Count {
        d: u32,
        p: Pred,
    },
    And {
        d: u32,
        p: Pred,
    },
    Or {
        d: u32,
        p: Pred,
    },
}
