//! Matrix products whose every element is summed in one fixed order.
//!
//! Two products are all this crate needs:
//!
//! ```text
//! matmul_t:  y[m, n] = Σ_k a[m, k] · b[n, k]      a: [M, K]  b: [N, K]  y: [M, N]      (x Wᵀ, q kᵀ)
//! matmul:    y[m, n] = Σ_k a[m, k] · b[k, n]      a: [M, K]  b: [K, N]  y: [M, N]      (p v)
//! ```
//!
//! Both take 2 M N K flops over (M K + N K + M N) numbers.
//!
//! # The order of the sum
//!
//! Floating-point addition is not associative, so a sum is only defined together with its order. BLAS and gemm
//! libraries choose the order by shape: a batch of one goes to another kernel than a batch of eight, the blocks along
//! K depend on the cache and on the number of threads. The same token then gets different bits in different company,
//! a cached decode step does not reproduce the prefill, and near a tie the router sends the token to another expert.
//! Here the order belongs to the element and depends on K alone. With `fma(x, y, s)` = x·y + s rounded once:
//!
//! * [`matmul_t`] keeps L partial sums ("lanes", 16 in `f32`, 8 in `f64`: one 512-bit vector of each). They start at
//!   0; lane l takes k = l, l + L, l + 2L, ... in this order by `fma`. Then the upper half is added to the lower half
//!   until one lane is left: s\[l\] += s\[l + L/2\], s\[l\] += s\[l + L/4\], ...
//! * [`matmul`] has one sum, from 0, over k = 0, 1, 2, ... by `fma`: its vectors lie along n.
//!
//! Both finish with `+ 0`, so that no result is -0 (a product that underflows may leave a lane at -0).
//!
//! The loops around this order, tiles and blocks, decide only which element is worked on when. Hence, bit for bit:
//! a row of a batch equals that row alone; any number of threads gives the same; zeros appended to K change nothing;
//! and so does the machine, because `fma` is exactly specified: AVX-512, AVX2, NEON, and a processor without a fused
//! multiply-add (where it is a slow library call) agree. (Except on the bits of a NaN.)
//!
//! # Speed
//!
//! The kernels are plain loops over arrays of L numbers, which the compiler turns into vector instructions; the
//! `multiversion` attribute compiles each for several instruction sets and picks one at run time. The shape of the
//! loops is what counts:
//!
//! * [`matmul_t`]: a tile of R x C elements is accumulated in R C registers, so that R + C loads feed R C `fma`s; K is
//!   cut into chunks so that the R rows of `a` stay in the first-level cache while all of a block of `b` passes by.
//! * [`matmul`]: R rows of y take up U rows of b at a time: R U coefficients in registers, U + R loads and R stores
//!   for R U `fma`s, and b is read in the order it lies in memory.
//!
//! Neither starts threads: callers run heads, experts or blocks of weights in parallel.

use std::ops::Range;

use multiversion::multiversion;
use multiversion::target::match_target;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

use crate::linear::{Bf16, F16, F32, F64};
use crate::{Dtype, Real};
use sealed::Kernels;

/// A number type that the products are compiled for: `f32` or `f64`. (No other type can implement it.)
pub trait Kernel: Kernels {}

impl Kernel for f32 {}
impl Kernel for f64 {}

mod sealed {
    use ndarray::ArrayViewMut2;

