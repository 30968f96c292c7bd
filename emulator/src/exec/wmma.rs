//! `wmma`: matrices between memory and fragments, and their products, which are put together of those of `mma`.

use super::block::{Block, Failed};
use super::registers::{FULL, LANES, Register, Registers, get, lanes, set};
use super::view::Request;
use crate::Error;
use crate::error::Cause;
use crate::lower::instruction::Factors;
use crate::lower::wmma::{Placed, Tile, TileProduct};
use crate::numeric::mma::Summation;
use crate::numeric::product::{self, Shape};
use crate::observe::{Access, Kind};

/// A matrix: the bits of its elements.
type Matrix = Vec<Vec<u64>>;

/// The part of a register that lies in memory in one piece: an element, or where these are less than a byte, all of
/// them.
struct Piece {
    register: Register,
    shift: u32,
    bytes: u32,
    addresses: [u64; LANES],
}

fn ones(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

impl Block<'_> {
    /// The pieces of a tile, and where each lane's lies.
    fn pieces(&self, w: usize, placed: &Placed) -> Result<Vec<Piece>, Failed> {
        let Placed { tile, by_rows, .. } = placed;
        let bases = self.warps[w].addresses(placed.address);
        let strides = self.warps[w].registers.get::<u32>(placed.stride);
        let bits = if tile.bits < 8 { tile.width } else { tile.bits };
        // Every row (or column) begins at a multiple of what a lane holds, of 16 bytes at most.
        let aligned = (tile.slots.len() as u64 * u64::from(tile.width) / 8).min(16);
        for lane in 0..LANES {
            let next = bases[lane].wrapping_add(u64::from(strides[lane]) * u64::from(tile.bits) / 8);
            if let Some(address) = [bases[lane], next].into_iter().find(|address| address % aligned != 0) {
                return Err((lane, Cause::Misaligned { space: placed.space, address, bytes: aligned as u32 }));
            }
        }
        let mut pieces = vec![];
        for (number, slot) in tile.slots.iter().enumerate() {
            for shift in (0..tile.width).step_by(bits as usize) {
                let addresses = std::array::from_fn(|lane| {
                    let (row, column) = tile.position(number, lane, (shift / tile.bits) as usize);
                    let (line, at) = if *by_rows { (row, column) } else { (column, row) };
                    let elements = line as u64 * u64::from(strides[lane]) + at as u64;
                    bases[lane].wrapping_add(elements * u64::from(tile.bits) / 8)
                });
                let register = Register { slot: *slot, bits: tile.width };
                pieces.push(Piece { register, shift, bytes: bits / 8, addresses });
            }
        }
        Ok(pieces)
    }

    /// `wmma.load`
    pub(super) fn load_tile(&mut self, w: usize, pc: usize, placed: &Placed) -> Result<(), Error> {
        let pieces = self.pieces(w, placed).map_err(|failed| self.fault(w, pc, failed))?;
        let mut loaded = vec![];
        for piece in &pieces {
            let Piece { bytes, addresses, .. } = piece;
            self.tell_access(w, pc, FULL, &Access::new(Kind::Read, placed.space, addresses, *bytes));
            let request = Request { space: placed.space, bytes: *bytes, writes: false, reads: true };
            let mut values = [0; LANES];
            for (lane, value) in values.iter_mut().enumerate() {
                let spot = self.view(w).locate(request, lane, addresses[lane]);
                let spot = spot.map_err(|failed| self.fault(w, pc, failed))?;
                *value = spot.store.load(spot.offset, *bytes);
            }
            loaded.push(values);
        }
        for slot in &placed.tile.slots {
            let register = Register { slot: *slot, bits: placed.tile.width };
            (0..LANES).for_each(|lane| set(&mut self.warps[w].registers, register, lane, 0));
        }
        for (piece, values) in pieces.iter().zip(&loaded) {
            let registers = &mut self.warps[w].registers;
            for (lane, value) in values.iter().enumerate() {
                let old = get(registers, piece.register, lane);
                set(registers, piece.register, lane, old | value << piece.shift);
            }
        }
        if self.launch.follow {
            let pieces: Vec<_> = pieces.iter().map(|p| (p.register, p.shift, p.bytes, p.addresses)).collect();
            self.follow_load_tile((w, pc), placed, &pieces);
        }
        Ok(())
    }

    /// `wmma.store`
    pub(super) fn store_tile(&mut self, w: usize, pc: usize, placed: &Placed) -> Result<(), Error> {
        let pieces = self.pieces(w, placed).map_err(|failed| self.fault(w, pc, failed))?;
        (self.polls, self.advanced) = (0, true);
        for piece in &pieces {
            let Piece { register, shift, bytes, addresses } = piece;
            let request = Request { space: placed.space, bytes: *bytes, writes: true, reads: false };
            let value = |registers: &Registers, lane| get(registers, *register, lane) >> shift & ones(8 * bytes);
            let is_there = |lane: &usize| {
                let Ok(spot) = self.view(w).locate(request, *lane, addresses[*lane]) else { return false };
                let old = (spot.store.is_written(spot.offset, *bytes), spot.store.load(spot.offset, *bytes));
                old == (true, value(&self.warps[w].registers, *lane))
            };
            let unchanged = match self.observer.is_some() {
                true => lanes(FULL).filter(is_there).fold(0, |set, lane| set | 1 << lane),
                false => 0,
            };
            let access = Access { unchanged, ..Access::new(Kind::Write, placed.space, addresses, *bytes) };
            self.remember(FULL, placed.space, addresses);
            self.tell_access(w, pc, FULL, &access);
            for (lane, address) in addresses.iter().enumerate() {
                let spot = self.view(w).locate(request, lane, *address);
                let spot = spot.map_err(|failed| self.fault(w, pc, failed))?;
                spot.store.store(spot.offset, *bytes, value(&self.warps[w].registers, lane));
            }
            if self.launch.follow {
                self.follow_store_piece((w, pc), request, addresses, (*register, *shift));
            }
        }
        Ok(())
    }

    /// `wmma.mma`
    pub(super) fn tile_product(&mut self, w: usize, product: &TileProduct) {
        self.follow_tile_product(w, product);
        let how = self.launch.summation;
        let registers = &mut self.warps[w].registers;
        let [a, b, c] = [&product.a, &product.b, &product.c].map(|tile| matrix(registers, tile));
        // Products of mma have 8 columns: eight rows by 32 columns are the other way round.
        let d = if product.a.rows == 8 && product.b.columns == 32 {
            transposed(&multiplied(product, [&transposed(&b), &transposed(&a), &transposed(&c)], how))
        } else {
            multiplied(product, [&a, &b, &c], how)
        };
        let Tile { bits, width, slots, .. } = &product.d;
        for (number, slot) in slots.iter().enumerate() {
            for lane in 0..LANES {
                let value = (0..width / bits).fold(0, |value, at| {
                    let (row, column) = product.d.position(number, lane, at as usize);
                    value | d[row][column] << (at * bits)
                });
                set(registers, Register { slot: *slot, bits: *width }, lane, value);
            }
        }
    }
}

