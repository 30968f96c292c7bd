//! What a launch is told: its grid, its arguments and how to run it.

use crate::DevicePointer;
use crate::numeric::mma::Summation;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block in x, y and z.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Grid {
    /// A grid in one dimension, without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared: 0 }
    }

    /// The same with dynamic shared memory.
    #[must_use]
    pub fn with_shared(self, bytes: u32) -> Self {
        Self { shared: bytes, ..self }
    }
}

/// An argument of a kernel: its bytes, as the caller's C compiler would lay them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg(Vec<u8>);

impl Arg {
    /// A struct, or anything else that is passed by value.
    pub fn bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// What the kernel gets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<DevicePointer> for Arg {
    fn from(pointer: DevicePointer) -> Self {
        Self(pointer.address().to_le_bytes().to_vec())
    }
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl From<$number> for Arg {
            fn from(number: $number) -> Self {
                Self(number.to_le_bytes().to_vec())
            }
        }
    )+};
}

numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// What happens when a kernel reads bytes that nobody wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unwritten {
    /// The launch stops with an error.
    #[default]
    Stop,
    /// The values are followed, and [`Report::unwritten`](crate::Report) tells where they decide something. This is for
    /// kernels that read too much on purpose and throw it away.
    Follow,
}

/// How to run a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Whether reading bytes that were never written is an error. Bounds, alignment and state spaces are checked always.
    pub checked: bool,
    /// What happens then, if `checked`.
    pub unwritten: Unwritten,
    /// How many threads of the host to use; zero for as many as it has cores. Results do not depend on it: a kernel
    /// with atomics on global memory, whose results may depend on the order of blocks, runs its blocks in order on one.
    pub threads: usize,
    /// How many instructions the warps of one block may execute together before the block counts as endless.
    pub limit: u64,
    /// How `mma.sync` sums up; hardware does not document it.
    pub summation: Summation,
    /// A cooperative launch: all blocks are under way together, and meet at the barriers of cooperative groups' grids.
    pub cooperative: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            checked: true,
            unwritten: Unwritten::default(),
            threads: 0,
            limit: 1 << 30,
            summation: Summation::default(),
            cooperative: false,
        }
    }
}

impl Options {
    /// Without the search for uninitialised bytes.
    pub fn unchecked() -> Self {
        Self { checked: false, ..Self::default() }
    }
}
