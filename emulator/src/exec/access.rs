//! `ld`, `st`, `atom` and `red`: the one place where the lanes of a warp touch memory.

use super::block::Block;
use super::launch::Launch;
use super::registers::{LANES, Registers, get, lanes, set};
use super::tell::site;
use super::unrounded;
use super::view::{Group, Request, Spot, View};
use crate::lower::instruction::{Answer, Atomic, Load, Store};
use crate::memory::address;
use crate::observe::{Access, Kind, Rounding};
use crate::{Error, Space};

impl Block<'_> {
    /// `ld`
    pub(super) fn load(&mut self, warp: usize, pc: usize, mask: u32, load: &Load) -> Result<(), Error> {
        if !self.launch.follow {
            return self.load_values(warp, pc, mask, load, None);
        }
        // The registers of the address may be among those that are loaded.
        let addresses = self.warps[warp].addresses(load.address);
        if let Some(words) = self.launch.words {
            let values = self.number(mask, load, &addresses, words);
            self.load_values(warp, pc, mask, load, Some(&values))?;
            self.follow_numbers(warp, mask, load, &values);
            return Ok(());
        }
        self.load_values(warp, pc, mask, load, None)?;
        self.follow_load((warp, pc), mask, load, &addresses);
        Ok(())
    }

    #[inline(always)]
    fn load_values(
        &mut self,
        warp: usize,
        pc: usize,
        mask: u32,
        load: &Load,
        values: Option<&[[u32; LANES]]>,
    ) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(load.address);
        let bytes = load.bytes * load.parts.len() as u32;
        let request = Request { space: load.space, bytes, writes: false, reads: true };
        if load.polls {
            self.polls += 1;
        }
        match values {
            None => self.tell_access(warp, pc, mask, &Access::new(Kind::Read, load.space, &addresses, bytes)),
            // Each element of a vector has a number of its own.
            Some(values) => values.iter().enumerate().for_each(|(part, values)| {
                let addresses = addresses.map(|address| address.wrapping_add(u64::from(part as u32 * load.bytes)));
                let access = Access::new(Kind::Read, load.space, &addresses, load.bytes);
                self.tell_access(warp, pc, mask, &Access { values: Some(values), ..access });
            }),
        }
        let (view, registers) = self.split(warp);
        if let Some(Group { store: memory, base, step }) = view.together(request, mask, &addresses) {
            for (part, register) in load.parts.iter().enumerate() {
                let Some(register) = register else { continue };
                let start = base.wrapping_sub(u64::from(part as u32 * load.bytes));
                if (register.bits, load.bytes) == (32, 4) {
                    let row = registers.get_mut::<u32>(register.slot);
                    if let Some(step) = step {
                        memory.load_words(addresses[0].wrapping_sub(start), step, row);
                        continue;
                    }
                    lanes(mask).for_each(|lane| row[lane] = memory.load(addresses[lane].wrapping_sub(start), 4) as u32);
                    continue;
                }
                for lane in lanes(mask) {
                    let value = memory.load(addresses[lane].wrapping_sub(start), load.bytes);
                    set(registers, *register, lane, if load.signed { widen(value, load.bytes) } else { value });
                }
            }
            return Ok(());
        }
        let outcome = lanes(mask).try_for_each(|lane| {
            let spot = view.locate(request, lane, addresses[lane])?;
            for (part, register) in load.parts.iter().enumerate() {
                let value = spot.store.load(spot.offset + u64::from(part as u32 * load.bytes), load.bytes);
                if let Some(register) = register {
                    set(registers, *register, lane, if load.signed { widen(value, load.bytes) } else { value });
                }
            }
            Ok(())
        });
        outcome.map_err(|failed| self.fault(warp, pc, failed))
    }

    /// `st`
    pub(super) fn store(&mut self, warp: usize, pc: usize, mask: u32, store: &Store) -> Result<(), Error> {
        self.store_values(warp, pc, mask, store)?;
        if self.launch.follow {
            let addresses = self.warps[warp].addresses(store.address);
            self.follow_store((warp, pc), mask, store, &addresses);
        }
        Ok(())
    }

    #[inline(always)]
    fn store_values(&mut self, warp: usize, pc: usize, mask: u32, store: &Store) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(store.address);
        let bytes = store.bytes * store.parts.len() as u32;
        let request = Request { space: store.space, bytes, writes: true, reads: false };
        if matches!(store.space, Space::Global | Space::Generic) {
            (self.polls, self.advanced) = (0, true);
        }
        if self.observer.is_some() {
            self.tell_store((warp, pc), mask, store, &addresses);
        }
        self.remember(mask, store.space, &addresses);
        let (view, registers) = self.split(warp);
        if let Some(Group { store: memory, base, step }) = view.together(request, mask, &addresses) {
            for (part, register) in store.parts.iter().enumerate() {
                let start = base.wrapping_sub(u64::from(part as u32 * store.bytes));
                if (register.bits, store.bytes) == (32, 4) {
                    let row = registers.get::<u32>(register.slot);
                    if let Some(step) = step {
                        memory.store_words(addresses[0].wrapping_sub(start), step, row);
                        continue;
                    }
                    lanes(mask)
                        .for_each(|lane| memory.store(addresses[lane].wrapping_sub(start), 4, u64::from(row[lane])));
                    continue;
                }
                for lane in lanes(mask) {
                    memory.store(addresses[lane].wrapping_sub(start), store.bytes, get(registers, *register, lane));
                }
            }
            return Ok(());
        }
        let outcome = lanes(mask).try_for_each(|lane| {
            let spot = view.locate(request, lane, addresses[lane])?;
            for (part, register) in store.parts.iter().enumerate() {
                let offset = spot.offset + u64::from(part as u32 * store.bytes);
                spot.store.store(offset, store.bytes, get(registers, *register, lane));
            }
            Ok(())
        });
        outcome.map_err(|failed| self.fault(warp, pc, failed))
    }

    /// Before something is stored: what is there in global memory.
    pub(super) fn remember(&mut self, mask: u32, space: Space, addresses: &[u64; LANES]) {
        if self.keeps && matches!(space, Space::Global | Space::Generic) {
            for lane in lanes(mask) {
                let address = addresses[lane];
                if space == Space::Global || address::generic(address).0 == Space::Global {
                    self.undo.note(self.launch.memory, address);
                }
            }
        }
    }

    /// `atom` and `red`: lane after lane.
    pub(super) fn atomic(&mut self, warp: usize, pc: usize, mask: u32, atomic: &Atomic) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(atomic.address);
        if atomic.answer.is_some() {
            self.land_for(warp, mask, atomic, &addresses);
        }
        let bytes = atomic.bytes * atomic.parts.len() as u32;
        let access = Access::new(Kind::Atomic, atomic.space, &addresses, bytes);
        self.remember(mask, atomic.space, &addresses);
        self.tell_access(warp, pc, mask, &access);
        if !self.launch.follow {
            return self.atomic_values(warp, pc, mask, atomic);
        }
        for lane in lanes(mask) {
            let lost = self.follow_atomic((warp, pc, lane), atomic, addresses[lane]);
            self.atomic_values(warp, pc, 1 << lane, atomic)?;
            self.lose_atomic((warp, pc, lane), atomic, addresses[lane], &lost);
        }
        Ok(())
    }

    /// Tells the observer of a store: which lanes store what is there already, or what an earlier lane of the same
    /// instruction stores there, and how the others may differ.
    fn tell_store(&mut self, (warp, pc): (usize, usize), mask: u32, store: &Store, addresses: &[u64; LANES]) {
        let Block { launch, id, warps, shared, observer, .. } = self;
        let Launch { kernel, memory, params, checked, .. } = **launch;
        let view = View { memory, params, shared, local: &warps[warp].local, checked };
        let mine = &warps[warp].registers;
        let bytes = store.bytes * store.parts.len() as u32;
        let request = Request { space: store.space, bytes, writes: true, reads: false };
        let ones = u64::MAX >> (64 - 8 * store.bytes);
        // Mostly each lane stores behind the one before it, and no two to one address.
        let mut last = None;
        let apart =
            lanes(mask).all(|lane| last.replace(addresses[lane]).is_none_or(|before: u64| before < addresses[lane]));
        let before = |lane: usize| {
            let earlier = if apart { 0 } else { mask & ((1 << lane) - 1) };
            lanes(earlier).filter(|other| addresses[*other] == addresses[lane]).last()
        };
        let group = view.together(request, mask, addresses);
        let find = |lane: usize, address: u64| match &group {
            Some(group) => Ok(Spot { store: group.store, offset: address.wrapping_sub(group.base) }),
            None => view.locate(request, lane, address),
        };
        // Whether memory holds what a lane has in its registers; the address is that of a lane that stores.
        let is_there = |registers: &Registers, lane: usize, address: u64| {
            let Ok(spot) = find(lane, address) else { return false };
            store.parts.iter().enumerate().all(|(part, register)| {
                let offset = spot.offset + u64::from(part as u32 * store.bytes);
                let value = get(registers, *register, lane) & ones;
                spot.store.is_written(offset, store.bytes) && spot.store.load(offset, store.bytes) == value
            })
        };
        let same = |lane: &usize| match before(*lane) {
            Some(other) => store.parts.iter().all(|part| get(mine, *part, other) == get(mine, *part, *lane)),
            None => is_there(mine, *lane, addresses[*lane]),
        };
        let unchanged = lanes(mask).filter(same).fold(0, |set, lane| set | 1 << lane);
        let differ = |lane: usize, [other, at]: [usize; 2]| {
            let just_now = other == warp && before(lane) == Some(at);
            let address = warps[other].addresses(store.address)[at];
            if address != addresses[lane] || !just_now && !is_there(&warps[other].registers, at, address) {
                return None;
            }
            let both = [(&warps[other].registers, at), (mine, lane)];
            let parts = store.parts.iter().map(|part| unrounded::apart(kernel, *part, both));
            parts.collect::<Option<Vec<f64>>>().map(|parts| parts.into_iter().fold(0.0, f64::max))
        };
        let rounding = Some(Rounding::new(&differ));
        let access = Access { unchanged, rounding, ..Access::new(Kind::Write, store.space, addresses, bytes) };
        if let Some(observer) = observer {
            observer.access(&site(launch, *id, warp, pc, mask), &access);
        }
    }

    fn atomic_values(&mut self, warp: usize, pc: usize, mask: u32, atomic: &Atomic) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(atomic.address);
        let Atomic { space, bytes: element, .. } = *atomic;
        let bytes = element * atomic.parts.len() as u32;
        let request = Request { space, bytes, writes: true, reads: atomic.reads };
        let (view, registers) = self.split(warp);
        let mut changed = false;
        let outcome = lanes(mask).try_for_each(|lane| {
            let spot = view.locate(request, lane, addresses[lane])?;
            for (part, ([b, c], target)) in atomic.parts.iter().zip(&atomic.old).enumerate() {
                let offset = spot.offset + u64::from(part as u32 * element);
                let old = spot.store.load(offset, element);
                let new = (atomic.update)(old, get(registers, *b, lane), get(registers, *c, lane));
                spot.store.store(offset, element, new);
                changed |= new != old;
                if let Some(register) = target {
                    set(registers, *register, lane, old);
                }
                if let Some(Answer { p, holds }) = atomic.answer {
                    let yes = holds(old, get(registers, *b, lane));
                    registers.set_predicate(p, u32::from(yes) << lane, 1 << lane);
                }
            }
            Ok(())
        });
        if space != Space::Shared {
            (self.polls, self.advanced) = if changed { (0, true) } else { (self.polls + 1, self.advanced) };
        }
        outcome.map_err(|failed| self.fault(warp, pc, failed))
    }

    /// The memory and the registers of a warp, side by side.
    pub(super) fn split(&mut self, warp: usize) -> (View<'_>, &mut Registers) {
        let warp = &mut self.warps[warp];
        let view = View {
            memory: self.launch.memory,
            params: self.launch.params,
            shared: &self.shared,
            local: &warp.local,
            checked: self.launch.checked,
        };
        (view, &mut warp.registers)
    }

    /// The memory of a warp alone.
    pub(super) fn view(&self, warp: usize) -> View<'_> {
        View {
            memory: self.launch.memory,
            params: self.launch.params,
            shared: &self.shared,
            local: &self.warps[warp].local,
            checked: self.launch.checked,
        }
    }
}

/// A value of `bytes` bytes with its sign carried on to 64 bits.
pub(super) fn widen(value: u64, bytes: u32) -> u64 {
    let unused = 64 - bytes * 8;
    ((value << unused) as i64 >> unused) as u64
}