/// The elements of a fragment.
fn matrix(registers: &Registers, tile: &Tile) -> Matrix {
    let mut matrix = vec![vec![0; tile.columns]; tile.rows];
    for (number, slot) in tile.slots.iter().enumerate() {
        for lane in 0..LANES {
            let value = get(registers, Register { slot: *slot, bits: tile.width }, lane);
            for at in 0..tile.width / tile.bits {
                let (row, column) = tile.position(number, lane, at as usize);
                matrix[row][column] = value >> (at * tile.bits) & ones(tile.bits);
            }
        }
    }
    matrix
}

fn transposed(matrix: &Matrix) -> Matrix {
    (0..matrix[0].len()).map(|column| matrix.iter().map(|row| row[column]).collect()).collect()
}

/// D of matrices with any number of rows and columns, in products of at most 16 rows and 8 columns.
fn multiplied(product: &TileProduct, [a, b, c]: [&Matrix; 3], how: Summation) -> Matrix {
    let (m, n, k) = (a.len(), b[0].len(), b.len());
    let shape = Shape { m: m.min(16), k };
    let mut d = vec![vec![0; n]; m];
    let (wide, factor) = (product.a.width == 64, product.a.bits);
    // The fragment of a matrix whose element stands at a position.
    let packed = |bits: u32, count: usize, position: &dyn Fn(usize, usize) -> u64| {
        let per = if wide { 1 } else { (32 / bits) as usize };
        let register = |number: usize| {
            let word =
                |lane| (0..per).fold(0, |word, at| word | position(lane, number * per + at) << (at as u32 * bits));
            std::array::from_fn::<u64, LANES, _>(word)
        };
        (0..count / per).map(register).collect::<Vec<_>>()
    };
    let per = if wide { 1 } else { (32 / factor) as usize };
    let [count_a, count_b, count_c] = shape.elements();
    for top in (0..m).step_by(shape.m) {
        for left in (0..n).step_by(8) {
            let a = packed(factor, count_a, &|lane, at| {
                let (row, k) = shape.a_position(per, lane, at);
                a[top + row][k]
            });
            let b = packed(factor, count_b, &|lane, at| {
                let (k, column) = shape.b_position(per, lane, at);
                b[k][left + column]
            });
            let old = packed(product.c.bits, count_c, &|lane, at| {
                let (row, column) = shape.c_position(lane, at);
                c[top + row][left + column]
            });
            let narrow = |registers: &[[u64; LANES]]| -> Vec<[u32; LANES]> {
                registers.iter().map(|row| row.map(|value| value as u32)).collect()
            };
            let widened = |registers: Vec<[u32; LANES]>| -> Vec<[u64; LANES]> {
                registers.into_iter().map(|row| row.map(u64::from)).collect()
            };
            let new = match product.kind {
                Factors::Doubles(rounding) => product::doubles(shape, rounding, &a, &b, &old),
                Factors::Floats(types) => {
                    widened(product::floats(shape, types, &narrow(&a), &narrow(&b), &narrow(&old), how))
                }
                Factors::Integers(types) => {
                    widened(product::integers(shape, types, &narrow(&a), &narrow(&b), &narrow(&old)))
                }
                Factors::Bits { and } => {
                    widened(product::single_bits(shape, and, &narrow(&a), &narrow(&b), &narrow(&old)))
                }
                // Lowering makes none.
                Factors::Halves(_) => old,
            };
            let bits = product.d.bits;
            let per = if wide { 1 } else { (32 / bits) as usize };
            for at in 0..count_c {
                for (lane, word) in new[at / per].iter().enumerate() {
                    let (row, column) = shape.c_position(lane, at);
                    d[top + row][left + column] = word >> ((at % per) as u32 * bits) & ones(bits);
                }
            }
        }
    }
    d
}
