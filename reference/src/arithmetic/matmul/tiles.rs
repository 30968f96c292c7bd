//! The tiles of the product that sums in lanes; what they sum in which order is told in [`super`].

use multiversion::multiversion;
use multiversion::target::match_target;
use ndarray::{ArrayViewMut2, Axis, NdFloat};

use super::lanes::{Lanes, add_lanes, fma, pad};
use super::panels::{GROUP, Rows, pack};
use crate::arithmetic::stored::{Same, Stored};

/// Up to this many rows of `a`, it does not pay to lay out `b` in panels first.
pub(super) const FEW_ROWS: usize = 2 * STRIP;

/// How many of a few rows are multiplied at a time.
const STRIP: usize = 4;

/// How many vectors of each row a tile works on at a time: its rows of `a` stay in the first-level cache.
const CHUNK: usize = 64;

/// The product of rows `a` and one block of rows `b`, which are widened as they are read.
pub(super) fn dot<T: NdFloat, S: Stored<T>, const L: usize>(
    a: &Rows<T, Lanes<T, L>>,
    b: &[S::Raw],
    tile: &mut Vec<Lanes<T, L>>,
    mut y: ArrayViewMut2<T>,
) {
    if a.groups.is_empty() {
        return dot_few_rows::<T, S, L>(a.plain, b, a.k, y);
    }
    pack_right::<T, S, L>(b, a.k, tile);
    for (a, y) in a.groups.iter().zip(y.axis_chunks_iter_mut(Axis(0), GROUP)) {
        dot_many_rows::<T, L>(a, tile, y);
    }
}

/// For a few rows: the numbers of `b` are widened on their way into a tile, by each strip of rows again. (When the
/// second strip comes, the block is in a cache.)
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn dot_few_rows<T: NdFloat, S: Stored<T>, const L: usize>(a: &[T], b: &[S::Raw], k: usize, mut y: ArrayViewMut2<T>) {
    for (a, mut y) in a.chunks(STRIP * k).zip(y.axis_chunks_iter_mut(Axis(0), STRIP)) {
        if a.len() == k {
            dot_strip::<T, S, L, 1, 4>(a, b, k, &mut y);
        } else {
            match_target! {
                "x86_64+avx512f" => dot_strip::<T, S, L, STRIP, 4>(a, b, k, &mut y),
                _ => dot_strip::<T, S, L, STRIP, 1>(a, b, k, &mut y),
            }
        }
    }
}

/// The panels of the left factor: as high as the tiles of [`dot_many_rows`] for the same machine.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn pack_left<T: NdFloat, const L: usize>(rows: &[T], k: usize, panels: &mut Vec<Lanes<T, L>>) {
    match_target! {
        "x86_64+avx512f" => pack::<T, Same, L, 4>(rows, k, panels),
        _ => pack::<T, Same, L, 2>(rows, k, panels),
    }
}

/// The panels of a block of the right factor: as high as the tiles are wide.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn pack_right<T: NdFloat, S: Stored<T>, const L: usize>(rows: &[S::Raw], k: usize, panels: &mut Vec<Lanes<T, L>>) {
    match_target! {
        "x86_64+avx512f" => pack::<T, S, L, 6>(rows, k, panels),
        _ => pack::<T, S, L, 2>(rows, k, panels),
    }
}

/// The product of two matrices in panels.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn dot_many_rows<T: NdFloat, const L: usize>(a: &[Lanes<T, L>], b: &[Lanes<T, L>], y: ArrayViewMut2<T>) {
    match_target! {
        "x86_64+avx512f" => dot_panels::<T, L, 4, 6>(a, b, y), // 24 of 32 registers hold sums
        _ => dot_panels::<T, L, 2, 2>(a, b, y), // 8 of 16 on AVX2, 16 of 32 on NEON
    }
}