    use crate::Dtype;

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
struct Same;

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

/// `y[m, n] = Σ_k a[m, k] b[n, k]`: `a: [M, K]`, `b: [N, K]`, `y: [M, N]`. Any strides; an empty sum is 0.
///
/// The sum over k runs in [lanes](self#the-order-of-the-sum), the same for every M and N.
///
/// # Panics
/// If the two K differ.
pub fn matmul_t<T: Real>(a: ArrayView2<T>, b: ArrayView2<T>) -> Array2<T> {
    assert_eq!(a.ncols(), b.ncols(), "matmul_t: the lengths of the sum");
    let k = a.ncols();
    let mut y = Array2::zeros((a.nrows(), b.nrows()));
    if y.is_empty() || k == 0 {
        return y;
    }
    let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
    let (a, b) = (a.as_slice().expect("standard layout"), b.as_slice().expect("standard layout"));
    let rows = block_rows::<T>(k);
    for (b, y) in b.chunks(rows * k).zip(y.axis_chunks_iter_mut(Axis(1), rows)) {
        T::dot_block(a, b, k, y);
    }
    y
}

/// `y[m, n] = Σ_k a[m, k] b[k, n]`: `a: [M, K]`, `b: [K, N]`, `y: [M, N]`. Any strides; an empty sum is 0.
///
/// The sum over k runs [in sequence](self#the-order-of-the-sum), the same for every M and N.
///
/// # Panics
/// If the two K differ.
pub fn matmul<T: Real>(a: ArrayView2<T>, b: ArrayView2<T>) -> Array2<T> {
    assert_eq!(a.ncols(), b.nrows(), "matmul: the lengths of the sum");
    let k = a.ncols();
    let mut y = Array2::zeros((a.nrows(), b.ncols()));
    if y.is_empty() || k == 0 {
        return y;
    }
    let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
    let (a, b) = (a.as_slice().expect("standard layout"), b.as_slice().expect("standard layout"));
    T::outer_block(a, b, k, y.as_slice_mut().expect("standard layout"));
    y
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
#[inline(always)]
fn dot_strips<T: Real, S: Stored<T>, const L: usize, const R: usize, const C: usize>(
    a: &[T],
    b: &[S::Raw],
    k: usize,
    rows: Range<usize>,
    y: &mut ArrayViewMut2<T>,
) {
    let n = b.len() / k;
    let chunk = if rows.len() <= R { k.next_multiple_of(L) } else { CHUNK }; // b passes by once: nothing to keep
    let zeros = [[[T::zero(); L]; C]; R];
    let mut sums = vec![zeros; n.div_ceil(C)];
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
                    *w = &b[(j * C + c).min(n - 1) * k..][start..end];
                }
                *sums = dot_tile::<T, S, L, R, C>(x, w, if start == 0 { zeros } else { *sums });
            }
        }
        for r in 0..R.min(rows.end - row) {
            let mut y = y.row_mut(row + r);
            for (sums, y) in sums.iter().zip(y.as_slice_mut().expect("contiguous rows").chunks_mut(C)) {
                for (sums, y) in sums[r].iter().zip(y) {
                    *y = add_lanes(*sums);
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

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;

    /// Numbers of both signs over many binades, so that every change of the order shows.
    fn noise<T: Real>(rows: usize, columns: usize, seed: u64) -> Array2<T> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        Array2::from_shape_simple_fn((rows, columns), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0;
            T::from_f64(unit * f64::powi(2.0, (state >> 20) as i32 % 8))
        })
    }

    fn bits<T: Real>(y: &Array2<T>) -> Vec<u64> {
        y.iter().map(|&y| Real::to_f64(y).to_bits()).collect()
    }

    /// The definition of the order, word for word, and without any vector instruction.
    fn in_lanes<T: Real>(a: &Array2<T>, b: &Array2<T>, lanes: usize) -> Array2<T> {
        Array2::from_shape_fn((a.nrows(), b.nrows()), |(m, n)| {
            let mut s = vec![T::zero(); lanes];
            for k in 0..a.ncols() {
                s[k % lanes] = a[[m, k]].mul_add(b[[n, k]], s[k % lanes]);
            }
            while s.len() > 1 {
                let upper = s.split_off(s.len() / 2);
                s.iter_mut().zip(upper).for_each(|(s, upper)| *s += upper);
            }
            s[0] + T::zero()
        })
    }

    fn in_sequence<T: Real>(a: &Array2<T>, b: &Array2<T>) -> Array2<T> {
        Array2::from_shape_fn((a.nrows(), b.ncols()), |(m, n)| {
            let sum = (0..a.ncols()).fold(T::zero(), |s, k| a[[m, k]].mul_add(b[[k, n]], s));
            sum + T::zero()
        })
    }

    const SHAPES: [[usize; 3]; 11] = [
        [1, 1, 1],
        [1, 16, 4],
        [1, 100, 7],
        [2, 33, 3],
        [3, 64, 5],
        [4, 520, 4],
        [5, 17, 70],
        [6, 1100, 9],
        [13, 7, 66],
        [19, 48, 2],
        [17, 130, 600],
    ];

    fn follows_the_definition<T: Real>(lanes: usize) {
        for [m, k, n] in SHAPES {
            let (a, b) = (noise::<T>(m, k, 1), noise::<T>(n, k, 2));
            assert_eq!(bits(&matmul_t(a.view(), b.view())), bits(&in_lanes(&a, &b, lanes)), "matmul_t {m} {k} {n}");
            let b = noise::<T>(k, n, 3);
            assert_eq!(bits(&matmul(a.view(), b.view())), bits(&in_sequence(&a, &b)), "matmul {m} {k} {n}");
        }
    }

    #[test]
    fn both_products_follow_the_definition_bit_for_bit() {
        follows_the_definition::<f32>(16);
        follows_the_definition::<f64>(8);
    }

    #[test]
    fn every_tile_without_vector_instructions_gives_the_dispatched_bits() {
        let (m, k, n) = (7, 555, 11);
        let (a, b) = (noise::<f32>(m, k, 4), noise::<f32>(n, k, 5));
        let (x, w) = (a.as_slice().unwrap(), b.as_slice().unwrap());
        let dispatched = bits(&matmul_t(a.view(), b.view()));
        let mut y = Array2::zeros((m, n));
        dot_strips::<f32, Same, 16, 2, 2>(x, w, k, 0..m, &mut y.view_mut());
        assert_eq!(bits(&y), dispatched);
        dot_strips::<f32, Same, 16, 4, 4>(x, w, k, 0..m, &mut y.view_mut());
        assert_eq!(bits(&y), dispatched);
        dot_strips::<f32, Same, 16, 3, 1>(x, w, k, 0..m, &mut y.view_mut());
        assert_eq!(bits(&y), dispatched);
    }

    #[test]
    fn products_are_close_to_the_sum_in_f64() {
        let (a, b) = (noise::<f32>(9, 700, 6), noise::<f32>(10, 700, 7));
        let y = matmul_t(a.view(), b.view());
        let z = matmul(a.view(), b.t());
        for ((m, n), &y) in y.indexed_iter() {
            let terms = a.row(m).iter().zip(b.row(n)).map(|(&a, &b)| f64::from(a) * f64::from(b)).collect::<Vec<_>>();
            let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
            assert!((f64::from(y) - sum).abs() <= 50.0 * size * f64::from(f32::EPSILON) / 2.0, "{y} {sum}");
            assert!((f64::from(z[[m, n]]) - sum).abs() <= 700.0 * size * f64::from(f32::EPSILON) / 2.0, "{y} {sum}");
        }
    }

    #[test]
    fn rows_and_columns_do_not_depend_on_their_company() {
        let (a, b) = (noise::<f32>(23, 300, 8), noise::<f32>(150, 300, 9));
        let y = matmul_t(a.view(), b.view());
        let z = matmul(a.view(), b.t());
        for split in [1, 2, 3, 4, 5, 7, 16] {
            for start in (0..23).step_by(split) {
                let rows = s![start..23.min(start + split), ..];
                assert_eq!(matmul_t(a.slice(rows), b.view()), y.slice(rows));
                assert_eq!(matmul(a.slice(rows), b.t()), z.slice(rows));
            }
        }
        let columns = s![37..150;3, ..];
        assert_eq!(matmul_t(a.view(), b.slice(columns)), y.slice(s![.., 37..150;3]));
        assert_eq!(matmul(a.view(), b.slice(columns).t()), z.slice(s![.., 37..150;3]));
    }

    fn zeros_change_nothing<T: Real>(tiny: f64) {
        for k in [1, 15, 16, 40, 511, 512, 513] {
            let (mut a, mut b) = (noise::<T>(5, k, 10), noise::<T>(6, k, 11));
            a.row_mut(0).fill(T::from_f64(-tiny)); // all products underflow to -0
            b.row_mut(0).fill(T::from_f64(tiny));
            let padded = |x: &Array2<T>, zeros| {
                let mut y = Array2::zeros((x.nrows(), x.ncols() + zeros));
                y.slice_mut(s![.., ..x.ncols()]).assign(x);
                y
            };
            let (y, z) = (matmul_t(a.view(), b.view()), matmul(a.view(), b.t()));
            for zeros in [1, 7, 16, 100, 600] {
                let (a, b) = (padded(&a, zeros), padded(&b, zeros));
                assert_eq!(bits(&matmul_t(a.view(), b.view())), bits(&y));
                assert_eq!(bits(&matmul(a.view(), b.t())), bits(&z));
            }
        }
    }

    #[test]
    fn zeros_appended_to_the_sum_change_nothing() {
        zeros_change_nothing::<f32>(1e-30);
        zeros_change_nothing::<f64>(1e-200);
    }

    #[test]
    fn multiplication_and_addition_are_rounded_once() {
        let x = 1.0 + f32::EPSILON; // x² = 1 + 2ε + ε², and -x² rounds to -1 - 2ε
        let (mut a, mut b) = (Array2::zeros((1, 33)), Array2::zeros((1, 33)));
        (a[[0, 0]], b[[0, 0]]) = (x, -x);
        (a[[0, 16]], b[[0, 16]]) = (x, x);
        assert_eq!(matmul_t(a.view(), b.view())[[0, 0]], f32::EPSILON * f32::EPSILON);
        assert_eq!(matmul(a.view(), b.t())[[0, 0]], f32::EPSILON * f32::EPSILON);
    }

    #[test]
    fn integers_are_exact_for_any_strides() {
        let whole = |rows, columns, step: usize| {
            Array2::from_shape_fn((rows, columns), |(i, j)| ((i * step + j * 7) % 19) as f64 - 9.0)
        };
        let (a, b) = (whole(40, 50, 3), whole(30, 100, 5));
        let (a, b) = (a.slice(s![1..;3, ..;-1]), b.slice(s![..;-2, 3..;2]));
        let b = b.slice(s![.., ..48]);
        let a = a.slice(s![.., 2..]);
        let expected = Array2::from_shape_fn((a.nrows(), b.nrows()), |(m, n)| {
            a.row(m).iter().zip(b.row(n)).map(|(a, b)| a * b).sum::<f64>()
        });
        assert_eq!(matmul_t(a, b), expected);
        assert_eq!(matmul(a, b.t()), expected);
        assert_eq!(matmul(a, b.t().as_standard_layout().view()), expected);
        assert_eq!(matmul_t(b, a), expected.t());
    }

    #[test]
    fn empty_products_are_empty_or_zero() {
        for [m, k, n] in [[0, 3, 4], [2, 0, 4], [2, 3, 0], [0, 0, 0]] {
            let (a, b) = (noise::<f32>(m, k, 12), noise::<f32>(n, k, 13));
            assert_eq!(matmul_t(a.view(), b.view()), Array2::<f32>::zeros((m, n)));
            assert_eq!(matmul(a.view(), b.t()), Array2::<f32>::zeros((m, n)));
        }
    }
}
