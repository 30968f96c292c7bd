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
//! # Equal stores
//! Two stores of the same value to the same bytes are kept apart: see [`RaceDetector::equal_stores`]. So are those of one
//! instruction whose values differ by rounding only: [`RaceDetector::rounded_stores`].
//!
//! # What is not found
//! Only what this run does is looked at: other inputs may race elsewhere. Orders that depend on luck (who took a lock
//! first) count as they were.
//!
//! # Memory
//! A word of shared or global memory that was accessed costs 56 bytes on the host, or 280 where its bytes were accessed
//! one by one or by halves. To that come up to 40 bytes for each warp and instruction that has read it since its last
//! write, without those that are in the past of a later one; at most 64 of the running block and 4 of others are kept
//! per word or byte (beyond that a race may be missed, never invented). Clocks cost 4 bytes for each pair of threads of
//! a block, up to 24 with fences and asynchronous copies, and for each address of a strong write after a fence 4 bytes
//! for each thread of each block that wrote there. Shared memory is forgotten with its block, the rest with the launch.
//!
//! # Speed
//! About 10 million thread-instructions per second on a matrix product in tiles, which does little but access memory.

mod cell;
mod clock;
mod order;
mod report;
mod second;
mod shadow;
mod thread;

use std::collections::{BTreeMap, HashMap};

use crate::Space;
use crate::exec::unknown::USED;
use crate::observe::{Access, Kind, Observer, Site, Sync, Words};
use cell::{Mark, View};
use clock::{Gathering, Knowledge};
use order::{Order, Reach};
use report::{Found, Log, Sites};
use second::{Pending, Reads, Second};
use shadow::Shadow;
use thread::{Last, Location, Thread};

pub use report::{Party, Race};

/// Addresses of shared memory beyond this are out of bounds on every device; the launch fails right after.
const SHARED: u64 = 1 << 20;

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

/// A block under way.
#[derive(Default)]
struct Running {
    /// Its number: blocks are counted as they begin.
    number: u32,
    /// Its threads, a multiple of 32.
    threads: Vec<Thread>,
    /// The last time that was given out in it.
    tick: u32,
    barriers: BTreeMap<u32, Barrier>,
    shared: Memory,
}

/// What was found, by class.
#[derive(Clone, Default)]
struct Logs {
    races: Log,
    equal: Log,
    rounded: Log,
    unused: Log,
}

/// What one lane does.
struct Step<'a> {
    mark: &'a Mark,
    leaves: Leaves,
    /// In a second run: the number of the value that it reads.
    value: u32,
    /// The thread.
    index: usize,
}

/// What a store leaves of what was there.
#[derive(Clone, Copy)]
enum Leaves {
    Same,
    /// What an earlier lane of the same instruction stores, but for rounding; how far from it.
    Rounded(f64),
    Other,
}

/// A named barrier.
#[derive(Default)]
struct Barrier {
    /// Those that have arrived in this phase.
    arrived: Gathering,
    /// What all knew who made the last phase complete.
    complete: Knowledge,
}

/// A memory that threads share.
#[derive(Default)]
struct Memory {
    shadow: Shadow,
    locations: HashMap<u64, Location>,
    atomics: HashMap<u64, Last>,
    /// In a second run.
    reads: Reads,
}

impl Memory {
    fn clear(&mut self) {
        self.shadow.clear();
        self.locations.clear();
        self.atomics.clear();
        self.reads.clear();
    }
}

impl RaceDetector {
    /// A detector that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The races found so far, in all launches, without [equal stores](Self::equal_stores): one for each pair of lines, in the order in which they were found,
    /// which is the same in every run.
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

