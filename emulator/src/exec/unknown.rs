//! Values that depend on bytes which nobody wrote, on their way through the registers of a warp: see
//! [`UnwrittenUse`](crate::UnwrittenUse).
//!
//! Each register has a shadow of the same shape: the bits of it that are not known, and for each lane where they came
//! from. A warp without any has no shadow and pays one comparison for an instruction.

use std::collections::HashMap;

use super::access::widen;
use super::block::Block;
use super::collective;
use super::registers::{FULL, LANES, Pred, Register, Registers, get, lanes, set};
use super::specials;
use super::view::Request;
use crate::Space;
use crate::lower::flow::{Cell, Flow, Rule};
use crate::lower::instruction::{Atomic, Collective, Factors, Load, Members, Op, Product, Store, Vote};
use crate::memory::address;
use crate::memory::store::Store as Memory;
use crate::numeric::fragment;
use crate::observe::Observer;
use crate::unwritten::{UnwrittenUse, Use};

/// Where unknown bits come from: the position of a load, plus one. Zero for none.
type Origin = u32;

/// The shadow of a warp's registers.
#[derive(Debug)]
pub(crate) struct Unknown {
    /// The bits that are not known, in the place of the values.
    masks: Registers,
    narrow: Vec<[Origin; LANES]>,
    wide: Vec<[Origin; LANES]>,
    predicates: Vec<[Origin; LANES]>,
}

/// What a block remembers of unwritten bytes, and what it has printed.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// What the first thread read at a load.
    reads: HashMap<Origin, (Space, u64)>,
    /// Where values came from that were stored although they are unknown, by space and word.
    stored: HashMap<u64, Origin>,
    /// By the place of the load, the place of the use and its sort: the first, and how many.
    pub(crate) uses: HashMap<(Origin, usize, Use), Found>,
    /// What was printed, by block.
    pub(crate) printed: Vec<([u32; 3], String)>,
}

/// The first use of a sort.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    read: (Space, u64),
    block: [u32; 3],
    thread: [u32; 3],
    count: u64,
}

impl Log {
    /// Forgets what was in the memory of a block.
    pub(crate) fn begin_block(&mut self) {
        self.stored.retain(|key, _| key & GLOBAL != 0);
    }

    /// Adds what another thread of the host has found. `order` tells which of two blocks comes first.
    pub(crate) fn add(&mut self, other: Self) {
        self.printed.extend(other.printed);
        let order = |found: &Found| (found.block[2], found.block[1], found.block[0], found.thread);
        for (key, found) in other.uses {
            match self.uses.get_mut(&key) {
                None => {
                    self.uses.insert(key, found);
                }
                Some(mine) => {
                    let count = mine.count + found.count;
                    *mine = if order(&found) < order(mine) { found } else { *mine };
                    mine.count = count;
                }
            }
        }
    }

    /// What was printed, the first block first.
    pub(crate) fn printed(&self) -> String {
        let mut all: Vec<_> = self.printed.iter().collect();
        all.sort_by_key(|([x, y, z], _)| (*z, *y, *x));
        all.into_iter().map(|(_, text)| text.as_str()).collect()
    }

