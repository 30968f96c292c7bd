//! The profile of a launch: what a kernel author without a card wants to know.
//!
//! A [`Profile`] is an [`Observer`]: hand it to [`Emulator::launch_watched`](crate::Emulator::launch_watched), then
//! read its numbers or print it. It accumulates over launches, and keeps everything by kernel and line of the PTX
//! text, from which all sums follow; so take another one for another module with a kernel of the same name.
//!
//! Two kinds of numbers come out:
//! * **Counts** of the program that ran: instructions, active lanes, bytes, requests, floating-point operations. They
//!   are exact for this PTX. The driver's assembler makes other instructions of it, several of one or one of several.
//! * **A model** of the memory system, from the rules that the CUDA C++ programming guide gives for compute capability
//!   5.x to 9.0 ("Global Memory" and "Shared Memory" of each): [sectors and lines](Counts::sectors) of global memory,
//!   [wavefronts](Counts::wavefronts) of shared memory. Nothing is measured and nothing is timed: there are no caches,
//!   so that sectors are what a multiprocessor asks for and not what comes from DRAM, no pipelines and no clock.
//!
//! ```
//! use ptx_emulator::profile::Profile;
//! use ptx_emulator::{Arg, Emulator, Grid, Module, Options};
//!
//! let module = Module::parse(
//!     ".version 8.4
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry every_other(.param .u64 data)
//!      {
//!          .reg .b32 %r<3>;
//!          .reg .b64 %rd<4>;
//!          ld.param.u64 %rd1, [data];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 8;
//!          add.s64 %rd3, %rd1, %rd2;
//!          st.global.u32 [%rd3], %r1;
//!          ret;
//!      }",
//! )?;
//! let mut gpu = Emulator::new();
//! let data = gpu.allocate(256)?;
//! let mut profile = Profile::new();
//! let (grid, args) = (Grid::linear(1, 32), [Arg::from(data)]);
//! gpu.launch_watched(&module, "every_other", grid, &args, Options::default(), &mut profile)?;
//! let total = profile.total();
//! assert_eq!((total.sectors, total.ideal_sectors), (8, 4));
//! assert_eq!(profile.uncoalesced()[0].opcode, "st.global.u32");
//! println!("{profile}");
//! # Ok::<(), ptx_emulator::Error>(())
//! ```

mod banks;
mod class;
mod counts;
mod flops;
mod sectors;
mod table;

use std::collections::HashMap;

pub use class::Class;
pub use counts::{Counts, Traffic};

use crate::Space;
use crate::exec::registers::lanes;
use crate::memory::address;
use crate::observe::{Access, Kind, Observer, Site};

/// What the instructions with one opcode on one line of a kernel did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The kernel.
    pub kernel: String,
    /// The line in the PTX text, counted from one; zero for the `ret` that the end of a kernel implies.
    pub line: u32,
    /// File and line of the source, if the module has `.loc`.
    pub source: Option<(String, u32)>,
    /// The opcode with all its modifiers.
    pub opcode: String,
    /// The kind of instruction.
    pub class: Class,
    /// What they did.
    pub counts: Counts,
    /// Floating-point operations of one lane.
    flops: u64,
}

/// What one or more launches did. See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Blocks that began.
    pub blocks: u64,
    /// Warps of these blocks.
    pub warps: u64,
    /// Threads of these blocks.
    pub threads: u64,
    /// Every line that was executed, in the order in which they were first met.
    pub lines: Vec<Line>,
    /// Where in `lines` those with a line number are.
    places: HashMap<u32, Vec<usize>>,
    /// The one that was looked for last.
    last: usize,
}

