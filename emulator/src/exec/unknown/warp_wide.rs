//! Unwritten bytes in warp-wide instructions: matrices, shuffles, votes and the like.

use super::memory::unknown_bits;
use super::{Origin, Unknown};
use crate::Space;
use crate::exec::block::Block;
use crate::exec::collective;
use crate::exec::registers::{FULL, LANES, Register, Registers, get, lanes, set};
use crate::exec::view::Request;
use crate::lower::flow::{Cell, Flow};
use crate::lower::instruction::{Collective, Factors, Op, Product, Vote};
use crate::numeric::fragment;

impl Block<'_> {
    /// After `ldmatrix`.
    pub(in crate::exec) fn follow_load_matrix(
        &mut self,
        (w, pc): (usize, usize),
        d: &[u32],
        (addresses, space): (&[u64; LANES], Space),
        transposed: bool,
    ) {
        if self.log.values.is_some() {
            let writes = d.iter().map(|slot| Cell::Data(Register { slot: *slot, bits: 32 })).collect();
            return self.clear(w, FULL, &Flow { writes, ..Flow::default() });
        }
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
    pub(in crate::exec) fn follow_store_matrix(
        &mut self,
        (w, pc): (usize, usize),
        sources: &[u32],
        (addresses, space): (&[u64; LANES], Space),
        transposed: bool,
    ) {
        if self.log.values.is_some() {
            return sources
                .iter()
                .for_each(|slot| self.use_all(w, FULL, Cell::Data(Register { slot: *slot, bits: 32 })));
        }
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

    /// In a second run: what some lanes hold in a register goes to other lanes, and counts as used.
    pub(super) fn use_all(&mut self, w: usize, mask: u32, cell: Cell) {
        if let (Some(unknown), Some(values)) = (&mut self.warps[w].unknown, &mut self.log.values) {
            let followed = unknown.lanes_of(cell) & mask;
            let origins = *unknown.origins(cell);
            lanes(followed).for_each(|lane| values.use_value(origins[lane]));
        }
    }

    /// Before `movmatrix`: where the bits go, those that are not known go too.
    pub(in crate::exec) fn follow_move_matrix(&mut self, w: usize, d: u32, a: u32) {
        let cell = |slot| Cell::Data(Register { slot, bits: 32 });
        if self.log.values.is_some() {
            self.use_all(w, FULL, cell(a));
            return self.clear(w, FULL, &Flow { writes: vec![cell(d)], ..Flow::default() });
        }
        let Some(unknown) = &mut self.warps[w].unknown else { return };
        let masks = *unknown.masks.get::<u32>(a);
        let origin = unknown.narrow[a as usize].iter().copied().find(|origin| *origin != 0).unwrap_or(0);
        let rows: [_; 8] = std::array::from_fn(|row| fragment::row_of(&masks, row, true));
        let moved = std::array::from_fn(|lane| rows[lane / 4][lane % 4]);
        unknown.masks.put::<u32>(d, &moved, FULL);
        unknown.narrow[d as usize] = [origin; LANES];
    }

    /// Before a warp-wide instruction that needs the registers only.
    pub(in crate::exec) fn follow_collective(&mut self, w: usize, mask: u32, collective: &Collective, flow: &Flow) {
        // The matrix instructions look after themselves.
        if matches!(
            collective,
            Collective::LoadMatrix { .. }
                | Collective::StoreMatrix { .. }
                | Collective::MoveMatrix { .. }
                | Collective::MatrixProduct(_)
                | Collective::LoadTile(_)
                | Collective::StoreTile(_)
                | Collective::TileProduct(_)
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
            Collective::Shuffle { d, valid, a, lane: select, clamp, .. }
                if ![select, clamp].contains(&a)
                    && flow.reads.iter().all(|cell| {
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
            _ if self.log.values.is_some() => {
                flow.reads.iter().for_each(|cell| self.use_all(w, mask, *cell));
                self.clear(w, mask, flow);
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

    /// After a shuffle: what comes from lanes that do not take part is not known.
    pub(in crate::exec) fn follow_strangers(&mut self, (w, pc): (usize, usize), strangers: &[(usize, u32)]) {
        let Op::Warp(_, Collective::Shuffle { d, .. }) = &self.launch.kernel.code[pc].op else { return };
        if self.launch.follow && self.launch.words.is_none() {
            for (lane, _) in strangers {
                self.set_unknown(w, *lane, Register { slot: *d, bits: 32 }, u64::MAX, pc as Origin + 1);
            }
        }
    }

    /// Before a matrix product: an element of D depends on a row of A, a column of B and an element of C.
    pub(in crate::exec) fn follow_product(&mut self, w: usize, product: &Product) {
        let wide = matches!(product.kind, Factors::Doubles(_));
        if self.log.values.is_some() {
            let cell = |slot: &u32| Cell::Data(Register { slot: *slot, bits: if wide { 64 } else { 32 } });
            for slot in product.a.iter().chain(&product.b).chain(&product.c) {
                self.use_all(w, FULL, cell(slot));
            }
            return self.clear(w, FULL, &Flow { writes: product.d.iter().map(cell).collect(), ..Flow::default() });
        }
        let Some(unknown) = &mut self.warps[w].unknown else { return };
        let (bits, sum_bits) = match product.kind {
            Factors::Doubles(_) => (64, [64; 2]),
            Factors::Halves(_) => (16, [32; 2]),
            Factors::Floats(types) => (types.factors[0].bits(), types.half.map(|half| if half { 16 } else { 32 })),
            Factors::Integers(types) => (types.bits, [32; 2]),
            Factors::Bits { .. } => (1, [32; 2]),
        };
        let width = if wide { 64 } else { 32 };
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
