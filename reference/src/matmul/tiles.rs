//! The tiles and strips under the two products; what they sum in which order is told in [`super`].

use std::ops::Range;

use multiversion::multiversion;
use multiversion::target::match_target;
use ndarray::ArrayViewMut2;

use crate::linear::{Bf16, F16, F32, F64};
use crate::{Dtype, Real};

/// The products of one block, compiled (once, in this crate) for the number of lanes of the type.
pub trait Kernels: Sized {
    /// The product of rows `a: [M, K]` and rows `b: [N, K]`, both in standard layout, into `y: [M, N]`;
    /// M, N, K > 0. `b` is one block, small enough for a cache.
    fn dot_block(a: &[Self], b: &[Self], k: usize, y: ArrayViewMut2<Self>);
    /// The same with `b` as it is stored. Each of its numbers is widened once; for more than a few rows of `a`
    /// into `tile`, a scratch buffer to reuse from call to call.
    fn dot_stored(a: &[Self], b: &[u8], dtype: Dtype, k: usize, tile: &mut Vec<Self>, y: ArrayViewMut2<Self>);
    /// The product of `a: [M, K]` and `b: [K, N]` added to zeros in `y: [M, N]`, all in standard layout;
    /// M, N, K > 0.
    fn outer_block(a: &[Self], b: &[Self], k: usize, y: &mut [Self]);
}

