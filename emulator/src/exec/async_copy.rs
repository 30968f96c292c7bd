//! `cp.async` (PTX manual, "Asynchronous copy"): copies that land as late as they may.
//!
//! Hardware may write the destination at any time between the copy and the wait. The emulator takes the latest moment:
//! until then the destination is unwritten, so that whoever reads it too early is found out, every time.

use super::block::Block;
use super::registers::{LANES, lanes};
use super::view::Request;
use crate::error::Cause;
use crate::lower::instruction::Copy;
use crate::observe::{Access, Kind, Observer, Sync};
use crate::{Error, Space};

/// A copy on its way: at most 16 bytes of one lane.
#[derive(Clone, Copy, Debug)]
struct Flight {
    lane: usize,
    /// The number of its group, counted for each lane.
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
    /// How many groups each lane has committed.
    committed: [u64; LANES],
}

impl<O: Observer> Block<'_, O> {
    /// `cp.async`: the source is read now, the destination poisoned.
    pub(super) fn copy(&mut self, warp: usize, pc: usize, mask: u32, copy: &Copy) -> Result<(), Error> {
        let targets = self.warps[warp].addresses(copy.target);
        let sources = self.warps[warp].addresses(copy.source);
        let bytes = copy.bytes;
        let registers = &self.warps[warp].registers;
        let ignored = copy.ignore.map_or(0, |pred| registers.test(pred));
        let sizes = copy.source_bytes.map_or([bytes; LANES], |slot| *registers.get::<u32>(slot));
        let sizes: [u32; LANES] = std::array::from_fn(|lane| if ignored >> lane & 1 == 1 { 0 } else { sizes[lane] });
        if O::ACTIVE {
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
        let committed = self.warps[warp].copies.committed;
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
            // A whole copy is taken in words, a part of one byte after byte.
            let step = if size == bytes { 4 } else { 1 };
            if size == bytes {
                view.locate(Request { reads: true, ..from }, lane, sources[lane])?;
            }
            for at in (0..size).step_by(step as usize) {
                let reads = Request { bytes: step, reads: true, ..from };
                let spot = view.locate(reads, lane, sources[lane] + u64::from(at))?;
                let value = spot.store.load(spot.offset, step).to_le_bytes();
                flight.data[at as usize..(at + step) as usize].copy_from_slice(&value[..step as usize]);
            }
            let spot = view.locate(to, lane, targets[lane])?;
            spot.store.poison(spot.offset, bytes);
            flight.target = spot.offset;
            flights.push(flight);
            Ok(())
        });
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
        let Copies { flights, committed } = &mut self.warps[warp].copies;
        let landing = |flight: &Flight| {
            let done = keep.is_none_or(|keep| flight.group + u64::from(keep) < committed[flight.lane]);
            mask >> flight.lane & 1 == 1 && done
        };
        let (landed, flying): (Vec<Flight>, Vec<Flight>) = flights.iter().partition(|flight| landing(flight));
        *flights = flying;
        for flight in &landed {
            self.shared.write(flight.target, &flight.data[..flight.bytes as usize]);
            self.follow_landing(flight.target, flight.unwritten);
        }
        if O::ACTIVE {
            for flight in landed {
                let addresses = [flight.target; LANES];
                let access = Access::new(Kind::CopyLand, Space::Shared, &addresses, flight.bytes);
                self.tell_access(warp, flight.pc, 1 << flight.lane, &access);
            }
        }
        self.tell_sync(warp, pc, mask, Sync::Wait(keep));
    }
}
