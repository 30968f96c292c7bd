//! Data races, found by *happens-before* (PTX manual, "Memory Consistency Model").
//!
//! Two accesses of the same byte race if at least one of them writes, nothing orders them, and they are not both
//! *strong* (atomic, relaxed, volatile, ...) with a scope that includes the other. It does not matter in which order
//! they came in this run, so a missing barrier is found in every run.
//!
//! ```
//! use ptx_emulator::race::RaceDetector;
//! use ptx_emulator::{Arg, Emulator, Grid, Module, Options};
//!
//! // Every thread writes the same word.
//! let module = Module::parse(
//!     ".version 8.4
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry who(.param .u64 data)
//!      {
//!          .reg .b32 %r<2>;
//!          .reg .b64 %rd<2>;
//!          ld.param.u64 %rd1, [data];
//!          mov.u32 %r1, %tid.x;
//!          st.global.u32 [%rd1], %r1;
//!          ret;
//!      }",
//! )?;
//! let mut gpu = Emulator::new();
//! let data = gpu.allocate(4)?;
//! let mut races = RaceDetector::new();
//! gpu.launch_watched(&module, "who", Grid::linear(1, 2), &[Arg::from(data)], Options::default(), &mut races)?;
//! assert_eq!(
//!     races.races()[0].to_string(),
//!     "who: race on 4 bytes of global memory at 0x1100000000: write (PTX line 10, st.global.u32) by block (0, 0, 0), \
//!      thread 0, and write (PTX line 10, st.global.u32) by block (0, 0, 0), thread 1"
//! );
//! # Ok::<(), ptx_emulator::Error>(())
//! ```
//!
//! # What orders accesses
//! * the program, for one thread. The lanes of a warp are *not* in lockstep;
//! * `bar.warp.sync`, for the lanes that it names. Shuffles, votes, matches and matrix instructions bring lanes
//!   together but order no memory accesses (CUDA programming guide, "Warp Shuffle Functions" and its neighbours);
//! * named barriers: all that arrive come before all that wait there; `bar.arrive` only releases. Threads that have
//!   exited have not arrived;
//! * fences with strong accesses: a fence, then a strong write; the value is read by a strong read, then a fence.
//!   Between fence and write there may be a barrier: each thread fences what it wrote, and one of them tells the
//!   others. Each of the four needs a scope that includes the other side: `membar.cta` orders nothing for another
//!   block. `.release` and `.acquire` on the access itself count as well. The second fence is often forgotten, also in
//!   well-known examples: a barrier does not stand in for it;
//! * an atomic operation, for the same bytes: the thread that came last with one has seen what the others left, and may
//!   set the bytes anew with a plain store (the counter of last blocks);
//! * one launch comes before the next.
//!
//! # Asynchronous copies
//! Between `cp.async` and the wait, the source is read and the destination written at any time, as if by another
//! thread: whoever touches them meanwhile races, the thread that copies too. Then the copy is a write of that thread,
//! which others see after a barrier.
//!
//! # Races that do not matter
//! Compilers make some on purpose. Each class is kept apart:
//! * two stores of the same value to the same bytes: [`RaceDetector::equal_stores`]. What a thread reads there before
//!   its own store is a race with the other's; what it reads after it is none;
//! * stores of one instruction that would be equal without rounding: [`RaceDetector::rounded_stores`]. Both values
//!   are computed once more modulo a prime, where nothing is rounded, so no tolerance is needed: sums of the same terms in
//!   two orders are equal, anything else is a race, however little it differs;
//! * reads whose value is thrown away: [`RaceDetector::unused_reads`]. If reads and writes race, the launch is run a second
//!   time from the same memory, and the values of these reads are followed through registers. One that reaches an
//!   address, a branch, a barrier, another lane by anything but a shuffle, or memory is used.
//!
//! # What is not found
//! Only what this run does is looked at: other inputs may race elsewhere. Orders that depend on luck (who took a lock
//! first) count as they were.
//!
//! # Memory
//! A word of shared or global memory that was accessed costs 80 bytes on the host, or 400 where its bytes were accessed
//! one by one or by halves. To that come up to 40 bytes for each warp and instruction that has read it, without those
//! that are in the past of a later one; at most 64 of the running block and 4 of others are kept per word or byte (beyond
//! that a race may be missed, never invented). Clocks cost 4 bytes for each pair of threads of
//! a block, up to 24 with fences and asynchronous copies, and for each address of a strong write after a fence 4 bytes
//! for each thread of each block that wrote there; the address of an atomic operation costs 40. Shared memory is forgotten
//! with its block, the rest with the launch.
//! For a second run the global memory that a launch stores to is kept as it was, at twice its size; beyond 256 MiB of it,
//! or a million words in question, there is none, and such reads count as used. Each race whose outcome is open costs 80
//! bytes; beyond eight million of them the reads count as used, too.
//!
//! # Speed
//! About 10 million thread-instructions per second on a matrix product in tiles, which does little but access memory.
//! Without races of reads and writes there is no second run.

