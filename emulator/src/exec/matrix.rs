//! `ldmatrix`, `stmatrix` and `mma.sync` (PTX manual, "Warp Level Matrix Instructions"), which need all 32 lanes.

use super::block::Block;
use super::registers::{FULL, LANES, Registers};
use super::view::{Group, Request, Spot};
use crate::error::Cause;
use crate::lower::instruction::{Address, Factors, Product};
use crate::numeric::{self, fragment, mma};
use crate::observe::{Access, Kind};
use crate::{Error, Space};

impl Block<'_> {
    /// Only a whole warp can do this.
    pub(super) fn whole_warp(&self, warp: usize, pc: usize, lanes: u32) -> Result<(), Error> {
        if lanes == FULL {
            return Ok(());
        }
        Err(self.fault(warp, pc, (lanes.trailing_zeros() as usize % LANES, Cause::PartialWarp { lanes })))
    }

    /// `ldmatrix`: lanes 8 i to 8 i + 7 hold the addresses of the rows of matrix i.
    pub(super) fn load_matrix(
        &mut self,
        warp: usize,
        pc: usize,
        d: &[u32],
        (address, space): (Address, Space),
        transposed: bool,
    ) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(address);
        let rows = d.len() * 8;
        let giving = if rows == LANES { FULL } else { (1 << rows) - 1 };
        let access = Access::new(Kind::Read, space, &addresses, 16);
        self.tell_access(warp, pc, giving, &access);
        let request = Request { space, bytes: 16, writes: false, reads: true };
        let (view, registers) = self.split(warp);
        let mut matrices = [[[0u16; 8]; 8]; 4];
        let mut take = |lane: usize, Spot { store, offset }: Spot<'_>| {
            let mut words = [0; 4];
            store.load_words(offset, 4, &mut words);
            matrices[lane / 8][lane % 8] =
                std::array::from_fn(|column| (words[column / 2] >> (16 * (column % 2))) as u16);
        };
        let outcome = match view.together(request, giving, &addresses) {
            Some(Group { store, base, .. }) => {
                (0..rows).for_each(|lane| take(lane, Spot { store, offset: addresses[lane].wrapping_sub(base) }));
                Ok(())
            }
            None => (0..rows).try_for_each(|lane| {
                take(lane, view.locate(request, lane, addresses[lane])?);
                Ok(())
            }),
        };
        for (slot, matrix) in d.iter().zip(&matrices) {
            registers.put(*slot, &fragment::ldmatrix(matrix, transposed), FULL);
        }
        if self.launch.follow && outcome.is_ok() {
            self.follow_load_matrix((warp, pc), d, (&addresses, space), transposed);
        }
        outcome.map_err(|failed| self.fault(warp, pc, failed))
    }

    /// `stmatrix`: the opposite way.
    pub(super) fn store_matrix(
        &mut self,
        warp: usize,
        pc: usize,
        sources: &[u32],
        (address, space): (Address, Space),
        transposed: bool,
    ) -> Result<(), Error> {
        let addresses = self.warps[warp].addresses(address);
        let rows = sources.len() * 8;
        let giving = if rows == LANES { FULL } else { (1 << rows) - 1 };
        let row_of = |registers: &Registers, lane: usize| {
            fragment::row_of(registers.get::<u32>(sources[lane / 8]), lane % 8, transposed)
        };
        let request = Request { space, bytes: 16, writes: true, reads: false };
        // The rows that are there already, or that an earlier lane stores there.
        let is_there = |lane: &usize| {
            let registers = &self.warps[warp].registers;
            let row = row_of(registers, *lane);
            if let Some(other) = (0..*lane).rev().find(|other| addresses[*other] == addresses[*lane]) {
                return row_of(registers, other) == row;
            }
            let Ok(spot) = self.view(warp).locate(request, *lane, addresses[*lane]) else { return false };
            row.into_iter().enumerate().all(|(pair, word)| {
                let offset = spot.offset + 4 * pair as u64;
                spot.store.is_written(offset, 4) && spot.store.load(offset, 4) == u64::from(word)
            })
        };
        let unchanged = match self.observer.is_some() {
            true => (0..rows).filter(is_there).fold(0, |set, lane| set | 1 << lane),
            false => 0,
        };
        let access = Access { unchanged, ..Access::new(Kind::Write, space, &addresses, 16) };
        self.tell_access(warp, pc, giving, &access);
        let (view, registers) = self.split(warp);
        let outcome = (0..rows).try_for_each(|lane| {
            let spot = view.locate(request, lane, addresses[lane])?;
            for (pair, word) in row_of(registers, lane).into_iter().enumerate() {
                spot.store.store(spot.offset + 4 * pair as u64, 4, u64::from(word));
            }
            Ok(())
        });
        if self.launch.follow && outcome.is_ok() {
            self.follow_store_matrix((warp, pc), sources, (&addresses, space), transposed);
        }
        outcome.map_err(|failed| self.fault(warp, pc, failed))
    }

    /// `mma.sync`
    pub(super) fn matrix_product(&mut self, warp: usize, product: &Product) {
        self.follow_product(warp, product);
        let how = self.launch.summation;
        let registers = &mut self.warps[warp].registers;
        let Product { shape, .. } = *product;
        if let Factors::Doubles(rounding) = product.kind {
            let take = |slots: &[u32]| slots.iter().map(|slot| *registers.get::<u64>(*slot)).collect::<Vec<_>>();
            let d = numeric::product::doubles(shape, rounding, &take(&product.a), &take(&product.b), &take(&product.c));
            product.d.iter().zip(&d).for_each(|(slot, values)| registers.put(*slot, values, FULL));
            return;
        }
        if let Factors::Halves(half) = product.kind {
            let take =
                |slots: &[u32], index: usize| slots.get(index).map_or([0; LANES], |slot| *registers.get::<u32>(*slot));
            let a: [_; 4] = std::array::from_fn(|index| take(&product.a, index));
            let b: [_; 2] = std::array::from_fn(|index| take(&product.b, index));
            let c: [_; 4] = std::array::from_fn(|index| take(&product.c, index));
            let d = match product.a.len() {
                4 => mma::m16n8k16(half, &a, &b, &c, how),
                _ => mma::m16n8k8(half, &[a[0], a[1]], &[b[0]], &c, how),
            };
            product.d.iter().zip(&d).for_each(|(slot, values)| registers.put(*slot, values, FULL));
            return;
        }
        let take = |slots: &[u32]| slots.iter().map(|slot| *registers.get::<u32>(*slot)).collect::<Vec<_>>();
        let (a, b, c) = (take(&product.a), take(&product.b), take(&product.c));
        let d = match product.kind {
            Factors::Floats(types) => numeric::product::floats(shape, types, &a, &b, &c, how),
            Factors::Integers(types) => numeric::product::integers(shape, types, &a, &b, &c),
            Factors::Bits { and } => numeric::product::single_bits(shape, and, &a, &b, &c),
            Factors::Halves(_) | Factors::Doubles(_) => return,
        };
        product.d.iter().zip(&d).for_each(|(slot, values)| registers.put(*slot, values, FULL));
    }
}
