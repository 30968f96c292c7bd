//! The numbers of a profile, and what follows from them.

use std::ops::AddAssign;

use super::{banks, sectors};
use crate::Space;
use crate::observe::{Access, Kind};

/// The traffic of one state space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Accesses of warps. One without a state space in its opcode is an access to each space that its lanes point to.
    pub requests: u64,
    /// Bytes that lanes read; a byte that two lanes read counts twice.
    pub read: u64,
    /// Bytes that lanes wrote.
    pub written: u64,
    /// Bytes that lanes read and changed in atomic operations, counted once.
    pub atomic: u64,
}

impl Traffic {
    /// Bytes in all directions.
    pub fn bytes(&self) -> u64 {
        self.read + self.written + self.atomic
    }
}

/// `+=`, field by field.
macro_rules! sums {
    ($numbers:ty: $($field:ident),+) => {
        impl AddAssign for $numbers {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)+
            }
        }
    };
}

sums!(Traffic: requests, read, written, atomic);
sums!(Counts: warp_instructions, thread_instructions, flops, global, shared, local, constant, param, sectors,
    ideal_sectors, cache_lines, wavefronts, ideal_wavefronts);

/// What instructions did: those of one line, of one class, or all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions that warps executed. Lanes that went different ways execute the same instruction one after the
    /// other, each time as an instruction of its own. So is one whose predicate holds in no lane.
    pub warp_instructions: u64,
    /// The same, counted once for every lane in which it took place.
    pub thread_instructions: u64,
    /// Floating-point operations: 1 for an addition, a multiplication, a division, a root or another function, 2 for a
    /// fused multiply-add, 2 m n k for an `mma`; packed instructions count twice; comparisons, `min`, `max`, signs and
    /// conversions do not count.
    pub flops: u64,
    /// Traffic of global memory, and of constants that are read through generic addresses. A `cp.async` that takes only
    /// a part of its source counts as a whole one.
    pub global: Traffic,
    /// Traffic of shared memory. The writes of `cp.async` count when it is issued.
    pub shared: Traffic,
    /// Traffic of local memory.
    pub local: Traffic,
    /// Traffic of constant memory.
    pub constant: Traffic,
    /// Traffic of kernel parameters.
    pub param: Traffic,
    /// Sectors of 32 bytes of global memory, counted once for each request that touches them. A model.
    pub sectors: u64,
    /// The least number of sectors that could hold the bytes of each request: its different bytes, divided by 32 and
    /// rounded up.
    pub ideal_sectors: u64,
    /// Lines of 128 bytes of global memory, counted once for each request that touches them. A model.
    pub cache_lines: u64,
    /// Passes through shared memory, in each of which a bank gives one word of 4 bytes. A model.
    pub wavefronts: u64,
    /// The passes that would be needed without bank conflicts: one for a request of up to 4 bytes a lane, one for each
    /// half warp with 8 bytes, for each quarter warp with 16.
    pub ideal_wavefronts: u64,
}

/// Bytes of a sector.
const SECTOR: f64 = 32.0;

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole != 0).then(|| part as f64 / whole as f64)
}

impl Counts {
    /// Active lanes of a warp instruction on average, 0 to 32; `None` without instructions. What is missing to 32 was
    /// lost to divergence, to predicates and to warps that are not full.
    pub fn active_lanes(&self) -> Option<f64> {
        ratio(self.thread_instructions, self.warp_instructions)
    }

    /// The share of the sectors that an ideal arrangement would need too, 0 to 1; `None` without accesses to global
    /// memory.
    pub fn coalescing(&self) -> Option<f64> {
        ratio(self.ideal_sectors, self.sectors)
    }

    /// Sectors beyond the ideal.
    pub fn excess_sectors(&self) -> u64 {
        self.sectors.saturating_sub(self.ideal_sectors)
    }

    /// Wavefronts beyond the ideal.
    pub fn bank_conflicts(&self) -> u64 {
        self.wavefronts.saturating_sub(self.ideal_wavefronts)
    }

    /// Floating-point operations for each byte that lanes ask of global memory; `None` without such bytes.
    pub fn intensity_of_requests(&self) -> Option<f64> {
        ratio(self.flops, self.global.bytes())
    }

    /// Floating-point operations for each byte of the sectors that are touched; `None` without sectors.
    pub fn intensity_of_sectors(&self) -> Option<f64> {
        ratio(self.flops, self.sectors).map(|flops| flops / SECTOR)
    }

    /// Adds an access of some lanes to one space.
    pub(super) fn access(&mut self, access: &Access<'_>, space: Space, lanes: u32) {
        if lanes == 0 {
            return;
        }
        let traffic = match space {
            Space::Global | Space::Generic => &mut self.global,
            Space::Shared => &mut self.shared,
            Space::Local => &mut self.local,
            Space::Const => &mut self.constant,
            Space::Param => &mut self.param,
        };
        traffic.requests += 1;
        let bytes = u64::from(access.bytes) * u64::from(lanes.count_ones());
        match access.kind {
            Kind::Read | Kind::CopyRead => traffic.read += bytes,
            Kind::Write | Kind::CopyWrite | Kind::CopyLand => traffic.written += bytes,
            Kind::Atomic => traffic.atomic += bytes,
        }
        match space {
            Space::Global => {
                let touched = sectors::touched(access.addresses, lanes, access.bytes);
                self.sectors += touched.sectors;
                self.ideal_sectors += touched.ideal;
                self.cache_lines += touched.lines;
            }
            Space::Shared => {
                let passes = banks::passes(access.addresses, lanes, access.bytes, access.kind == Kind::Atomic);
                self.wavefronts += passes.needed;
                self.ideal_wavefronts += passes.ideal;
            }
            _ => {}
        }
    }
}