macro_rules! kernels {
    ($t:ty, lanes: $l:literal) => {
        impl Kernels for $t {
            fn dot_block(a: &[$t], b: &[$t], k: usize, y: ArrayViewMut2<$t>) {
                if a.len() <= FEW_ROWS * k {
                    dot_few_rows::<$t, Same, $l>(a, b, k, y);
                } else {
                    dot_many_rows::<$t, $l>(a, b, k, y);
                }
            }
            fn dot_stored(a: &[$t], b: &[u8], dtype: Dtype, k: usize, tile: &mut Vec<$t>, y: ArrayViewMut2<$t>) {
                if a.len() <= FEW_ROWS * k {
                    match dtype {
                        Dtype::Bf16 => dot_few_rows::<$t, Bf16, $l>(a, b.as_chunks().0, k, y),
                        Dtype::F16 => dot_few_rows::<$t, F16, $l>(a, b.as_chunks().0, k, y),
                        Dtype::F32 => dot_few_rows::<$t, F32, $l>(a, b.as_chunks().0, k, y),
                        Dtype::F64 => dot_few_rows::<$t, F64, $l>(a, b.as_chunks().0, k, y),
                    }
                } else {
                    match dtype {
                        Dtype::Bf16 => widen_block::<$t, Bf16>(b.as_chunks().0, tile),
                        Dtype::F16 => widen_block::<$t, F16>(b.as_chunks().0, tile),
                        Dtype::F32 => widen_block::<$t, F32>(b.as_chunks().0, tile),
                        Dtype::F64 => widen_block::<$t, F64>(b.as_chunks().0, tile),
                    }
                    dot_many_rows::<$t, $l>(a, tile, k, y);
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

/// Up to this many rows of `a` are one tile high: [`matmul_t`] reads every number of b once.
const FEW_ROWS: usize = 4;

/// How much of K a tile works on at a time (a multiple of every L): R rows of `a` stay in the first-level cache.
const CHUNK: usize = 512;

/// The rows and columns of y that [`matmul`] works on at a time, to stay in the first-level cache.
const OUTER_ROWS: usize = 16;
const OUTER_COLUMNS: usize = 512;

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

/// How many rows of K numbers make a block that stays in the second-level cache while rows of `a` pass by.
pub(crate) fn block_rows<T>(k: usize) -> usize {
    let row = (k * size_of::<T>()).max(1);
    ((256 << 10) / row).clamp(4, 64) / 4 * 4
}

/// [`Kernels::dot_stored`] where each of its numbers is used by one tile only, and widened on the way into it.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn dot_few_rows<T: Real, S: Stored<T>, const L: usize>(a: &[T], b: &[S::Raw], k: usize, mut y: ArrayViewMut2<T>) {
    let m = a.len() / k;
    if m == 1 {
        dot_strips::<T, S, L, 1, 4>(a, b, k, 0..m, &mut y);
    } else {
        match_target! {
            "x86_64+avx512f" => dot_strips::<T, S, L, FEW_ROWS, 4>(a, b, k, 0..m, &mut y),
            _ => dot_strips::<T, S, L, FEW_ROWS, 1>(a, b, k, 0..m, &mut y),
        }
    }
}

/// [`Kernels::dot_block`] for any number of rows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn dot_many_rows<T: Real, const L: usize>(a: &[T], b: &[T], k: usize, mut y: ArrayViewMut2<T>) {
    let m = a.len() / k;
    let paired = if m.is_multiple_of(2) { m } else { m - 1 };
    match_target! {
        "x86_64+avx512f" => dot_strips::<T, Same, L, 4, 4>(a, b, k, 0..paired, &mut y), // 16 of 32 registers hold sums
        _ => dot_strips::<T, Same, L, 2, 2>(a, b, k, 0..paired, &mut y), // 8 of 16 on AVX2, 16 of 32 on NEON
    }
    dot_strips::<T, Same, L, 1, 4>(a, b, k, paired..m, &mut y);
}

/// The values of a block of stored numbers.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn widen_block<T: Real, S: Stored<T>>(block: &[S::Raw], tile: &mut Vec<T>) {
    tile.clear();
    tile.extend(block.iter().map(|&raw| S::widen(raw)));
}

/// Some rows of y, R at a time. Where fewer rows or columns are left than a tile has, it repeats the last one.
///
/// If b passes by once, from memory, a tile's columns lie n/C apart, so that each is the front of a long stream: a
/// processor reads ahead in a stream, but not from the end of one row to a row elsewhere.
#[inline(always)]
pub(super) fn dot_strips<T: Real, S: Stored<T>, const L: usize, const R: usize, const C: usize>(
    a: &[T],
    b: &[S::Raw],
    k: usize,
    rows: Range<usize>,
    y: &mut ArrayViewMut2<T>,
) {
    let n = b.len() / k;
    let chunk = if rows.len() <= R { k.next_multiple_of(L) } else { CHUNK }; // b passes by once: nothing to keep
    let zeros = [[[T::zero(); L]; C]; R];
    let tiles = n.div_ceil(C);
    let mut sums = vec![zeros; tiles];
    // Column c of tile j. The last ones may not exist.
    let (next_tile, next_column) = if rows.len() <= R { (1, tiles) } else { (C, 1) };
    let column = |j: usize, c: usize| j * next_tile + c * next_column;
    for row in rows.clone().step_by(R) {
        for start in (0..k).step_by(chunk) {
            let end = k.min(start + chunk);
            let mut x = [a; R];
            for (r, x) in x.iter_mut().enumerate() {
                *x = &a[(row + r).min(rows.end - 1) * k..][start..end];
            }
            for (j, sums) in sums.iter_mut().enumerate() {
                let mut w = [b; C];
                for (c, w) in w.iter_mut().enumerate() {
                    *w = &b[column(j, c).min(n - 1) * k..][start..end];
                }
                *sums = dot_tile::<T, S, L, R, C>(x, w, if start == 0 { zeros } else { *sums });
            }
        }
        for r in 0..R.min(rows.end - row) {
            let mut y = y.row_mut(row + r);
            let y = y.as_slice_mut().expect("contiguous rows");
            for (j, sums) in sums.iter().enumerate() {
                for (c, sums) in sums[r].iter().enumerate() {
                    if let Some(y) = y.get_mut(column(j, c)) {
                        *y = add_lanes(*sums);
                    }
                }
            }
        }
    }
}

/// Continues the lanes of R x C elements over a stretch of k that starts at a multiple of L.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn dot_tile<T: Real, S: Stored<T>, const L: usize, const R: usize, const C: usize>(
    a: [&[T]; R],
    b: [&[S::Raw]; C],
    mut sums: [[[T; L]; C]; R],
) -> [[[T; L]; C]; R] {
    let k = a[0].len();
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
        x = a.map(|a| pad(a.as_chunks::<L>().1, |x| x));
        w = b.map(|b| pad(b.as_chunks::<L>().1, S::widen));
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = fma(x[r], w[c], sums[r][c]);
            }
        }
    }
    sums
}

