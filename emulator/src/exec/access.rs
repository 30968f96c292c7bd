//! `ld`, `st`, `atom` and `red`: the one place where the lanes of a warp touch memory.

use super::block::Block;
use super::registers::{LANES, Registers, get, lanes, set};
use super::unrounded::Unrounded;
use super::view::{Request, View};
use crate::lower::instruction::{Answer, Atomic, Load, Store};
use crate::memory::address;
use crate::observe::{Access, Kind, Observer, Rounded};
use crate::{Error, Space};

impl<O: Observer> Block<'_, O> {
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
        values: Option<&[u32; LANES]>,
    ) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(load.address);
        let bytes = load.bytes * load.parts.len() as u32;
        let request = Request { space: load.space, bytes, writes: false, reads: true };
        if load.polls {
            self.polls += 1;
        }
        let access = Access { values, ..Access::new(Kind::Read, load.space, &addresses, bytes) };
        self.tell_access(warp, pc, mask, &access);
        let (view, registers) = self.split(warp);
        if let Some((memory, base)) = view.together(request, mask, &addresses) {
            for (part, register) in load.parts.iter().enumerate() {
                let Some(register) = register else { continue };
                let start = base.wrapping_sub(u64::from(part as u32 * load.bytes));
                if (register.bits, load.bytes) == (32, 4) {
                    let row = registers.get_mut::<u32>(register.slot);
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
        let (unchanged, pairs) = if O::ACTIVE { self.unchanged(warp, mask, store, &addresses) } else { (0, vec![]) };
        let rounded = if pairs.is_empty() { None } else { Some(self.rounded(warp, store, &pairs)) };
        let rounded = rounded.as_ref();
        let access = Access { unchanged, rounded, ..Access::new(Kind::Write, store.space, &addresses, bytes) };
        self.remember(mask, store.space, &addresses);
        self.tell_access(warp, pc, mask, &access);
        let (view, registers) = self.split(warp);
        if let Some((memory, base)) = view.together(request, mask, &addresses) {
            for (part, register) in store.parts.iter().enumerate() {
                let start = base.wrapping_sub(u64::from(part as u32 * store.bytes));
                if (register.bits, store.bytes) == (32, 4) {
                    let row = registers.get::<u32>(register.slot);
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
        if O::REPEATS && self.launch.words.is_none() && matches!(space, Space::Global | Space::Generic) {
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

    /// The lanes that store what is there already, or what an earlier lane of the same instruction stores there; and
    /// pairs of lanes, the earlier first, that store different values there.
    fn unchanged(&self, warp: usize, mask: u32, store: &Store, addresses: &[u64; LANES]) -> (u32, Vec<[usize; 2]>) {
        let registers = &self.warps[warp].registers;
        let view = self.view(warp);
        let bytes = store.bytes * store.parts.len() as u32;
        let request = Request { space: store.space, bytes, writes: true, reads: false };
        let mut different = vec![];
        let mut same = |lane: usize| {
            let before = lanes(mask & ((1 << lane) - 1)).filter(|other| addresses[*other] == addresses[lane]).last();
            if let Some(other) = before {
                let equal = store.parts.iter().all(|part| get(registers, *part, other) == get(registers, *part, lane));
                if !equal {
                    different.push([other, lane]);
                }
                return equal;
            }
            let Ok(spot) = view.locate(request, lane, addresses[lane]) else { return false };
            let ones = u64::MAX >> (64 - 8 * store.bytes);
            store.parts.iter().enumerate().all(|(part, register)| {
                let offset = spot.offset + u64::from(part as u32 * store.bytes);
                let new = get(registers, *register, lane) & ones;
                spot.store.is_written(offset, store.bytes) && spot.store.load(offset, store.bytes) == new
            })
        };
        let unchanged = lanes(mask).fold(0, |set, lane| set | u32::from(same(lane)) << lane);
        (unchanged, different)
    }

    /// The second lanes of pairs that store what the first lane stores, but for rounding.
    #[cold]
    fn rounded(&mut self, warp: usize, store: &Store, pairs: &[[usize; 2]]) -> Rounded {
        let mut rounded = Rounded::default();
        let mut exact = Unrounded::new(self.launch.kernel, &mut self.warps[warp].registers);
        for pair in pairs {
            let apart = store.parts.iter().map(|part| exact.apart(*part, *pair));
            if let Some(apart) = apart.collect::<Option<Vec<f64>>>() {
                rounded.lanes |= 1 << pair[1];
                rounded.apart[pair[1]] = apart.into_iter().fold(0.0, f64::max);
            }
        }
        rounded
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
