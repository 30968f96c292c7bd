//! The product that sums in sequence, y += a b: rows of b scaled and added to rows of y.

use std::ops::Range;

use multiversion::multiversion;
use ndarray::NdFloat;

use super::lanes::fma;

/// The rows and columns of y that are worked on at a time, to stay in the first-level cache.
const OUTER_ROWS: usize = 16;
const OUTER_COLUMNS: usize = 512;

/// Adds the product of `a: [M, K]` and `b: [K, N]` to zeros in `y: [M, N]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn outer_block<T: NdFloat, const L: usize>(a: &[T], b: &[T], k: usize, y: &mut [T]) {
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
fn outer_strip<T: NdFloat, const L: usize, const R: usize>(
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
fn outer_tile<T: NdFloat, const L: usize, const R: usize, const U: usize>(
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