/// The values of fewer than L numbers, then zeros.
#[inline(always)]
fn pad<T: Real, F: Copy, const L: usize>(from: &[F], widen: impl Fn(F) -> T) -> [T; L] {
    let mut padded = [T::zero(); L];
    for (to, &from) in padded.iter_mut().zip(from) {
        *to = widen(from);
    }
    padded
}

/// x\[l\] y\[l\] + s\[l\], each rounded once.
#[inline(always)]
fn fma<T: Real, const L: usize>(x: [T; L], y: [T; L], mut s: [T; L]) -> [T; L] {
    for l in 0..L {
        s[l] = x[l].mul_add(y[l], s[l]);
    }
    s
}

/// The sum of the lanes: the upper half onto the lower half until one is left.
#[inline(always)]
fn add_lanes<T: Real, const L: usize>(mut s: [T; L]) -> T {
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

/// [`Kernels::outer_block`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn outer_block<T: Real, const L: usize>(a: &[T], b: &[T], k: usize, y: &mut [T]) {
    let n = b.len() / k;
    for start in (0..n).step_by(OUTER_COLUMNS) {
        let columns = start..n.min(start + OUTER_COLUMNS);
        for (a, y) in a.chunks(OUTER_ROWS * k).zip(y.chunks_mut(OUTER_ROWS * n)) {
            for i in (0..k).step_by(4) {
                for (a, y) in a.chunks(4 * k).zip(y.chunks_mut(4 * n)) {
                    if y.len() == 4 * n {
                        outer_strip::<T, L, 4>(a, b, k, i, columns.clone(), y);
                    } else {
                        for (a, y) in a.chunks(k).zip(y.chunks_mut(n)) {
                            outer_strip::<T, L, 1>(a, b, k, i, columns.clone(), y);
                        }
                    }
                }
            }
        }
    }
    y.iter_mut().for_each(|y| *y += T::zero());
}

/// Adds the terms k = i, i + 1, i + 2, i + 3, as far as they exist, to some columns of R rows of y.
#[inline(always)]
fn outer_strip<T: Real, const L: usize, const R: usize>(
    a: &[T],
    b: &[T],
    k: usize,
    i: usize,
    columns: Range<usize>,
    y: &mut [T],
) {
    if i + 4 <= k {
        outer_tile::<T, L, R, 4>(a, b, k, i, columns, y);
    } else {
        for i in i..k {
            outer_tile::<T, L, R, 1>(a, b, k, i, columns.clone(), y);
        }
    }
}

/// `y[r, n] += a[r, i] b[i, n] + ... + a[r, i + U - 1] b[i + U - 1, n]`, term by term in this order.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn outer_tile<T: Real, const L: usize, const R: usize, const U: usize>(
    a: &[T],
    b: &[T],
    k: usize,
    i: usize,
    columns: Range<usize>,
    y: &mut [T],
) {
    let n = y.len() / R;
    let mut w = [[T::zero(); U]; R];
    for r in 0..R {
        w[r].copy_from_slice(&a[r * k + i..][..U]);
    }
    let mut x = [b; U];
    for u in 0..U {
        x[u] = &b[(i + u) * n..][columns.clone()];
    }
    let len = columns.len();
    let mut rows = y.chunks_exact_mut(n).map(|row| &mut row[columns.clone()]);
    let y: [&mut [T]; R] = std::array::from_fn(|_| rows.next().expect("R rows"));
    for j in 0..len / L {
        let mut s = [[T::zero(); L]; R];
        for r in 0..R {
            s[r] = y[r].as_chunks::<L>().0[j];
        }
        for u in 0..U {
            let x = x[u].as_chunks::<L>().0[j];
            for r in 0..R {
                s[r] = fma([w[r][u]; L], x, s[r]);
            }
        }
        for r in 0..R {
            y[r].as_chunks_mut::<L>().0[j] = s[r];
        }
    }
    for j in len / L * L..len {
        for r in 0..R {
            for u in 0..U {
                y[r][j] = w[r][u].mul_add(x[u][j], y[r][j]);
            }
        }
    }
}
