//! Unwritten bytes on their way from memory into registers and back.

use super::{Origin, Unknown};
use crate::Space;
use crate::exec::access::widen;
use crate::exec::block::Block;
use crate::exec::registers::{LANES, Register, get, lanes, set};
use crate::exec::view::Request;
use crate::lower::flow::{Cell, Flow};
use crate::lower::instruction::{Atomic, Load, Store};
use crate::memory::address;
use crate::memory::store::Store as Memory;
use crate::observe::{Access, Kind, Words};
use crate::unwritten::Use;

impl Block<'_> {
    /// After a load of some lanes: which bits of its registers nobody wrote.
    #[inline(never)]
    pub(in crate::exec) fn follow_load(
        &mut self,
        (w, pc): (usize, usize),
        mask: u32,
        load: &Load,
        addresses: &[u64; LANES],
    ) {
        let bytes = load.bytes * load.parts.len() as u32;
        let mut found = vec![];
        for lane in lanes(mask) {
            let request = Request { space: load.space, bytes, writes: false, reads: false };
            let Ok(spot) = self.view(w).locate(request, lane, addresses[lane]) else { continue };
            for part in 0..load.parts.len() as u32 {
                let offset = spot.offset + u64::from(part * load.bytes);
                let unknown = unknown_bits(spot.store, offset, load.bytes);
                if unknown != 0 {
                    found.push((lane, part as usize, unknown, offset));
                }
            }
        }
        if found.is_empty() && self.warps[w].unknown.is_none() {
            return;
        }
        let registers = load.parts.iter().flatten().map(|register| Cell::Data(*register)).collect();
        self.clear(w, mask, &Flow { writes: registers, ..Flow::default() });
        for (lane, part, unknown, offset) in found {
            let address = addresses[lane] + u64::from(part as u32 * load.bytes);
            let origin = self.origin((w, pc), lane, (load.space, address), offset, unknown);
            let Some(register) = load.parts[part] else { continue };
            let mask = if load.signed { widen(unknown, load.bytes) } else { unknown };
            self.set_unknown(w, lane, register, mask, origin);
        }
    }

    /// In a second run, before a load: for each element of what is loaded, a number for each lane that reads one of the
    /// words.
    #[inline(never)]
    pub(in crate::exec) fn number(
        &mut self,
        mask: u32,
        load: &Load,
        addresses: &[u64; LANES],
        words: &Words,
    ) -> Vec<[u32; LANES]> {
        let bytes = u64::from(load.bytes);
        let access = Access::new(Kind::Read, load.space, addresses, load.bytes);
        let mut numbers = vec![[0; LANES]; load.parts.len()];
        let Some(values) = &mut self.log.values else { return numbers };
        for lane in lanes(mask) {
            let Some((space, address)) = access.place(lane) else { continue };
            for (part, numbers) in (0..).zip(&mut numbers) {
                let address = address.saturating_add(part * bytes);
                if words.touch(space, address..address.saturating_add(bytes)) {
                    numbers[lane] = values.fresh();
                }
            }
        }
        numbers
    }

    /// After it: the registers depend on the numbers.
    pub(in crate::exec) fn follow_numbers(&mut self, w: usize, mask: u32, load: &Load, numbers: &[[u32; LANES]]) {
        let registers = load.parts.iter().flatten().map(|register| Cell::Data(*register)).collect();
        self.clear(w, mask, &Flow { writes: registers, ..Flow::default() });
        for (register, numbers) in load.parts.iter().zip(numbers) {
            let Some(register) = register else { continue };
            for lane in lanes(mask).filter(|lane| numbers[*lane] != 0) {
                self.set_unknown(w, lane, *register, u64::MAX, numbers[lane]);
            }
        }
    }

    /// Marks bits of a register as unknown.
    pub(super) fn set_unknown(&mut self, w: usize, lane: usize, register: Register, mask: u64, origin: Origin) {
        let warp = &mut self.warps[w];
        let unknown = warp.unknown.get_or_insert_with(|| Box::new(Unknown::new(&warp.registers)));
        set(&mut unknown.masks, register, lane, mask);
        unknown.origins(Cell::Data(register))[lane] = origin;
    }

    /// Where unwritten bytes come from: from here, or from where those were read that were stored there.
    pub(super) fn origin(
        &mut self,
        (w, pc): (usize, usize),
        lane: usize,
        (space, address): (Space, u64),
        offset: u64,
        unknown: u64,
    ) -> Origin {
        let byte = u64::from(unknown.trailing_zeros() / 8);
        let home = home(space, address);
        if let Some(origin) = self.log.stored.get(&key(home, (w, lane), address, offset + byte)) {
            return *origin;
        }
        let origin = pc as Origin + 1;
        self.log.reads.entry(origin).or_insert((home, address + byte));
        origin
    }

    /// After a store of some lanes: the bytes whose bits are not known count as unwritten.
    #[inline(never)]
    pub(in crate::exec) fn follow_store(
        &mut self,
        (w, pc): (usize, usize),
        mask: u32,
        store: &Store,
        addresses: &[u64; LANES],
    ) {
        if self.warps[w].unknown.is_none() {
            return;
        }
        let bytes = store.bytes * store.parts.len() as u32;
        for lane in lanes(mask) {
            for (part, register) in store.parts.iter().enumerate() {
                let at = part as u32 * store.bytes;
                let Some(unknown) = &mut self.warps[w].unknown else { return };
                let lost = get(&unknown.masks, *register, lane);
                let origin = unknown.origins(Cell::Data(*register))[lane];
                let request = Request { space: store.space, bytes, writes: true, reads: false };
                self.lose((w, pc, lane), request, (addresses[lane], at, store.bytes), lost, origin);
            }
        }
    }

    /// Some bytes of an access, of which some bits are not known, have been stored.
    pub(super) fn lose(
        &mut self,
        (w, pc, lane): (usize, usize, usize),
        request: Request,
        (address, at, bytes): (u64, u32, u32),
        unknown: u64,
        origin: Origin,
    ) {
        let lost = (0..bytes).filter(|byte| unknown >> (8 * byte) & 0xff != 0).fold(0, |set, byte| set | 1 << byte);
        if lost == 0 {
            return;
        }
        if let Some(values) = &mut self.log.values {
            return values.use_value(origin);
        }
        let Ok(spot) = self.view(w).locate(request, lane, address) else { return };
        let offset = spot.offset + u64::from(at);
        spot.store.forget(offset, lost);
        let home = home(request.space, address);
        for byte in (0..bytes).filter(|byte| lost >> byte & 1 == 1).map(u64::from) {
            let key = key(home, (w, lane), address + u64::from(at) + byte, offset + byte);
            self.log.stored.insert(key, origin);
        }
        if home == Space::Global {
            self.note_lane(w, pc, lane, origin, Use::Output);
        }
    }

    /// Before an atomic operation of one lane: what it reads, and for each element where an unknown result comes from.
    pub(in crate::exec) fn follow_atomic(
        &mut self,
        (w, pc, lane): (usize, usize, usize),
        atomic: &Atomic,
        address: u64,
    ) -> Vec<Option<Origin>> {
        let mut results = vec![];
        let bytes = atomic.bytes * atomic.parts.len() as u32;
        let request = Request { space: atomic.space, bytes, writes: true, reads: false };
        for (part, ([b, c], old)) in atomic.parts.iter().zip(&atomic.old).enumerate() {
            let at = part as u32 * atomic.bytes;
            let Ok(spot) = self.view(w).locate(request, lane, address) else { return vec![] };
            let offset = spot.offset + u64::from(at);
            // What is in memory is not followed in a second run: whatever is stored counts as used.
            let second = self.log.values.is_some();
            let before = if second { 0 } else { unknown_bits(spot.store, offset, atomic.bytes) };
            let mut from = None;
            if before != 0 {
                from = Some(self.origin((w, pc), lane, (atomic.space, address + u64::from(at)), offset, before));
            }
            let values = [*b, *c].map(|register| get(&self.warps[w].registers, register, lane));
            let independent =
                (atomic.update)(0, values[0], values[1]) == (atomic.update)(u64::MAX, values[0], values[1]);
            let mut origin = from.filter(|_| !independent);
            if let Some(unknown) = &mut self.warps[w].unknown {
                for register in [*b, *c] {
                    if get(&unknown.masks, register, lane) != 0 {
                        let other = unknown.origins(Cell::Data(register))[lane];
                        origin = Some(self.log.join(origin.unwrap_or(0), other));
                    }
                }
            }
            if let Some(register) = old {
                match from {
                    Some(from) => self.set_unknown(w, lane, *register, before, from),
                    None => self.clear(w, 1 << lane, &Flow { writes: vec![Cell::Data(*register)], ..Flow::default() }),
                }
            }
            results.push(origin);
        }
        results
    }

    /// After it: the elements whose value is not known count as unwritten.
    pub(in crate::exec) fn lose_atomic(
        &mut self,
        place: (usize, usize, usize),
        atomic: &Atomic,
        address: u64,
        results: &[Option<Origin>],
    ) {
        let bytes = atomic.bytes * atomic.parts.len() as u32;
        let request = Request { space: atomic.space, bytes, writes: true, reads: false };
        for (part, origin) in results.iter().enumerate() {
            if let Some(origin) = origin {
                let at = part as u32 * atomic.bytes;
                self.lose(place, request, (address, at, atomic.bytes), u64::MAX, *origin);
            }
        }
    }

    /// The bytes of a copy's source that nobody wrote, one bit for each, and where they come from.
    pub(in crate::exec) fn follow_copy_source(
        &mut self,
        (w, pc): (usize, usize),
        lane: usize,
        address: u64,
        bytes: u32,
    ) -> (u16, Origin) {
        let (mut lost, mut origin) = (0, 0);
        if self.log.values.is_some() {
            return (0, 0);
        }
        for at in 0..bytes {
            let request = Request { space: Space::Global, bytes: 1, writes: false, reads: false };
            let address = address + u64::from(at);
            let Ok(spot) = self.view(w).locate(request, lane, address) else { continue };
            let offset = spot.offset;
            if !spot.store.is_written(offset, 1) {
                lost |= 1 << at;
                origin = self.origin((w, pc), lane, (Space::Global, address), offset, 0xff);
            }
        }
        (lost, origin)
    }

    /// After a copy has landed.
    pub(in crate::exec) fn follow_landing(&mut self, target: u64, (lost, origin): (u16, Origin)) {
        for at in (0..16).filter(|at| lost >> at & 1 == 1) {
            self.shared.forget(target + at, 1);
            self.log.stored.insert(key(Space::Shared, (0, 0), 0, target + at), origin);
        }
    }
}

/// The bits of at most 8 bytes that nobody wrote.
pub(super) fn unknown_bits(store: &Memory, offset: u64, bytes: u32) -> u64 {
    if store.is_written(offset, bytes) {
        return 0;
    }
    let written = store.written_bytes(offset, bytes);
    (0..bytes).filter(|byte| written >> byte & 1 == 0).fold(0, |mask, byte| mask | 0xff << (8 * byte))
}

fn home(space: Space, address: u64) -> Space {
    if space == Space::Generic { address::generic(address).0 } else { space }
}

/// The name of a word of memory: global addresses lie between those of shared and of local memory.
fn key(home: Space, (w, _): (usize, usize), address: u64, offset: u64) -> u64 {
    match home {
        Space::Shared => offset / 4,
        Space::Local => LOCAL | (w as u64) << 48 | (offset / 4),
        _ => GLOBAL | (address / 4),
    }
}

/// What marks the name of a word of global memory.
pub(super) const GLOBAL: u64 = 1 << 58;
const LOCAL: u64 = 1 << 60;
