//! Unwritten bytes in the matrices of `wmma`.

use super::Origin;
use super::memory::unknown_bits;
use crate::exec::block::Block;
use crate::exec::registers::{FULL, LANES, Register, get, set};
use crate::exec::view::Request;
use crate::lower::flow::{Cell, Flow};
use crate::lower::wmma::{Placed, Tile, TileProduct};

/// A register, the first bit of the part that lies in memory in one piece, its bytes and where each lane's lies.
type Piece = (Register, u32, u32, [u64; LANES]);

fn cells(tile: &Tile) -> Vec<Cell> {
    tile.slots.iter().map(|slot| Cell::Data(Register { slot: *slot, bits: tile.width })).collect()
}

impl Block<'_> {
    /// After `wmma.load`.
    pub(in crate::exec) fn follow_load_tile(&mut self, (w, pc): (usize, usize), placed: &Placed, pieces: &[Piece]) {
        self.clear(w, FULL, &Flow { writes: cells(&placed.tile), ..Flow::default() });
        if self.launch.words.is_some() {
            return;
        }
        for (register, shift, bytes, addresses) in pieces {
            for (lane, address) in addresses.iter().enumerate() {
                let request = Request { space: placed.space, bytes: *bytes, writes: false, reads: false };
                let Ok(spot) = self.view(w).locate(request, lane, *address) else { continue };
                let (bits, offset) = (unknown_bits(spot.store, spot.offset, *bytes), spot.offset);
                if bits != 0 {
                    let origin = self.origin((w, pc), lane, (placed.space, *address), offset, bits);
                    let before = self.warps[w].unknown.as_ref().map_or(0, |u| get(&u.masks, *register, lane));
                    self.set_unknown(w, lane, *register, before | bits << shift, origin);
                }
            }
        }
    }

    /// After a piece of `wmma.store`.
    pub(in crate::exec) fn follow_store_piece(
        &mut self,
        (w, pc): (usize, usize),
        request: Request,
        addresses: &[u64; LANES],
        (register, shift): (Register, u32),
    ) {
        for (lane, address) in addresses.iter().enumerate() {
            let Some(unknown) = &mut self.warps[w].unknown else { return };
            let lost = get(&unknown.masks, register, lane) >> shift;
            let origin = unknown.origins(Cell::Data(register))[lane];
            self.lose((w, pc, lane), request, (*address, 0, request.bytes), lost, origin);
        }
    }

    /// Before `wmma.mma`: an element of D depends on a row of A, a column of B and an element of C.
    pub(in crate::exec) fn follow_tile_product(&mut self, w: usize, product: &TileProduct) {
        let writes = Flow { writes: cells(&product.d), ..Flow::default() };
        if self.launch.words.is_some() {
            for cell in [&product.a, &product.b, &product.c].into_iter().flat_map(cells) {
                self.use_all(w, FULL, cell);
            }
            return self.clear(w, FULL, &writes);
        }
        let Some(unknown) = &mut self.warps[w].unknown else { return };
        let mut origins = |tile: &Tile| {
            let mut found: Vec<((usize, usize), Origin)> = vec![];
            for (number, slot) in tile.slots.iter().enumerate() {
                let register = Register { slot: *slot, bits: tile.width };
                for lane in 0..LANES {
                    let mask = get(&unknown.masks, register, lane);
                    let origin = unknown.origins(Cell::Data(register))[lane];
                    let ones = u64::MAX >> (64 - tile.bits);
                    let elements = (0..tile.width / tile.bits).filter(|at| mask >> (at * tile.bits) & ones != 0);
                    found.extend(elements.map(|at| (tile.position(number, lane, at as usize), origin)));
                }
            }
            found
        };
        let (a, b, c) = (origins(&product.a), origins(&product.b), origins(&product.c));
        let from = |row: usize, column: usize| {
            let a = a.iter().find(|((r, _), _)| *r == row);
            let b = b.iter().find(|((_, c), _)| *c == column);
            a.or(b).or_else(|| c.iter().find(|(place, _)| *place == (row, column))).map(|(_, origin)| *origin)
        };
        let d = &product.d;
        for (number, slot) in d.slots.iter().enumerate() {
            let register = Register { slot: *slot, bits: d.width };
            for lane in 0..LANES {
                let mut mask = 0;
                for at in 0..d.width / d.bits {
                    let (row, column) = d.position(number, lane, at as usize);
                    if let Some(origin) = from(row, column) {
                        mask |= (u64::MAX >> (64 - d.bits)) << (at * d.bits);
                        unknown.origins(Cell::Data(register))[lane] = origin;
                    }
                }
                set(&mut unknown.masks, register, lane, mask);
            }
        }
    }
}
