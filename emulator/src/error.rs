//! Everything that can go wrong, each with the place where it went wrong.

use crate::Space;

/// An error of the emulator. The text of each says what to look at.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not PTX, or uses a directive that is not supported.
    #[error("line {line}: {message}")]
    Syntax {
        /// The line in the PTX text.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// An instruction, or one form of it, that the emulator does not know; or operands that do not fit it.
    #[error("kernel {kernel}, line {line}: `{text}`: {reason}")]
    Unsupported {
        /// The kernel that holds it.
        kernel: String,
        /// The line in the PTX text.
        line: u32,
        /// The instruction as it is written.
        text: String,
        /// What is not supported, or does not fit.
        reason: String,
    },
    /// The module has no kernel of this name.
    #[error("no kernel {name:?} in the module; it has: {known}")]
    NoKernel {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The arguments of a launch do not fit the kernel's parameters, or the grid is impossible.
    #[error("launch of {kernel}: {message}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        message: String,
    },
    /// Somebody wanted the launch to end, see [`Emulator::interrupter`](crate::Emulator::interrupter).
    #[error("launch of {kernel}: interrupted")]
    Interrupted {
        /// The kernel.
        kernel: String,
    },
    /// The host used device memory wrongly.
    #[error("device memory: {0}")]
    Memory(Cause),
    /// A thread did something that it must not do.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// No thread of a block can go on.
    #[error("{0}")]
    Stuck(Box<Stuck>),
}

impl Error {
    pub(crate) fn syntax(line: u32, message: impl Into<String>) -> Self {
        Self::Syntax { line, message: message.into() }
    }
}

/// A position in a kernel: the line in the PTX text and, where the module has `.loc`, in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kernel.
    pub kernel: String,
    /// The line in the PTX text, counted from one.
    pub line: u32,
    /// File and line of the source.
    pub source: Option<(String, u32)>,
    /// The instruction's opcode.
    pub opcode: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kernel)?;
        located(f, &self.source, self.line, &self.opcode)
    }
}

/// Where an instruction stands: what follows the name of the kernel, or of what was done.
pub(crate) fn located(
    f: &mut std::fmt::Formatter<'_>,
    source: &Option<(String, u32)>,
    line: u32,
    opcode: &str,
) -> std::fmt::Result {
    if let Some((file, line)) = source {
        write!(f, " at {file}:{line}")?;
    }
    write!(f, " (PTX line {line}, {opcode})")
}

/// A wrong step of one thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The instruction.
    pub place: Place,
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// `%tid` of the thread.
    pub thread: [u32; 3],
    /// What happened.
    pub cause: Cause,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place, block: b, thread: t, cause } = self;
        write!(f, "{place}, block ({}, {}, {}), thread ({}, {}, {}): {cause}", b[0], b[1], b[2], t[0], t[1], t[2])
    }
}