    /// Stores of lanes of one warp, in one instruction, to the same bytes, whose values would be the same without
    /// rounding. One of them is kept, the manual does not say which. Compilers emit them where several lanes hold a sum
    /// that each has added up in its own order. [`Race::apart`] says how far the values are from each other.
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
        let Step { mark: new, leaves, value, index } = *step;
        let (block, warps) = (self.block(), self.warps());
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
        let view = View { block, thread: index, clock: &thread.known.past };
        // A counter is set anew by who has counted last: what it has seen came before, whatever orders the rest.
        let size = bytes.end - bytes.start;
        let last = if new.kind == Kind::Write && !strong { memory.atomics.get(&address).copied() } else { None };
        memory.shadow.access(bytes.clone(), new, &view, |old, address, bytes| {
            if old.kind == Kind::Atomic && last.is_some_and(|last| last.is((block, index), size, &old)) {
                return;
            }
            match races.iter_mut().find(|race| (race.old.site, race.old.kind) == (old.site, old.kind)) {
                Some(race) if race.address + u64::from(race.bytes) == address => race.bytes += bytes,
                Some(_) => {}
                None => races.push(Found { old, address, bytes }),
            }
        });
        let second = &mut self.second;
        let followed = second.runs && second.words.touch(space, bytes.clone());
        let mut told: Vec<(Found, Option<u32>)> = vec![];
        if followed && new.kind == Kind::Read {
            memory.reads.add(&bytes, new, value);
        } else if followed && new.writes() {
            memory.reads.raced(&bytes, new, &view, |found, value| told.push((found, Some(value))));
            // These are all reads of it, and those in the history are some of them.
            races.retain(|race| race.old.kind != Kind::Read);
        }
        told.extend(races.into_iter().map(|race| (race, followed.then_some(value).filter(|_| new.kind == Kind::Read))));
        if strong && new.kind != Kind::Read {
            if new.kind == Kind::Atomic {
                memory.atomics.insert(address, Last { block, thread: index, bytes: size, reach: order.reach });
            } else {
                memory.atomics.remove(&address);
            }
            *tick += 1;
            thread.tell((block, index), (order, new.kind), (&mut memory.locations, address), *tick);
        }
        second.steps += 1;
        for (found, value) in told {
            let is_read = |kind: Kind| kind == Kind::Read;
            if !second.runs && (is_read(new.kind) || is_read(found.old.kind)) {
                second.suspect(space, bytes.clone());
            }
            // What is there was stored by the earlier one of the two, if that is what came last.
            let both = found.old.kind == Kind::Write && new.kind == Kind::Write;
            let (log, apart) = match leaves {
                Leaves::Same if both => (&mut self.logs.equal, 0.0),
                // The earlier lane has just stored there, so that is what is found.
                Leaves::Rounded(apart) if both => (&mut self.logs.rounded, apart),
                _ => (&mut self.logs.races, 0.0),
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

/// The threads that a site names.
fn threads(site: &Site<'_>) -> impl Iterator<Item = usize> + Clone {
    let (first, lanes) = (site.warp as usize * 32, site.lanes);
    (0..32).filter(move |lane| lanes >> lane & 1 == 1).map(move |lane| first + lane)
}

impl Observer for RaceDetector {
    const REPEATS: bool = true;

    fn again(&mut self) -> Option<Words> {
        if !self.second.is_wanted() {
            return None;
        }
        self.second.runs = true;
        // What the first run has found is found once more.
        self.logs = self.before.clone();
        Some(self.second.words.clone())
    }

    fn outcome(&mut self, is_used: &dyn Fn(u32) -> bool) {
        let warps = self.warps() as u32;
        let (mut last, mut told) = (0, vec![]);
        for Pending { space, found, new, value, step } in self.second.finish() {
            let (used, site) = (is_used(value), found.old.site);
            if step != last {
                (last, told) = (step, vec![]);
            }
            if told.contains(&(site, used)) {
                continue;
            }
            told.push((site, used));
            let log = if used { &mut self.logs.races } else { &mut self.logs.unused };
            log.note((&self.sites, &self.blocks, warps), space, (&found, &new), 0.0);
        }
    }

    fn begin(&mut self, block: [u32; 3], threads: u32) {
        // Blocks begin in order, so this one is the first of a launch.
        if block == [0; 3] {
            self.sites.restart();
            self.blocks.clear();
            self.global.clear();
            self.aside.clear();
            if !self.second.runs {
                self.second.restart();
                self.before = self.logs.clone();
            }
        }
        let running = &mut self.running;
        running.number = self.blocks.len() as u32;
        self.blocks.push(block);
        running.threads.clear();
        running.threads.resize(threads.next_multiple_of(32) as usize, Thread::new());
        running.tick = 1;
        running.barriers.clear();
        running.shared.clear();
    }

    fn leave(&mut self, block: [u32; 3]) {
        self.aside.insert(block, std::mem::take(&mut self.running));
    }

    fn resume(&mut self, block: [u32; 3]) {
        if let Some(running) = self.aside.remove(&block) {
            self.running = running;
        }
    }

    fn access(&mut self, site: &Site<'_>, access: &Access<'_>) {
        let (number, order) = self.sites.number(site);
        let copies = match access.kind {
            Kind::CopyRead | Kind::CopyWrite => true,
            // The copy has its own time until the wait, and nothing has to be done when it lands.
            Kind::CopyLand => return,
            Kind::Read | Kind::Write | Kind::Atomic => false,
        };
        for index in threads(site) {
            let lane = index % 32;
            let Some((space, address)) = access.place(lane) else { continue };
            let Some(end) = address.checked_add(u64::from(access.bytes)) else { continue };
            let private = !matches!(space, Space::Shared | Space::Global);
            if private || space == Space::Shared && end > SHARED {
                continue;
            }
            let Some(thread) = self.running.threads.get(index) else { continue };
            let warp = if copies { self.warps() + index / 32 } else { index / 32 };
            let mark = Mark {
                block: self.block(),
                time: if copies { thread.copies.now } else { thread.now },
                site: number,
                lanes: 1 << lane,
                warp: warp as u16,
                kind: access.kind,
                reach: order.reach,
            };
            let leaves = match access.rounded {
                _ if access.unchanged >> lane & 1 == 1 => Leaves::Same,
                Some(rounded) if rounded.lanes >> lane & 1 == 1 => Leaves::Rounded(rounded.apart[lane]),
                _ => Leaves::Other,
            };
            // A load whose value has no number may be used.
            let value = access.values.map_or(USED, |values| values[lane]);
            self.touch((space, address..end), order, &Step { mark: &mark, leaves, value, index });
        }
    }

    fn sync(&mut self, site: &Site<'_>, event: Sync) {
        let (block, warps) = (self.block(), self.warps());
        if site.warp as usize >= warps {
            return;
        }
        self.running.tick += 1;
        match event {
            Sync::Warp if site.opcode.starts_with("bar.warp") => self.join_warp(threads(site)),
            Sync::Arrive(id) => {
                let barrier = self.running.barriers.entry(id).or_default();
                for index in threads(site) {
                    let thread = &mut self.running.threads[index];
                    barrier.arrived.add(&thread.known, index, thread.now);
                    thread.now = self.running.tick;
                }
            }
            Sync::Complete(id) => {
                let barrier = self.running.barriers.entry(id).or_default();
                barrier.complete = std::mem::take(&mut barrier.arrived).finish();
            }
            Sync::Leave(id) => {
                let barrier = self.running.barriers.entry(id).or_default();
                for index in threads(site) {
                    self.running.threads[index].known.join(&barrier.complete);
                }
            }
            Sync::Fence => {
                let order = Order::of(site.opcode);
                for index in threads(site) {
                    self.running.threads[index].fence((block, index), order, self.running.tick);
                }
            }
            Sync::Commit => threads(site).for_each(|index| self.running.threads[index].copies.commit()),
            Sync::Wait(keep) => {
                for index in threads(site) {
                    let thread = &mut self.running.threads[index];
                    if let Some(landed) = thread.copies.wait(keep) {
                        thread.known.past.set(warps * 32 + index, landed);
                    }
                }
            }
            Sync::CopyArrive(barrier) => threads(site).for_each(|index| {
                self.running.threads[index].copies.arrive(barrier);
            }),
            Sync::CopyArrived(barrier) => {
                for index in threads(site) {
                    if let Some(time) = self.running.threads[index].copies.arrived(barrier) {
                        let location = self.running.shared.locations.entry(barrier).or_default();
                        location.add(block, warps * 32 + index, time);
                    }
                }
            }
            Sync::Warp | Sync::Exit => {}
        }
    }
}
