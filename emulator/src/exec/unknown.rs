//! Values that depend on bytes which nobody wrote, on their way through the registers of a warp: see
//! [`UnwrittenUse`](crate::UnwrittenUse).
//!
//! Each register has a shadow of the same shape: the bits of it that are not known, and for each lane where they came
//! from. A warp without any has no shadow and pays one comparison for an instruction.
//!
//! In the second run of a watched launch the same is done with values that are known, but were read from certain words:
//! whether they decide anything is asked of each of them by itself ([`Values`]).

mod log;
mod memory;
mod results;
mod values;
mod warp_wide;
mod wmma;

use super::block::Block;
use super::registers::{FULL, LANES, Pred, Register, Registers, get, lanes, set};
use super::specials;
use crate::Space;
use crate::lower::flow::{Cell, Flow, Rule};
use crate::lower::instruction::{Members, Op};
use crate::unwritten::Use;
use log::Found;

pub(crate) use log::Log;
pub(crate) use values::USED;
use values::Values;

/// Where unknown bits come from: the position of a load, plus one, or in a second run the number of a value. Zero for
/// none.
type Origin = u32;

/// What marks the origin of a register that nobody wrote, beside the place where it is read.
pub(super) const REGISTER: Origin = 1 << 31;

/// The shadow of a warp's registers.
#[derive(Debug)]
pub(crate) struct Unknown {
    /// The bits that are not known, in the place of the values.
    masks: Registers,
    narrow: Vec<[Origin; LANES]>,
    wide: Vec<[Origin; LANES]>,
    predicates: Vec<[Origin; LANES]>,
}
impl Unknown {
    fn new(registers: &Registers) -> Self {
        let [narrow, wide, predicates] = [registers.narrow.len(), registers.wide.len(), registers.predicates.len()];
        Self {
            masks: Registers::new(narrow, wide, predicates),
            narrow: vec![[0; LANES]; narrow],
            wide: vec![[0; LANES]; wide],
            predicates: vec![[0; LANES]; predicates],
        }
    }

    /// The shadow as a block begins: there are registers that may be read before they are written.
    pub(super) fn of_unassigned(registers: &Registers, unassigned: &[(Cell, usize)]) -> Option<Box<Self>> {
        let mut unknown = (!unassigned.is_empty()).then(|| Box::new(Self::new(registers)))?;
        for (cell, pc) in unassigned {
            unknown.mark(*cell, FULL, true);
            *unknown.origins(*cell) = [REGISTER | (*pc as Origin + 1); LANES];
        }
        Some(unknown)
    }

    /// Whether everything is known again.
    pub(super) fn is_over(&self) -> bool {
        let Registers { narrow, wide, predicates, .. } = &self.masks;
        narrow.iter().all(|row| *row == [0; LANES])
            && wide.iter().all(|row| *row == [0; LANES])
            && predicates.iter().all(|row| *row == 0)
    }

    /// The lanes in which something of a register is unknown.
    fn lanes_of(&self, cell: Cell) -> u32 {
        let nonzero = |lane: &usize| match cell {
            Cell::Data(register) => get(&self.masks, register, *lane) != 0,
            Cell::Predicate(slot) => self.masks.predicates[slot as usize] >> lane & 1 == 1,
        };
        (0..LANES).filter(nonzero).fold(0, |set, lane| set | 1 << lane)
    }

    fn origins(&mut self, cell: Cell) -> &mut [Origin; LANES] {
        match cell {
            Cell::Data(register) if register.bits > 32 => &mut self.wide[register.slot as usize],
            Cell::Data(register) => &mut self.narrow[register.slot as usize],
            Cell::Predicate(slot) => &mut self.predicates[slot as usize],
        }
    }

    /// Marks all bits of a register in some lanes as unknown, or as known.
    fn mark(&mut self, cell: Cell, lanes_of: u32, unknown: bool) {
        match cell {
            Cell::Data(register) => {
                let mask = if unknown { u64::MAX } else { 0 };
                lanes(lanes_of).for_each(|lane| set(&mut self.masks, register, lane, mask));
            }
            Cell::Predicate(slot) => {
                self.masks.set_predicate(slot, if unknown { FULL } else { 0 }, lanes_of);
            }
        }
    }
}

