//! How many blocks of a kernel a multiprocessor holds at a time: what is left of its threads, registers and shared memory
//! decides (CUDA C++ programming guide, compute capability 9.0).

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::Work;

/// What `python optimized/sass.py` and `nvrtc.py` keep of each kernel: its registers and its static shared memory.
const RESOURCES: &str = include_str!("../../../optimized/kernels/resources.txt");

const THREADS: u64 = 2048;
const BLOCKS: u64 = 32;
const REGISTERS: u64 = 65536;
/// Registers are given to a warp in portions.
const PORTION: u64 = 256;
const SHARED: u64 = 228 << 10;
/// What a multiprocessor keeps for itself of each block's shared memory.
const RESERVED: u64 = 1 << 10;

/// Registers of a thread and static bytes of shared memory.
fn resources(kernel: &str) -> Option<(u64, u64)> {
    static ALL: LazyLock<HashMap<&str, (u64, u64)>> = LazyLock::new(|| {
        let row = |line: &'static str| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            Some((*cells.first()?, (cells.get(2)?.parse().ok()?, cells.get(5)?.parse().ok()?)))
        };
        RESOURCES.lines().skip(1).filter_map(row).collect()
    });
    ALL.get(kernel).copied()
}

/// Blocks of a launch that a multiprocessor holds at a time, at least one. `None` if nobody knows the kernel's registers.
pub fn resident(work: &Work) -> Option<u64> {
    let (registers, fixed) = resources(&work.kernel)?;
    let warps = work.threads.div_ceil(32).max(1);
    let of_registers = REGISTERS / (warps * (32 * registers).next_multiple_of(PORTION)).max(1);
    let of_shared = SHARED / (work.shared + fixed + RESERVED);
    Some((THREADS / (32 * warps)).min(of_registers).min(of_shared).clamp(1, BLOCKS))
}
