//! `cp.async` (PTX manual, "Asynchronous copy"): copies that land as late as they may.
//!
//! Hardware may write the destination at any time between the copy and the wait. The emulator takes the latest moment:
//! until then the destination is unwritten, so that whoever reads it too early is found out, every time.

use super::block::Block;
use super::registers::{LANES, get, lanes};
use super::view::Request;
use crate::error::Cause;
use crate::lower::instruction::{Address, Answer, Atomic, Copy};
use crate::lower::mbarrier;
use crate::observe::{Access, Kind, Sync};
use crate::{Error, Space};

/// A copy on its way: at most 16 bytes of one lane.
#[derive(Clone, Copy, Debug)]
struct Flight {
    lane: usize,
    /// Its number, and that of its group, counted for each lane.
    number: u64,
    group: u64,
    target: u64,
    bytes: u32,
    data: [u8; 16],
    pc: usize,
    /// The bytes of the source that nobody wrote, and where they were read.
    unwritten: (u16, u32),
}

/// All copies of a warp that have not landed.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    flights: Vec<Flight>,
    /// How many copies each lane has begun, and how many groups it has committed.
    begun: [u64; LANES],
    committed: [u64; LANES],
    /// What will arrive at barriers in shared memory, in this order.
    arrivals: Vec<Arrival>,
}

/// The first so many copies of a lane, which arrive at a barrier when they have landed.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    lane: usize,
    copies: u64,
    /// Where in shared memory the barrier is.
    barrier: u64,
    pc: usize,
}