mod cell;
mod clock;
mod order;
mod others;
mod report;
mod second;
mod shadow;
mod state;
mod thread;
mod watch;

use std::collections::HashMap;

use crate::Space;
use crate::observe::Kind;
use cell::View;
use clock::Gathering;
use order::{Order, Reach};
use report::{Found, Sites};
use second::{Pending, Second};
use state::{Logs, Memory, Running, Step};
use thread::Last;

pub use report::{Party, Race};

/// Finds races in the launches that it watches: see the module's documentation.
#[derive(Default)]
pub struct RaceDetector {
    sites: Sites,
    logs: Logs,
    /// What was found before this launch.
    before: Logs,
    second: Second,
    /// The blocks of this launch, by number.
    blocks: Vec<[u32; 3]>,
    /// The block that runs.
    running: Running,
    /// Those that were left for others.
    aside: HashMap<[u32; 3], Running>,
    global: Memory,
}

impl RaceDetector {
    /// A detector that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The races found so far, in all launches, without those of the classes below: one for each pair of lines, in an
    /// order that is the same in every run.
    pub fn races(&self) -> &[Race] {
        &self.logs.races.races
    }

    fn block(&self) -> u32 {
        self.running.number
    }

    fn warps(&self) -> usize {
        self.running.threads.len() / 32
    }

    /// Stores of equal values to the same bytes that nothing orders: whichever comes last, memory holds the same. They
    /// are races by the letter of the manual, and harmless on every GPU; compilers emit them where several lanes hold
    /// copies of one value.
    pub fn equal_stores(&self) -> &[Race] {
        &self.logs.equal.races
    }

    /// Stores of one instruction, by lanes of a warp or of several warps of a block, to the same bytes, whose values would
    /// be the same without rounding. One of them is kept, nothing says which. Compilers emit them where several lanes or
    /// warps hold a sum that each has added up in its own order. [`Race::apart`] says how far the values are from each
    /// other.
    pub fn rounded_stores(&self) -> &[Race] {
        &self.logs.rounded.races
    }

    /// Reads that race with a write, but whose value was thrown away: it has reached no address, branch, barrier or
    /// memory, so that it does not matter which value it was. A kernel with more threads than work does that: the
    /// surplus threads read what others overwrite, and store nothing.
    pub fn unused_reads(&self) -> &[Race] {
        &self.logs.unused.races
    }

