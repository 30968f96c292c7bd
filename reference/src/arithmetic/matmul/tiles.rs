//! The tiles of the product that sums in lanes; what they sum in which order is told in [`super`].

use multiversion::multiversion;
use multiversion::target::match_target;
use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::outer::outer_block;
use super::panels::{GROUP, Lanes, Rows, pack, pad};
use crate::arithmetic::linear::{Bf16, F16, F32, F64};
use crate::{Dtype, Real};

/// The products of one block, compiled (once, in this crate) for the number of lanes of the type.
pub trait Kernels: Copy + Send + Sync {
    /// One vector of lanes.
    type Lanes: Send + Sync;
    /// [`GROUP`] rows or fewer, laid out for the product of many rows.
    fn pack(rows: &[Self], k: usize) -> Vec<Self::Lanes>;
    /// The product of rows `a: [M, K]` and rows `b: [N, K]` in standard layout into `y: [M, N]`; M, N, K > 0.
    /// `b` is one block, small enough for a cache; `tile` a scratch buffer to reuse from call to call.
    fn dot_block(a: &Rows<Self>, b: &[Self], tile: &mut Vec<Self::Lanes>, y: ArrayViewMut2<Self>);
    /// The same with `b` as it is stored. Each of its numbers is widened once.
    fn dot_stored(a: &Rows<Self>, b: &[u8], dtype: Dtype, tile: &mut Vec<Self::Lanes>, y: ArrayViewMut2<Self>);
    /// The product of `a: [M, K]` and `b: [K, N]` added to zeros in `y: [M, N]`, all in standard layout;
    /// M, N, K > 0.
    fn outer_block(a: &[Self], b: &[Self], k: usize, y: &mut [Self]);
}

macro_rules! kernels {
    ($t:ty, lanes: $l:literal) => {
        impl Kernels for $t {
            type Lanes = Lanes<$t, $l>;
            fn pack(rows: &[$t], k: usize) -> Vec<Self::Lanes> {
                let mut panels = Vec::new();
                pack_left::<$t, $l>(rows, k, &mut panels);
                panels
            }
            fn dot_block(a: &Rows<$t>, b: &[$t], tile: &mut Vec<Self::Lanes>, y: ArrayViewMut2<$t>) {
                dot::<$t, Same, $l>(a, b, tile, y);
            }
            fn dot_stored(a: &Rows<$t>, b: &[u8], dtype: Dtype, tile: &mut Vec<Self::Lanes>, y: ArrayViewMut2<$t>) {
                match dtype {
                    Dtype::Bf16 => dot::<$t, Bf16, $l>(a, b.as_chunks().0, tile, y),
                    Dtype::F16 => dot::<$t, F16, $l>(a, b.as_chunks().0, tile, y),
                    Dtype::F32 => dot::<$t, F32, $l>(a, b.as_chunks().0, tile, y),
                    Dtype::F64 => dot::<$t, F64, $l>(a, b.as_chunks().0, tile, y),
                }
            }
            fn outer_block(a: &[$t], b: &[$t], k: usize, y: &mut [$t]) {
                outer_block::<$t, $l>(a, b, k, y);
            }
        }
    };
}

kernels!(f32, lanes: 16);
kernels!(f64, lanes: 8);

/// Up to this many rows of `a`, it does not pay to lay out `b` in panels first.
const FEW_ROWS: usize = 2 * STRIP;

/// How many of a few rows are multiplied at a time.
const STRIP: usize = 4;

/// How many vectors of each row a tile works on at a time: its rows of `a` stay in the first-level cache.
const CHUNK: usize = 64;

/// A format that numbers are stored in, and how one is read as a `T`.
pub(crate) trait Stored<T> {
    /// One number as it is stored.
    type Raw: Copy;
    /// Its value.
    fn widen(raw: Self::Raw) -> T;
}

/// Numbers stored in the type of the computation.
pub(super) struct Same;

impl<T: Real> Stored<T> for Same {
    type Raw = T;
    #[inline(always)]
    fn widen(raw: T) -> T {
        raw
    }
}