impl Block<'_> {
    /// `cp.async`: the source is read now, the destination poisoned.
    pub(super) fn copy(&mut self, warp: usize, pc: usize, mask: u32, copy: &Copy) -> Result<(), Error> {
        let targets = self.warps[warp].addresses(copy.target);
        let sources = self.warps[warp].addresses(copy.source);
        let bytes = copy.bytes;
        let registers = &self.warps[warp].registers;
        let ignored = copy.ignore.map_or(0, |pred| registers.test(pred));
        let sizes = copy.source_bytes.map_or([bytes; LANES], |slot| *registers.get::<u32>(slot));
        let sizes: [u32; LANES] = std::array::from_fn(|lane| if ignored >> lane & 1 == 1 { 0 } else { sizes[lane] });
        if self.observer.is_some() {
            // One event for each size that some lanes take from their source.
            for size in 1..=bytes {
                let reading = lanes(mask).filter(|lane| sizes[*lane] == size).fold(0, |bits, lane| bits | 1 << lane);
                if reading != 0 {
                    let read = Access::new(Kind::CopyRead, Space::Global, &sources, size);
                    self.tell_access(warp, pc, reading, &read);
                }
            }
        }
        let write = Access::new(Kind::CopyWrite, Space::Shared, &targets, bytes);
        self.tell_access(warp, pc, mask, &write);
        let Copies { begun, committed, .. } = self.warps[warp].copies;
        let mut flights = vec![];
        let mut unwritten = [(0, 0); LANES];
        if self.launch.follow {
            for lane in lanes(mask).filter(|lane| sizes[*lane] <= bytes) {
                unwritten[lane] = self.follow_copy_source((warp, pc), lane, sources[lane], sizes[lane]);
            }
        }
        let (view, _) = self.split(warp);
        let outcome = lanes(mask).try_for_each(|lane| {
            let from = Request { space: Space::Global, bytes, writes: false, reads: false };
            let to = Request { space: Space::Shared, bytes, writes: true, reads: false };
            let size = sizes[lane];
            if size > bytes {
                return Err((lane, Cause::BadCopy { bytes, source_bytes: size }));
            }
            let mut flight = Flight {
                lane,
                number: begun[lane],
                group: committed[lane],
                target: 0,
                bytes,
                data: [0; 16],
                pc,
                unwritten: unwritten[lane],
            };
            // The source must be aligned as the whole copy, but only the bytes that are taken must exist.
            if size > 0 && sources[lane] & u64::from(bytes - 1) != 0 {
                let address = sources[lane];
                return Err((lane, Cause::Misaligned { space: Space::Global, address, bytes }));
            }
            if size == bytes {
                let spot = view.locate(Request { reads: true, ..from }, lane, sources[lane])?;
                for (at, word) in flight.data[..size as usize].chunks_exact_mut(4).enumerate() {
                    let value = spot.store.load(spot.offset + 4 * at as u64, 4) as u32;
                    word.copy_from_slice(&value.to_le_bytes());
                }
            } else {
                // Of a part of a copy each byte is looked at.
                for at in 0..size {
                    let reads = Request { bytes: 1, reads: true, ..from };
                    let spot = view.locate(reads, lane, sources[lane] + u64::from(at))?;
                    flight.data[at as usize] = spot.store.load(spot.offset, 1) as u8;
                }
            }
            let spot = view.locate(to, lane, targets[lane])?;
            spot.store.poison(spot.offset, bytes);
            flight.target = spot.offset;
            flights.push(flight);
            Ok(())
        });
        flights.iter().for_each(|flight| self.warps[warp].copies.begun[flight.lane] += 1);
        self.warps[warp].copies.flights.append(&mut flights);
        outcome.map_err(|failed| self.fault(warp, pc, failed))
    }

    /// `cp.async.commit_group`
    pub(super) fn commit(&mut self, warp: usize, pc: usize, mask: u32) {
        for lane in lanes(mask) {
            self.warps[warp].copies.committed[lane] += 1;
        }
        self.tell_sync(warp, pc, mask, Sync::Commit);
    }

    /// `cp.async.wait_group n`: all but the last n groups land; `wait_all`: everything lands.
    pub(super) fn wait_groups(&mut self, warp: usize, pc: usize, mask: u32, keep: Option<u32>) {
        let committed = self.warps[warp].copies.committed;
        self.land(warp, |flight| {
            let done = keep.is_none_or(|keep| flight.group + u64::from(keep) < committed[flight.lane]);
            mask >> flight.lane & 1 == 1 && done
        });
        self.tell_sync(warp, pc, mask, Sync::Wait(keep));
    }

    /// The copies of which `lands` holds become visible.
    fn land(&mut self, warp: usize, lands: impl Fn(&Flight) -> bool) {
        let flights = &mut self.warps[warp].copies.flights;
        let (landed, flying): (Vec<Flight>, Vec<Flight>) = flights.iter().partition(|flight| lands(flight));
        *flights = flying;
        for flight in landed {
            self.shared.write(flight.target, &flight.data[..flight.bytes as usize]);
            self.follow_landing(flight.target, flight.unwritten);
            if self.observer.is_some() {
                let addresses = [flight.target; LANES];
                let access = Access::new(Kind::CopyLand, Space::Shared, &addresses, flight.bytes);
                self.tell_access(warp, flight.pc, 1 << flight.lane, &access);
            }
        }
    }

    /// `cp.async.mbarrier.arrive`: the barrier will hear of the copies so far. Unless the arrival is one of those that it
    /// waits for anyway, it waits for one more in this phase.
    pub(super) fn copies_arrive(
        &mut self,
        (warp, pc): (usize, usize),
        mask: u32,
        (address, space): (Address, Space),
        counted: bool,
    ) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(address);
        if counted {
            let access = Access::new(Kind::Atomic, space, &addresses, BARRIER);
            self.tell_access(warp, pc, mask, &access);
        }
        let request = Request { space, bytes: BARRIER, writes: true, reads: true };
        for lane in lanes(mask) {
            let spot = self.view(warp).locate(request, lane, addresses[lane]);
            let spot = spot.map_err(|failed| self.fault(warp, pc, failed))?;
            if !std::ptr::eq(spot.store, &self.shared) {
                let cause = Cause::NoAllocation { space: Space::Shared, address: addresses[lane], bytes: BARRIER };
                return Err(self.fault(warp, pc, (lane, cause)));
            }
            if counted {
                let old = spot.store.load(spot.offset, BARRIER);
                spot.store.store(spot.offset, BARRIER, mbarrier::expect_one_more(old));
            }
            let barrier = spot.offset;
            let copies = &mut self.warps[warp].copies;
            copies.arrivals.push(Arrival { lane, copies: copies.begun[lane], barrier, pc });
            self.tell_sync(warp, pc, 1 << lane, Sync::CopyArrive(barrier));
        }
        Ok(())
    }

    /// Before threads look whether a barrier's phase is complete: if it is not, copies that are to arrive there land, as
    /// few as it takes. Copies that nobody waits for never do.
    pub(super) fn land_for(&mut self, warp: usize, mask: u32, atomic: &Atomic, addresses: &[u64; LANES]) {
        let Some(Answer { holds, .. }) = atomic.answer else { return };
        if self.warps.iter().all(|warp| warp.copies.arrivals.is_empty()) {
            return;
        }
        let request = Request { space: atomic.space, bytes: BARRIER, writes: false, reads: false };
        for lane in lanes(mask) {
            let spot = self.view(warp).locate(request, lane, addresses[lane]);
            let Some(spot) = spot.ok().filter(|spot| std::ptr::eq(spot.store, &self.shared)) else { continue };
            let barrier = spot.offset;
            let operand = get(&self.warps[warp].registers, atomic.parts[0][0], lane);
            // If others are missing as well, there is no hurry.
            let arrivals = self.warps.iter().flat_map(|warp| &warp.copies.arrivals);
            let all = arrivals.filter(|arrival| arrival.barrier == barrier);
            let then = all.fold(self.shared.load(barrier, BARRIER), |object, _| mbarrier::arrive(object, 1, false));
            if !holds(then, operand) {
                continue;
            }
            while !holds(self.shared.load(barrier, BARRIER), operand) {
                let first = (0..self.warps.len()).find_map(|w| {
                    let arrivals = &self.warps[w].copies.arrivals;
                    arrivals.iter().position(|arrival| arrival.barrier == barrier).map(|at| (w, at))
                });
                let Some((w, at)) = first else { break };
                let Arrival { lane, copies, pc, .. } = self.warps[w].copies.arrivals.remove(at);
                self.land(w, |flight| flight.lane == lane && flight.number < copies);
                let old = self.shared.load(barrier, BARRIER);
                self.shared.store(barrier, BARRIER, mbarrier::arrive(old, 1, false));
                self.tell_sync(w, pc, 1 << lane, Sync::CopyArrived(barrier));
            }
        }
    }
}

/// The bytes of a barrier in shared memory.
const BARRIER: u32 = 8;
