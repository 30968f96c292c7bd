//! How the rows of a matrix are laid out for a tile that is several rows high.
//!
//! A tile of [`super::tiles`] takes L numbers of each of its rows, then the next L numbers of each, and so on. Read
//! from the matrix itself, these are jumps from row to row, over bounds of cache lines; so the rows are copied once:
//!
//! ```text
//! rows [M, K]      panels [M / H, K / L, H, L]      panel p, step i, row r, lane l:  rows[p H + r, i L + l]
//! ```
//!
//! A tile then reads two streams of whole cache lines from front to back. The last step of a row is filled up with
//! zeros, which change no sum. The rows that the last panel lacks hold anything: what a tile computes of them is
//! not stored.

use ndarray::NdFloat;

use super::lanes::{Lanes, pad};
use crate::arithmetic::stored::Stored;

/// How many rows are packed at a time, and multiplied before the next ones: a multiple of every H, and few enough
/// for the second-level cache at the usual K.
pub(super) const GROUP: usize = 64;

/// The left factor of a product, M rows of K numbers, as its kernels read it; P is one vector of lanes.
pub struct Rows<'a, T, P> {
    /// In standard layout: read by the kernel for a few rows.
    pub(super) plain: &'a [T],
    /// The panels of [`GROUP`] rows after the other, if there are more than a few rows.
    pub(super) groups: Vec<Vec<P>>,
    pub(super) k: usize,
}

/// Lays out rows of K numbers as panels that are H rows high.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
pub(super) fn pack<T: NdFloat, S: Stored<T>, const L: usize, const H: usize>(
    rows: &[S::Raw],
    k: usize,
    panels: &mut Vec<Lanes<T, L>>,
) {
    let steps = k.div_ceil(L);
    panels.resize((rows.len() / k).div_ceil(H) * H * steps, Lanes::zeros());
    for (rows, panel) in rows.chunks(H * k).zip(panels.chunks_exact_mut(H * steps)) {
        for (r, row) in rows.chunks_exact(k).enumerate() {
            let mut places = panel.as_chunks_mut::<H>().0.iter_mut().map(|step| &mut step[r]);
            let (whole, rest) = row.as_chunks::<L>();
            for (raw, place) in whole.iter().zip(&mut places) {
                for l in 0..L {
                    place.0[l] = S::widen(raw[l]);
                }
            }
            if let Some(place) = places.next() {
                place.0 = pad::<T, S, L>(rest);
            }
        }
    }
}