/// How many rows of K numbers make a block that, widened, stays in the second-level cache while rows of `a` pass by. It
/// is a multiple of the width of every tile.
pub(crate) fn block_rows<T>(k: usize) -> usize {
    let row = (k * size_of::<T>()).max(1);
    ((1 << 20) / row).clamp(1, 48).next_multiple_of(12)
}

impl<'a, T: Kernels> Rows<'a, T> {
    /// `rows` in standard layout, K numbers each.
    pub(crate) fn new(rows: &'a [T], k: usize) -> Self {
        let groups = if rows.len() <= FEW_ROWS * k {
            Vec::new()
        } else {
            rows.par_chunks(GROUP * k).map(|rows| T::pack(rows, k)).collect()
        };
        Rows { plain: rows, groups, k }
    }
}

/// [`Kernels::dot_stored`] for any number of rows.
fn dot<T: Real + Kernels<Lanes = Lanes<T, L>>, S: Stored<T>, const L: usize>(
    a: &Rows<T>,
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
fn dot_few_rows<T: Real, S: Stored<T>, const L: usize>(a: &[T], b: &[S::Raw], k: usize, mut y: ArrayViewMut2<T>) {
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
fn pack_left<T: Real, const L: usize>(rows: &[T], k: usize, panels: &mut Vec<Lanes<T, L>>) {
    match_target! {
        "x86_64+avx512f" => pack::<T, Same, L, 4>(rows, k, panels),
        _ => pack::<T, Same, L, 2>(rows, k, panels),
    }
}

/// The panels of a block of the right factor: as high as the tiles are wide.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn pack_right<T: Real, S: Stored<T>, const L: usize>(rows: &[S::Raw], k: usize, panels: &mut Vec<Lanes<T, L>>) {
    match_target! {
        "x86_64+avx512f" => pack::<T, S, L, 6>(rows, k, panels),
        _ => pack::<T, S, L, 2>(rows, k, panels),
    }
}

/// The product of two matrices in panels.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn dot_many_rows<T: Real, const L: usize>(a: &[Lanes<T, L>], b: &[Lanes<T, L>], y: ArrayViewMut2<T>) {
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
pub(super) fn dot_strip<T: Real, S: Stored<T>, const L: usize, const R: usize, const C: usize>(
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
fn dot_tile<T: Real, S: Stored<T>, const L: usize, const R: usize, const C: usize>(
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
pub(super) fn dot_panels<T: Real, const L: usize, const R: usize, const C: usize>(
    a: &[Lanes<T, L>],
    b: &[Lanes<T, L>],
    mut y: ArrayViewMut2<T>,
) {
    let (m, n) = y.dim();
    let steps = a.len() / m.next_multiple_of(R);
    let zeros = [[Lanes::zeros(); C]; R];
    let mut sums = vec![zeros; n.div_ceil(C)];
    for (a, mut y) in a.chunks_exact(R * steps).zip(y.axis_chunks_iter_mut(Axis(0), R)) {
        for start in (0..steps).step_by(CHUNK) {
            let end = steps.min(start + CHUNK);
            for (b, sums) in b.chunks_exact(C * steps).zip(&mut sums) {
                let from = if start == 0 { zeros } else { *sums };
                *sums = dot_panel_tile(&a[start * R..end * R], &b[start * C..end * C], from);
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
fn dot_panel_tile<T: Real, const L: usize, const R: usize, const C: usize>(
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

/// x\[l\] y\[l\] + s\[l\], each rounded once.
#[inline(always)]
pub(super) fn fma<T: Real, const L: usize>(x: [T; L], y: [T; L], mut s: [T; L]) -> [T; L] {
    for l in 0..L {
        s[l] = x[l].mul_add(y[l], s[l]);
    }
    s
}

/// The sum of the lanes: the upper half onto the lower half until one is left.
///
/// (Out of line, because compilers turn a loop around it into a slow one over lanes gathered from many sums.)
#[inline(never)]
fn add_lanes<T: Real, const L: usize>(sums: &[T; L]) -> T {
    let mut s = *sums;
    let mut width = L;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            let upper = s[l + width];
            s[l] += upper;
        }
    }
    s[0] + T::zero()
}