/// What a thread, or the host, did wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// Some byte of the access lies outside the allocation that its address points to.
    #[error(
        "{bytes} bytes of {space} memory at {address:#x} are out of bounds: byte {offset} of {name}, which has {size}"
    )]
    OutOfBounds {
        /// The space.
        space: Space,
        /// The address.
        address: u64,
        /// The size of the access.
        bytes: u32,
        /// Where it lies relative to the allocation's first byte.
        offset: i64,
        /// The allocation.
        name: String,
        /// Its size.
        size: u64,
    },
    /// The address points to nothing that was ever allocated.
    #[error("{bytes} bytes at {address:#x}: no {space} memory is there")]
    NoAllocation {
        /// The space.
        space: Space,
        /// The address.
        address: u64,
        /// The size of the access.
        bytes: u32,
    },
    /// The address is not a multiple of the access's size.
    #[error("{bytes} bytes of {space} memory at {address:#x}: the address is not a multiple of {bytes}")]
    Misaligned {
        /// The space.
        space: Space,
        /// The address.
        address: u64,
        /// The size of the access.
        bytes: u32,
    },
    /// Nothing was ever stored there, or an asynchronous copy to there has not been waited for.
    #[error(
        "{bytes} bytes of {space} memory at {address:#x} are read but not initialised: byte {offset} of {name}{hint}"
    )]
    Uninitialised {
        /// The space.
        space: Space,
        /// The address.
        address: u64,
        /// The size of the access.
        bytes: u32,
        /// Where it lies relative to the allocation's first byte.
        offset: u64,
        /// The allocation.
        name: String,
        /// A likely reason, or nothing.
        hint: &'static str,
    },
    /// A store to memory that can only be read.
    #[error("a store of {bytes} bytes to read-only {space} memory at {address:#x}")]
    ReadOnly {
        /// The space.
        space: Space,
        /// The address.
        address: u64,
        /// The size of the access.
        bytes: u32,
    },
    /// The thread is not in the mask of a warp-wide instruction that it executes.
    #[error("lane {lane} executes it but is not in its member mask {members:#010x}")]
    NotMember {
        /// The lane.
        lane: u32,
        /// The mask.
        members: u32,
    },
    /// A shuffle from a lane that is not among its members, or has exited.
    #[error("it takes the value of lane {from}, which does not take part")]
    Stranger {
        /// The other lane.
        from: u32,
    },
    /// A warp-wide instruction that needs all 32 lanes runs with fewer.
    #[error("it needs all 32 lanes of the warp, but only those of {lanes:#010x} run")]
    PartialWarp {
        /// The lanes.
        lanes: u32,
    },
    /// Operands of a barrier that do not go together.
    #[error("barrier {barrier}: {message}")]
    BadBarrier {
        /// The barrier's number.
        barrier: u32,
        /// What does not fit.
        message: String,
    },
    /// The size of an asynchronous copy.
    #[error("an asynchronous copy of {bytes} bytes from a source of {source_bytes}")]
    BadCopy {
        /// The bytes to copy.
        bytes: u32,
        /// The bytes to take from the source.
        source_bytes: u32,
    },
    /// `brx.idx` with an index beyond its list.
    #[error("the index {index} of a list of {targets} branch targets")]
    BadIndex {
        /// The index.
        index: u32,
        /// How many targets there are.
        targets: usize,
    },
    /// A call through a pointer that does not point to a function of the module with such parameters.
    #[error("a call of {address:#x}: no function of the module with such parameters is there")]
    NoFunction {
        /// The pointer.
        address: u64,
    },
    /// `assert` of CUDA's C++ found its condition false.
    #[error("{file}:{line}: {function}: the assertion `{condition}` failed")]
    Assertion {
        /// What should have been true.
        condition: String,
        /// The file of the source.
        file: String,
        /// The line in it.
        line: u32,
        /// The function.
        function: String,
    },
    /// `trap` was executed.
    #[error("trap")]
    Trap,
    /// The block ran more instructions than the launch allows.
    #[error("the block has run {steps} warp instructions, more than its limit")]
    Endless {
        /// How many it ran.
        steps: u64,
    },
    /// The allocation does not fit the emulator's limit.
    #[error("an allocation of {bytes} bytes does not fit: {used} of {limit} bytes are in use")]
    NoRoom {
        /// What was asked for.
        bytes: u64,
        /// What is in use.
        used: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why no thread of a block can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jam {
    /// Some lanes of a warp are at a barrier (or a warp-wide instruction) that other lanes of it do not reach.
    Divergence,
    /// Every warp waits, and what they wait for does not come.
    Deadlock,
    /// All blocks that are under way wait in loops for one another.
    Grid {
        /// How many of them there are.
        blocks: u64,
        /// How many more have not begun, for want of room.
        not_begun: u64,
    },
}

/// A block in which nobody can go on, and who waits where.
#[derive(Clone, Debug, PartialEq)]
pub struct Stuck {
    /// The sort of it.
    pub jam: Jam,
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// Each group of lanes that waits.
    pub waiting: Vec<Waiting>,
}

/// A group of lanes that wait at one instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// The instruction.
    pub place: Place,
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// The warp.
    pub warp: u32,
    /// The lanes.
    pub lanes: u32,
    /// What they wait for.
    pub reason: String,
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.jam {
            Jam::Divergence => "divergent barrier or warp-wide instruction",
            Jam::Deadlock => "deadlock",
            Jam::Grid { blocks, not_begun } => {
                match blocks {
                    1 => write!(f, "the grid hangs: 1 block waits for a change that nobody makes")?,
                    _ => write!(f, "the grid hangs: {blocks} blocks wait for one another")?,
                }
                if not_begun > 0 {
                    write!(f, ", {not_begun} have not begun")?;
                }
                f.write_str(":")?;
                for Waiting { place, block: [x, y, z], warp, lanes, reason } in &self.waiting {
                    write!(
                        f,
                        "\n  block ({x}, {y}, {z}), warp {warp}, lanes {lanes:#010x}: {place} waits for {reason}"
                    )?;
                }
                return Ok(());
            }
        };
        write!(f, "{name} in block ({}, {}, {}):", self.block[0], self.block[1], self.block[2])?;
        for Waiting { place, warp, lanes, reason, .. } in &self.waiting {
            write!(f, "\n  warp {warp}, lanes {lanes:#010x}: {place} waits for {reason}")?;
        }
        Ok(())
    }
}