impl Profile {
    /// A profile of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sum over all lines.
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        self.lines.iter().for_each(|line| total += line.counts);
        total
    }

    /// The sums by class, the one with the most warp instructions first.
    pub fn by_class(&self) -> Vec<(Class, Counts)> {
        self.sums(|line| Some(line.class))
    }

    /// The sums by file and line of the source, the one with the most warp instructions first. Empty for a module
    /// without `.loc`.
    pub fn by_source(&self) -> Vec<((String, u32), Counts)> {
        self.sums(|line| line.source.clone())
    }

    /// All lines, the one with the most warp instructions first.
    pub fn hottest(&self) -> Vec<&Line> {
        self.worst(|counts| counts.warp_instructions)
    }

    /// The lines whose accesses to global memory touch more sectors than they need, the worst first.
    pub fn uncoalesced(&self) -> Vec<&Line> {
        self.worst(Counts::excess_sectors)
    }

    /// The lines with bank conflicts in shared memory, the worst first.
    pub fn conflicts(&self) -> Vec<&Line> {
        self.worst(Counts::bank_conflicts)
    }

    fn sums<K: PartialEq>(&self, key: impl Fn(&Line) -> Option<K>) -> Vec<(K, Counts)> {
        let mut sums: Vec<(K, Counts)> = vec![];
        for line in &self.lines {
            let Some(key) = key(line) else { continue };
            match sums.iter_mut().find(|(other, _)| *other == key) {
                Some((_, sum)) => *sum += line.counts,
                None => sums.push((key, line.counts)),
            }
        }
        sums.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.warp_instructions));
        sums
    }

    /// The lines for which a number is not zero, the largest first.
    fn worst(&self, number: impl Fn(&Counts) -> u64) -> Vec<&Line> {
        let mut lines: Vec<&Line> = self.lines.iter().filter(|line| number(&line.counts) > 0).collect();
        lines.sort_by_key(|line| std::cmp::Reverse(number(&line.counts)));
        lines
    }

    /// The entry of a line; a new one if it was never met.
    fn line(&mut self, site: &Site<'_>) -> &mut Line {
        let is_it = |line: &Line| line.line == site.line && line.opcode == site.opcode && line.kernel == site.kernel;
        // An access follows its own issue, so the last one is a good guess.
        if !self.lines.get(self.last).is_some_and(is_it) {
            let places = self.places.entry(site.line).or_default();
            self.last = places.iter().copied().find(|at| is_it(&self.lines[*at])).unwrap_or_else(|| {
                places.push(self.lines.len());
                self.lines.push(Line {
                    kernel: site.kernel.to_string(),
                    line: site.line,
                    source: site.source.map(|(file, line)| (file.to_string(), line)),
                    opcode: site.opcode.to_string(),
                    class: Class::of(site.opcode),
                    counts: Counts::default(),
                    flops: flops::of_a_lane(site.opcode),
                });
                self.lines.len() - 1
            });
        }
        &mut self.lines[self.last]
    }
}

impl Observer for Profile {
    fn begin(&mut self, _block: [u32; 3], threads: u32) {
        self.blocks += 1;
        self.warps += u64::from(threads.div_ceil(32));
        self.threads += u64::from(threads);
    }

    fn issue(&mut self, site: &Site<'_>) {
        let active = u64::from(site.lanes.count_ones());
        let line = self.line(site);
        line.counts.warp_instructions += 1;
        line.counts.thread_instructions += active;
        line.counts.flops += active * line.flops;
    }

    fn access(&mut self, site: &Site<'_>, access: &Access<'_>) {
        // The landing of a copy is the end of a write that was counted when it was issued.
        if access.kind == Kind::CopyLand {
            return;
        }
        let counts = &mut self.line(site).counts;
        if access.space != Space::Generic {
            counts.access(access, access.space, site.lanes);
            return;
        }
        for space in [Space::Global, Space::Shared, Space::Local] {
            let here = |lane: &usize| address::generic(access.addresses[*lane]).0 == space;
            let inside = lanes(site.lanes).filter(here).fold(0, |set, lane| set | 1 << lane);
            counts.access(access, space, inside);
        }
    }
}