impl Block<'_> {
    /// Before an instruction of one warp: what becomes of unknown bits, and whether they decide something. `running`
    /// are the lanes that are here, `active` those whose guard holds.
    #[cold]
    pub(in crate::exec) fn follow(&mut self, w: usize, pc: usize, running: u32, active: u32) {
        let instruction = &self.launch.kernel.code[pc];
        let flow = &instruction.flow;
        let Some(unknown) = &self.warps[w].unknown else { return };
        let guarded =
            instruction.guard.map_or(0, |Pred { slot, .. }| unknown.lanes_of(Cell::Predicate(slot)) & running);
        let guard = instruction.guard.map(|guard| Cell::Predicate(guard.slot));
        if let Op::Lanes(run) = &instruction.op {
            // Whether it is executed may not be known: then the result may be the new value or the old one.
            let before = match (guard, &mut self.warps[w].unknown) {
                (Some(guard), Some(unknown)) if guarded != 0 => {
                    let old = flow.writes.iter().map(|cell| (unknown.lanes_of(*cell), *unknown.origins(*cell)));
                    let old: Vec<_> = old.collect();
                    Some((*unknown.origins(guard), old))
                }
                _ => None,
            };
            self.follow_lanes(w, flow, run, active | guarded);
            if let (Some((by, before)), Some(unknown)) = (before, &mut self.warps[w].unknown) {
                for (cell, (old_lanes, old)) in flow.writes.iter().zip(before) {
                    let new_lanes = unknown.lanes_of(*cell);
                    unknown.mark(*cell, guarded, true);
                    let origins = unknown.origins(*cell);
                    for lane in lanes(guarded) {
                        let [new, old] = [(new_lanes, origins[lane]), (old_lanes, old[lane])]
                            .map(|(unknown, origin)| if unknown >> lane & 1 == 1 { origin } else { 0 });
                        let either = self.log.join(new, old);
                        origins[lane] = self.log.join(by[lane], either);
                    }
                }
            }
            return;
        }
        if let Some(guard) = guard {
            self.note(w, pc, guarded, guard, Use::Branch);
        }
        flow.addresses.iter().for_each(|cell| self.note(w, pc, active, *cell, Use::Address));
        let wide = |slot| Cell::Data(Register { slot, bits: 32 });
        match &instruction.op {
            Op::BranchIndex(slot, _) => self.note(w, pc, active, wide(*slot), Use::Branch),
            Op::Barrier(_) => {
                flow.reads.iter().for_each(|cell| self.note(w, pc, active, *cell, Use::Barrier));
                self.clear(w, active, flow);
            }
            Op::Warp(Members::Mask(slot), _) => self.note(w, pc, active, wide(*slot), Use::Barrier),
            Op::Copy(copy) => {
                if let Some(slot) = copy.source_bytes {
                    self.note(w, pc, active, wide(slot), Use::Address);
                }
                if let Some(pred) = copy.ignore {
                    self.note(w, pc, active, Cell::Predicate(pred.slot), Use::Branch);
                }
            }
            _ => {}
        }
    }

    /// What an instruction writes is known.
    fn clear(&mut self, w: usize, active: u32, flow: &Flow) {
        if let Some(unknown) = &mut self.warps[w].unknown {
            flow.writes.iter().for_each(|cell| unknown.mark(*cell, active, false));
        }
    }

    /// Notes that a register with unknown bits decides something in some lanes.
    pub(in crate::exec) fn note(&mut self, w: usize, pc: usize, active: u32, cell: Cell, how: Use) {
        let Some(unknown) = &mut self.warps[w].unknown else { return };
        let deciding = active & unknown.lanes_of(cell);
        if deciding != 0 {
            let origins = *unknown.origins(cell);
            lanes(deciding).for_each(|lane| self.note_lane(w, pc, lane, origins[lane], how));
        }
    }

    fn note_lane(&mut self, w: usize, pc: usize, lane: usize, origin: Origin, how: Use) {
        if let Some(values) = &mut self.log.values {
            return values.use_value(origin);
        }
        let thread = specials::thread(self.launch.block, (w * LANES + lane) as u32);
        let read = self.log.reads.get(&origin).copied().unwrap_or((Space::Generic, 0));
        let first = Found { read, block: self.id, thread, count: 0 };
        self.log.uses.entry((origin, pc, how)).or_insert(first).count += 1;
    }

    /// Arithmetic.
    fn follow_lanes(&mut self, w: usize, flow: &Flow, run: &super::lanes::Lanes, active: u32) {
        let warp = &mut self.warps[w];
        let (Some(unknown), registers) = (&mut warp.unknown, &mut warp.registers) else { return };
        let per_read: Vec<u32> = flow.reads.iter().map(|cell| unknown.lanes_of(*cell) & active).collect();
        let mut touched = per_read.iter().fold(0, |all, lanes| all | lanes);
        if touched == 0 {
            flow.writes.iter().for_each(|cell| unknown.mark(*cell, active, false));
            return;
        }
        let mut origins = [0; LANES];
        for (cell, lanes_of) in flow.reads.iter().zip(&per_read) {
            let from = *unknown.origins(*cell);
            lanes(*lanes_of).for_each(|lane| origins[lane] = self.log.join(origins[lane], from[lane]));
        }
        let mut results = None;
        match flow.rule {
            Rule::Bitwise(data) if per_read.iter().skip(data).all(|lanes| *lanes == 0) => {
                results = results::by_trial(unknown, registers, flow, run, active);
            }
            Rule::Packed => results = results::of_halves(unknown, flow),
            Rule::Gate { by, and } => {
                let known = !unknown.lanes_of(Cell::Predicate(by.slot));
                let decides = if and { !registers.test(by) } else { registers.test(by) };
                touched &= !(known & decides);
            }
            _ => {}
        }
        for (index, cell) in flow.writes.iter().enumerate() {
            unknown.mark(*cell, active, false);
            match (&results, *cell) {
                (None, cell) => unknown.mark(cell, touched, true),
                (Some(results), Cell::Data(register)) => {
                    lanes(touched).for_each(|lane| set(&mut unknown.masks, register, lane, results[index][lane]));
                }
                (Some(results), Cell::Predicate(slot)) => {
                    let bits = lanes(touched).fold(0, |set, lane| set | (results[index][lane] as u32 & 1) << lane);
                    unknown.masks.set_predicate(slot, bits, touched);
                }
            }
            let target = unknown.origins(*cell);
            lanes(touched).for_each(|lane| target[lane] = origins[lane]);
        }
    }
}