/// A few rows of y, at most R. Where fewer rows or columns are left than a tile has, it repeats the last one.
///
/// `b` passes by once, from memory. So a tile's columns lie n/C apart: each is the front of a long stream, and a
/// processor reads ahead in a stream, but not from the end of one row to a row elsewhere.
#[inline(always)]
pub(super) fn dot_strip<T: NdFloat, S: Stored<T>, const L: usize, const R: usize, const C: usize>(
    a: &[T],
    b: &[S::Raw],
    k: usize,
    y: &mut ArrayViewMut2<T>,
) {
    let (m, n) = y.dim();
    let tiles = n.div_ceil(C);
    let row = |of: usize| &a[of.min(m - 1) * k..][..k];
    let column = |of: usize| &b[of.min(n - 1) * k..][..k];
    for j in 0..tiles {
        let sums = dot_tile::<T, S, L, R, C>(std::array::from_fn(row), std::array::from_fn(|c| column(j + c * tiles)));
        for (r, sums) in sums.iter().enumerate().take(m) {
            for (c, sum) in sums.iter().enumerate() {
                if let Some(y) = y.get_mut((r, j + c * tiles)) {
                    *y = add_lanes(sum);
                }
            }
        }
    }
}

/// The lanes of R x C elements, of rows as they are stored.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn dot_tile<T: NdFloat, S: Stored<T>, const L: usize, const R: usize, const C: usize>(
    a: [&[T]; R],
    b: [&[S::Raw]; C],
) -> [[[T; L]; C]; R] {
    let k = a[0].len();
    let mut sums = [[[T::zero(); L]; C]; R];
    let mut x = [[T::zero(); L]; R];
    let mut w = [[T::zero(); L]; C];
    for i in 0..k / L {
        for r in 0..R {
            x[r] = a[r].as_chunks::<L>().0[i];
        }
        for c in 0..C {
            let raw = b[c].as_chunks::<L>().0[i];
            for l in 0..L {
                w[c][l] = S::widen(raw[l]);
            }
        }
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = fma(x[r], w[c], sums[r][c]);
            }
        }
    }
    if !k.is_multiple_of(L) {
        x = a.map(|a| pad::<T, Same, L>(a.as_chunks::<L>().1));
        w = b.map(|b| pad::<T, S, L>(b.as_chunks::<L>().1));
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = fma(x[r], w[c], sums[r][c]);
            }
        }
    }
    sums
}

/// `y: [M, N]` from panels of R rows of `a` and of C rows of `b`. Of `b`, all passes by each chunk of a panel of `a`.
#[inline(always)]
pub(super) fn dot_panels<T: NdFloat, const L: usize, const R: usize, const C: usize>(
    a: &[Lanes<T, L>],
    b: &[Lanes<T, L>],
    mut y: ArrayViewMut2<T>,
) {
    let (m, n) = y.dim();
    let steps = a.len() / m.next_multiple_of(R);
    let zeros = [[Lanes::zeros(); C]; R];
    let mut sums = vec![zeros; n.div_ceil(C)];
    for (a, mut y) in a.chunks_exact(R * steps).zip(y.axis_chunks_iter_mut(Axis(0), R)) {
        // (Not a choice between zeros and sums for each tile: with it, LLVM computes f64 element by element, 4.6 times slower.)
        sums.fill(zeros);
        for start in (0..steps).step_by(CHUNK) {
            let end = steps.min(start + CHUNK);
            let a = &a[start * R..end * R];
            for (b, sums) in b.chunks_exact(C * steps).zip(&mut sums) {
                *sums = dot_panel_tile(a, &b[start * C..end * C], *sums);
            }
        }
        for (r, mut y) in y.rows_mut().into_iter().enumerate() {
            let y = y.as_slice_mut().expect("contiguous rows");
            for (y, sums) in y.chunks_mut(C).zip(&sums) {
                for (y, sum) in y.iter_mut().zip(&sums[r]) {
                    *y = add_lanes(&sum.0);
                }
            }
        }
    }
}

/// Continues the lanes of R x C elements over some steps of two panels.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn dot_panel_tile<T: NdFloat, const L: usize, const R: usize, const C: usize>(
    a: &[Lanes<T, L>],
    b: &[Lanes<T, L>],
    mut sums: [[Lanes<T, L>; C]; R],
) -> [[Lanes<T, L>; C]; R] {
    for (x, w) in a.as_chunks::<R>().0.iter().zip(b.as_chunks::<C>().0) {
        for r in 0..R {
            for c in 0..C {
                sums[r][c].0 = fma(x[r].0, w[c].0, sums[r][c].0);
            }
        }
    }
    sums
}