    /// One lane accesses bytes.
    fn touch(&mut self, (space, bytes): (Space, std::ops::Range<u64>), order: Order, step: &Step<'_>) {
        let Step { mark: new, value, index, .. } = *step;
        let block = self.block();
        let Running { threads, shared, tick, .. } = &mut self.running;
        let memory = if space == Space::Shared { shared } else { &mut self.global };
        let Some(thread) = threads.get_mut(index) else { return };
        let strong = order.reach != Reach::Nobody;
        let address = bytes.start;
        if strong
            && new.kind != Kind::Write
            && let Some(location) = memory.locations.get(&address)
        {
            thread.hear(block, order, location);
        }
        let mut races: Vec<Found> = vec![];
        let size = bytes.end - bytes.start;
        let last = if new.kind == Kind::Write && !strong { memory.atomics.get(&address).copied() } else { None };
        let last = last.map(|last| (last, size));
        let view = View { block, thread: index, clock: &threads[index].known.past, last };
        memory.shadow.access(bytes.clone(), (new, step.unchanged), &view, |old, address, bytes| {
            match races.iter_mut().find(|race| (race.old.site, race.old.kind) == (old.site, old.kind)) {
                Some(race) if race.address + u64::from(race.bytes) == address => race.bytes += bytes,
                Some(_) => {}
                None => races.push(Found { old, address, bytes }),
            }
        });
        let mut told: Vec<(Found, Option<u32>)> = vec![];
        let second = &self.second;
        let followed = second.runs && second.words.touch(space, bytes.clone());
        if followed && new.kind == Kind::Read {
            let is_over = |old: &cell::Mark| {
                let sees = |(at, other): (usize, &thread::Thread)| {
                    View { block, thread: at, clock: &other.known.past, last: None }.unseen(old) == 0
                };
                (space == Space::Shared || second.one_block) && threads.iter().enumerate().all(sees)
            };
            memory.reads.add(&bytes, new, value, is_over);
        } else if followed && new.writes() {
            memory.reads.raced(&bytes, new, &view, |found, value| told.push((found, Some(value))));
            // These are all reads of it, and those in the history are some of them.
            races.retain(|race| race.old.kind != Kind::Read);
        }
        if strong && new.kind != Kind::Read {
            if new.kind == Kind::Atomic {
                memory.atomics.insert(address, Last { block, thread: index, bytes: size, reach: order.reach });
            } else {
                memory.atomics.remove(&address);
            }
            *tick += 1;
            threads[index].tell((block, index), (order, new.kind), (&mut memory.locations, address), *tick);
        }
        if !races.is_empty() || !told.is_empty() {
            let value = (followed && new.kind == Kind::Read).then_some(value);
            told.extend(races.into_iter().map(|race| (race, value)));
            self.tell(space, bytes, step, told);
        }
    }

    /// Notes what one lane's access races with, each in its class; of those whose outcome is not known yet, the number of
    /// the value that was read.
    #[cold]
    fn tell(&mut self, space: Space, bytes: std::ops::Range<u64>, step: &Step<'_>, told: Vec<(Found, Option<u32>)>) {
        let Step { mark: new, unchanged, rounding, index, .. } = *step;
        let (block, warps, second) = (self.block(), self.warps(), &mut self.second);
        second.steps += 1;
        for (found, value) in told {
            let is_read = |kind: Kind| kind == Kind::Read;
            if !second.runs && (is_read(new.kind) || is_read(found.old.kind)) {
                second.suspect(space, bytes.clone());
            }
            // What is there was stored by the earlier one of the two, if that is what came last.
            let both = found.old.kind == Kind::Write && new.kind == Kind::Write;
            let same_site = both && (found.old.site, found.old.block) == (new.site, block);
            let apart = || {
                let other = [usize::from(found.old.warp), found.old.lanes.trailing_zeros() as usize];
                rounding.filter(|_| same_site && !self.logs.races.has(&found, new))?.apart(index % 32, other)
            };
            let (log, apart) = match () {
                () if both && unchanged => (&mut self.logs.equal, 0.0),
                () => match apart() {
                    Some(apart) => (&mut self.logs.rounded, apart),
                    None => (&mut self.logs.races, 0.0),
                },
            };
            if let Some(value) = value
                && second.keep(Pending { space, found, new: *new, value, step: second.steps })
            {
                continue;
            }
            log.note((&self.sites, &self.blocks, warps as u32), space, (&found, new), apart);
        }
    }

    fn join_warp(&mut self, lanes: impl Iterator<Item = usize> + Clone) {
        let mut together = Gathering::default();
        for index in lanes.clone() {
            together.add(&self.running.threads[index].known, index, self.running.threads[index].now);
        }
        let known = together.finish();
        for index in lanes {
            self.running.threads[index].known = known.clone();
            self.running.threads[index].now = self.running.tick;
        }
    }
}