    /// What is told of it, in the order of the kernel's text.
    pub(crate) fn report(&self, kernel: &crate::lower::Kernel) -> Vec<UnwrittenUse> {
        let mut all: Vec<_> = self.uses.iter().collect();
        all.sort_by_key(|((origin, pc, how), _)| (*pc, *origin, *how));
        let told = all.into_iter().map(|((origin, pc, how), found)| {
            let Found { read: (space, address), block, thread, count } = *found;
            let read = kernel.place(*origin as usize - 1);
            UnwrittenUse { read, space, address, used: kernel.place(*pc), how: *how, block, thread, count }
        });
        told.collect()
    }
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

impl<O: Observer> Block<'_, O> {
    /// Before an instruction of one warp: what becomes of unknown bits, and whether they decide something. `running`
    /// are the lanes that are here, `active` those whose guard holds.
    pub(super) fn follow(&mut self, w: usize, pc: usize, running: u32, active: u32) {
        let instruction = &self.launch.kernel.code[pc];
        let flow = &instruction.flow;
        let Some(unknown) = &self.warps[w].unknown else { return };
        let guarded =
            instruction.guard.map_or(0, |Pred { slot, .. }| unknown.lanes_of(Cell::Predicate(slot)) & running);
        let guard = instruction.guard.map(|guard| Cell::Predicate(guard.slot));
        if let Op::Lanes(run) = &instruction.op {
            self.follow_lanes(w, flow, run, active);
            if let (Some(guard), Some(unknown)) = (guard, &mut self.warps[w].unknown)
                && guarded != 0
            {
                // Whether it was executed is not known, so neither is the result.
                let from = *unknown.origins(guard);
                for cell in &flow.writes {
                    unknown.mark(*cell, guarded, true);
                    let origins = unknown.origins(*cell);
                    lanes(guarded).for_each(|lane| origins[lane] = from[lane]);
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
    pub(super) fn note(&mut self, w: usize, pc: usize, active: u32, cell: Cell, how: Use) {
        let Some(unknown) = &mut self.warps[w].unknown else { return };
        let deciding = active & unknown.lanes_of(cell);
        if deciding != 0 {
            let origins = *unknown.origins(cell);
            lanes(deciding).for_each(|lane| self.note_lane(w, pc, lane, origins[lane], how));
        }
    }

    fn note_lane(&mut self, w: usize, pc: usize, lane: usize, origin: Origin, how: Use) {
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
            lanes(*lanes_of).filter(|lane| origins[*lane] == 0).collect::<Vec<_>>().into_iter().for_each(|lane| {
                origins[lane] = from[lane];
            });
        }
        let mut results = None;
        match flow.rule {
            Rule::Bitwise(data) if per_read.iter().skip(data).all(|lanes| *lanes == 0) => {
                results = try_all(unknown, registers, flow, run, active);
            }
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

    /// After a load of some lanes: which bits of its registers nobody wrote.
    pub(super) fn follow_load(&mut self, (w, pc): (usize, usize), mask: u32, load: &Load, addresses: &[u64; LANES]) {
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

    /// Marks bits of a register as unknown.
    fn set_unknown(&mut self, w: usize, lane: usize, register: Register, mask: u64, origin: Origin) {
        let warp = &mut self.warps[w];
        let unknown = warp.unknown.get_or_insert_with(|| Box::new(Unknown::new(&warp.registers)));
        set(&mut unknown.masks, register, lane, mask);
        unknown.origins(Cell::Data(register))[lane] = origin;
    }

    /// Where unwritten bytes come from: from here, or from where those were read that were stored there.
    fn origin(
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
    pub(super) fn follow_store(&mut self, (w, pc): (usize, usize), mask: u32, store: &Store, addresses: &[u64; LANES]) {
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
    fn lose(
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
    pub(super) fn follow_atomic(
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
            let before = unknown_bits(spot.store, offset, atomic.bytes);
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
                        origin = origin.or(Some(unknown.origins(Cell::Data(register))[lane]));
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
    pub(super) fn lose_atomic(
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
    pub(super) fn follow_copy_source(
        &mut self,
        (w, pc): (usize, usize),
        lane: usize,
        address: u64,
        bytes: u32,
    ) -> (u16, Origin) {
        let (mut lost, mut origin) = (0, 0);
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
    pub(super) fn follow_landing(&mut self, target: u64, (lost, origin): (u16, Origin)) {
        for at in (0..16).filter(|at| lost >> at & 1 == 1) {
            self.shared.forget(target + at, 1);
            self.log.stored.insert(key(Space::Shared, (0, 0), 0, target + at), origin);
        }
    }

    /// After `ldmatrix`.
    pub(super) fn follow_load_matrix(
        &mut self,
        (w, pc): (usize, usize),
        d: &[u32],
        (addresses, space): (&[u64; LANES], Space),
        transposed: bool,
    ) {
        for (matrix, slot) in d.iter().enumerate() {
            let (mut masks, mut origins) = ([[0u16; 8]; 8], [0; 8]);
            for row in 0..8 {
                let lane = 8 * matrix + row;
                let request = Request { space, bytes: 16, writes: false, reads: false };
                let Ok(spot) = self.view(w).locate(request, lane, addresses[lane]) else { continue };
                let offset = spot.offset;
                let bits: [u64; 8] = std::array::from_fn(|at| unknown_bits(spot.store, offset + 2 * at as u64, 2));
                for (column, bits) in bits.into_iter().enumerate().filter(|(_, bits)| *bits != 0) {
                    masks[row][column] = bits as u16;
                    let at = 2 * column as u64;
                    origins[row] = self.origin((w, pc), lane, (space, addresses[lane] + at), offset + at, bits);
                }
            }
            let register = Register { slot: *slot, bits: 32 };
            self.clear(w, FULL, &Flow { writes: vec![Cell::Data(register)], ..Flow::default() });
            for (lane, mask) in fragment::ldmatrix(&masks, transposed).into_iter().enumerate().filter(|(_, m)| *m != 0)
            {
                let element = usize::from(mask & 0xffff == 0);
                let (row, _) = fragment::ldmatrix_position(lane, element, transposed);
                self.set_unknown(w, lane, register, u64::from(mask), origins[row]);
            }
        }
    }

    /// After `stmatrix`.
    pub(super) fn follow_store_matrix(
        &mut self,
        (w, pc): (usize, usize),
        sources: &[u32],
        (addresses, space): (&[u64; LANES], Space),
        transposed: bool,
    ) {
        for lane in 0..8 * sources.len() {
            let Some(unknown) = &self.warps[w].unknown else { return };
            let slot = sources[lane / 8];
            let words = fragment::row_of(unknown.masks.get::<u32>(slot), lane % 8, transposed);
            let origin = unknown.narrow[slot as usize].iter().copied().find(|origin| *origin != 0).unwrap_or(0);
            let request = Request { space, bytes: 16, writes: true, reads: false };
            for (pair, word) in words.into_iter().enumerate() {
                self.lose((w, pc, lane), request, (addresses[lane], 4 * pair as u32, 4), u64::from(word), origin);
            }
        }
    }

    /// Before `movmatrix`: where the bits go, those that are not known go too.
    pub(super) fn follow_move_matrix(&mut self, w: usize, d: u32, a: u32) {
        let Some(unknown) = &mut self.warps[w].unknown else { return };
        let masks = *unknown.masks.get::<u32>(a);
        let origin = unknown.narrow[a as usize].iter().copied().find(|origin| *origin != 0).unwrap_or(0);
        let rows: [_; 8] = std::array::from_fn(|row| fragment::row_of(&masks, row, true));
        let moved = std::array::from_fn(|lane| rows[lane / 4][lane % 4]);
        unknown.masks.put::<u32>(d, &moved, FULL);
        unknown.narrow[d as usize] = [origin; LANES];
    }

    /// Before a warp-wide instruction that needs the registers only.
    pub(super) fn follow_collective(&mut self, w: usize, mask: u32, collective: &Collective, flow: &Flow) {
        // The matrix instructions look after themselves.
        if matches!(
            collective,
            Collective::LoadMatrix { .. }
                | Collective::StoreMatrix { .. }
                | Collective::MoveMatrix { .. }
                | Collective::MatrixProduct(_)
        ) {
            return;
        }
        let warp = &mut self.warps[w];
        let Some(unknown) = &mut warp.unknown else { return };
        let touched = flow.reads.iter().fold(0, |all, cell| all | unknown.lanes_of(*cell)) & mask;
        if touched == 0 {
            flow.writes.iter().for_each(|cell| unknown.mark(*cell, mask, false));
            return;
        }
        let first = flow.reads.iter().find(|cell| unknown.lanes_of(**cell) & mask != 0);
        let Some(first) = first.copied() else { return };
        let from = *unknown.origins(first);
        let origin = from[(unknown.lanes_of(first) & mask).trailing_zeros() as usize % LANES];
        let data = |slot| Cell::Data(Register { slot, bits: 32 });
        match *collective {
            // The masks travel as the values do, and so do the origins, if the lanes are known.
            Collective::Shuffle { d, valid, a, .. }
                if flow.reads.iter().all(|cell| {
                    matches!(cell, Cell::Data(r) if r.slot == a) || unknown.lanes_of(*cell) & mask == 0
                }) =>
            {
                let registers = &mut warp.registers;
                let travel = |values: [u32; LANES], kept: &mut Registers| {
                    let (old_a, old_d) = (*kept.get::<u32>(a), *kept.get::<u32>(d));
                    *kept.get_mut::<u32>(a) = values;
                    collective::run(kept, mask, collective);
                    let out = *kept.get::<u32>(d);
                    *kept.get_mut::<u32>(d) = old_d;
                    *kept.get_mut::<u32>(a) = old_a;
                    out
                };
                let masks = travel(*unknown.masks.get::<u32>(a), registers);
                let origins = travel(unknown.narrow[a as usize], registers);
                unknown.masks.put(d, &masks, mask);
                lanes(mask).for_each(|lane| unknown.narrow[d as usize][lane] = origins[lane]);
                if let Some(valid) = valid {
                    unknown.mark(Cell::Predicate(valid), mask, false);
                }
            }
            Collective::Vote { mode, d, source } => {
                let unsure = unknown.lanes_of(Cell::Predicate(source.slot)) & mask;
                let (yes, sure) = (warp.registers.test(source), mask & !unsure);
                let known = match mode {
                    Vote::Ballot => false,
                    Vote::All => sure & !yes != 0,
                    Vote::Any => sure & yes != 0,
                    Vote::Uniform => sure & !yes != 0 && sure & yes != 0,
                };
                let cell = if matches!(mode, Vote::Ballot) { data(d) } else { Cell::Predicate(d) };
                unknown.mark(cell, mask, !known);
                if matches!(mode, Vote::Ballot) {
                    unknown.masks.put(d, &[unsure; LANES], mask);
                }
                let origins = unknown.origins(cell);
                lanes(mask).for_each(|lane| origins[lane] = origin);
            }
            _ => {
                for cell in &flow.writes {
                    unknown.mark(*cell, mask, true);
                    let origins = unknown.origins(*cell);
                    lanes(mask).for_each(|lane| origins[lane] = origin);
                }
            }
        }
    }

    /// Before a matrix product: an element of D depends on a row of A, a column of B and an element of C.
    pub(super) fn follow_product(&mut self, w: usize, product: &Product) {
        let Some(unknown) = &mut self.warps[w].unknown else { return };
        let (bits, sum_bits) = match product.kind {
            Factors::Doubles(_) => (64, [64; 2]),
            Factors::Halves(_) => (16, [32; 2]),
            Factors::Floats(types) => (types.factors[0].bits(), types.half.map(|half| if half { 16 } else { 32 })),
            Factors::Integers(types) => (types.bits, [32; 2]),
            Factors::Bits { .. } => (1, [32; 2]),
        };
        let width = if bits == 64 { 64 } else { 32 };
        let per = (width / bits) as usize;
        let shape = product.shape;
        let (mut rows, mut columns) = ([0; 16], [0; 8]);
        let mut look = |slots: &[u32], a: bool, unknown: &mut Unknown| {
            for (index, slot) in slots.iter().enumerate() {
                let cell = Cell::Data(Register { slot: *slot, bits: width });
                for lane in lanes(unknown.lanes_of(cell)) {
                    let Cell::Data(register) = cell else { continue };
                    let (mask, origin) = (get(&unknown.masks, register, lane), unknown.origins(cell)[lane]);
                    let ones = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                    for element in (0..per).filter(|part| mask >> (*part as u32 * bits % 64) & ones != 0) {
                        let at = index * per + element;
                        if a {
                            rows[shape.a_position(per, lane, at).0] = origin;
                        } else {
                            columns[shape.b_position(per, lane, at).1] = origin;
                        }
                    }
                }
            }
        };
        look(&product.a, true, unknown);
        look(&product.b, false, unknown);
        let count = shape.elements()[2];
        let mut old = vec![[0; LANES]; count];
        let place = |slots: &[u32], index: usize, sum_bits: u32| {
            let per = (width / sum_bits) as usize;
            let register = Register { slot: slots[index / per], bits: width };
            let shift = (index % per) as u32 * sum_bits;
            let ones = if sum_bits == 64 { u64::MAX } else { ((1 << sum_bits) - 1) << shift };
            (register, ones)
        };
        for (index, old) in old.iter_mut().enumerate() {
            let (register, ones) = place(&product.c, index, sum_bits[0]);
            for (lane, old) in old.iter_mut().enumerate() {
                if get(&unknown.masks, register, lane) & ones != 0 {
                    *old = unknown.origins(Cell::Data(register))[lane];
                }
            }
        }
        for slot in &product.d {
            unknown.mark(Cell::Data(Register { slot: *slot, bits: width }), FULL, false);
        }
        for (index, old) in old.iter().enumerate() {
            let (register, ones) = place(&product.d, index, sum_bits[1]);
            for (lane, old) in old.iter().enumerate() {
                let (row, column) = shape.c_position(lane, index);
                let origin = [rows[row], columns[column], *old].into_iter().find(|origin| *origin != 0);
                if let Some(origin) = origin {
                    let mask = get(&unknown.masks, register, lane) | ones;
                    set(&mut unknown.masks, register, lane, mask);
                    unknown.origins(Cell::Data(register))[lane] = origin;
                }
            }
        }
    }
}

/// The bits of at most 8 bytes that nobody wrote.
fn unknown_bits(store: &Memory, offset: u64, bytes: u32) -> u64 {
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

const GLOBAL: u64 = 1 << 58;
const LOCAL: u64 = 1 << 60;

/// The bits of each result that change when all unknown bits of each source are zeros or ones, in every combination;
/// `None` if there are too many sources.
fn try_all(
    unknown: &Unknown,
    registers: &mut Registers,
    flow: &Flow,
    run: &super::lanes::Lanes,
    active: u32,
) -> Option<Vec<[u64; LANES]>> {
    let mut sources: Vec<Cell> = vec![];
    for cell in &flow.reads {
        if unknown.lanes_of(*cell) & active != 0 && !sources.iter().any(|other| is_same(*other, *cell)) {
            sources.push(*cell);
        }
    }
    if sources.len() > 4 {
        return None;
    }
    let read = |registers: &Registers, cell: Cell| -> [u64; LANES] {
        std::array::from_fn(|lane| match cell {
            Cell::Data(register) => get(registers, register, lane),
            Cell::Predicate(slot) => u64::from(registers.predicates[slot as usize] >> lane & 1),
        })
    };
    let write = |registers: &mut Registers, cell: Cell, values: &[u64; LANES]| match cell {
        Cell::Data(register) => (0..LANES).for_each(|lane| set(registers, register, lane, values[lane])),
        Cell::Predicate(slot) => {
            registers.predicates[slot as usize] =
                (0..LANES).fold(0, |bits, lane| bits | (values[lane] as u32 & 1) << lane);
        }
    };
    let touched: Vec<Cell> = sources.iter().chain(&flow.writes).copied().collect();
    let saved: Vec<[u64; LANES]> = touched.iter().map(|cell| read(registers, *cell)).collect();
    let mut first: Option<Vec<[u64; LANES]>> = None;
    let mut changed = vec![[0; LANES]; flow.writes.len()];
    for combination in 0..1u32 << sources.len() {
        touched.iter().zip(&saved).for_each(|(cell, values)| write(registers, *cell, values));
        for (index, cell) in sources.iter().enumerate() {
            let (masks, values) = (read(&unknown.masks, *cell), saved[index]);
            let ones = if combination >> index & 1 == 1 { u64::MAX } else { 0 };
            let tried = std::array::from_fn(|lane| values[lane] & !masks[lane] | masks[lane] & ones);
            write(registers, *cell, &tried);
        }
        run(registers, active);
        let results: Vec<[u64; LANES]> = flow.writes.iter().map(|cell| read(registers, *cell)).collect();
        let base = first.get_or_insert_with(|| results.clone());
        for ((changed, result), base) in changed.iter_mut().zip(&results).zip(base.iter()) {
            (0..LANES).for_each(|lane| changed[lane] |= result[lane] ^ base[lane]);
        }
    }
    touched.iter().zip(&saved).for_each(|(cell, values)| write(registers, *cell, values));
    Some(changed)
}

fn is_same(a: Cell, b: Cell) -> bool {
    match (a, b) {
        (Cell::Data(a), Cell::Data(b)) => a.slot == b.slot && (a.bits > 32) == (b.bits > 32),
        (Cell::Predicate(a), Cell::Predicate(b)) => a == b,
        _ => false,
    }
}
