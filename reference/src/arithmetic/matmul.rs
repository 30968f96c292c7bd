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
//! K depend on the cache and on the number of threads. The same token then gets different bits in different batches, a
//! cached decode step does not reproduce the prefill, and near a tie the router sends the token to another expert.
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
//! * [`matmul_t`]: a tile of R x C elements is accumulated in R C registers, so that R + C loads feed R C `fma`s. The
//!   rows of both factors are first copied into the order in which tiles read them (panels: whole cache lines, front to
//!   back). K is cut into chunks so that R rows of `a` stay in the first-level cache while a block of `b`, from the
//!   second, passes by. For a few rows of `a` copying `b` does not pay: tiles read it where it lies.
//! * [`matmul`]: R rows of y take up U rows of b at a time: R U coefficients in registers, U + R loads and R stores
//!   for R U `fma`s, and b is read in the order it lies in memory.
//!
//! Callers run heads, experts or blocks of weights in parallel.

mod kernels;
mod lanes;
mod outer;
mod panels;
#[cfg(test)]
mod tests;
mod tiles;

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, NdFloat};
use rayon::prelude::*;

use super::shares;
use super::stored::Dtype;
use kernels::{Kernels, block_rows};
use panels::Rows;

/// A number type that the products are compiled for: `f32` or `f64`. (No other type can implement it.)
pub trait Kernel: NdFloat + Kernels {}

impl Kernel for f32 {}
impl Kernel for f64 {}

/// `y[m, n] = Σ_k a[m, k] b[n, k]`: `a: [M, K]`, `b: [N, K]`, `y: [M, N]`. Any strides; an empty sum is 0.
///
/// The sum over k runs in [lanes](self#the-order-of-the-sum), the same for every M and N.
///
/// # Panics
/// If the two K differ.
pub fn matmul_t<T: Kernel>(a: ArrayView2<T>, b: ArrayView2<T>) -> Array2<T> {
    assert_eq!(a.ncols(), b.ncols(), "matmul_t: the lengths of the sum");
    let k = a.ncols();
    let mut y = Array2::zeros((a.nrows(), b.nrows()));
    if y.is_empty() || k == 0 {
        return y;
    }
    let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
    let (a, b) = (a.as_slice().expect("standard layout"), b.as_slice().expect("standard layout"));
    let (a, rows, mut tile) = (Rows::new(a, k), block_rows::<T>(k), Vec::new());
    for (b, y) in b.chunks(rows * k).zip(y.axis_chunks_iter_mut(Axis(1), rows)) {
        T::dot_block(&a, b, &mut tile, y);
    }
    y
}

/// [`matmul_t`] of a: \[M,K\] and a matrix \[N,K\] in row-major order that stays as it is stored: the same bits, and no
/// widened copy of the whole. Threads share its rows out in blocks.
///
/// # Panics
/// If `stored` is not N rows of K numbers of type `dtype`.
pub fn matmul_t_stored<T: Kernel>(a: ArrayView2<T>, stored: &[u8], dtype: Dtype, n: usize) -> Array2<T> {
    let k = a.ncols();
    assert_eq!(stored.len(), n * k * dtype.size(), "matmul_t_stored: the bytes of N rows of K numbers");
    let mut y = Array2::zeros((a.nrows(), n));
    if y.is_empty() || k == 0 {
        return y;
    }
    let a = a.as_standard_layout();
    let (a, rows) = (Rows::new(a.as_slice().expect("standard layout"), k), block_rows::<T>(k));
    stored
        .par_chunks(rows * k * dtype.size())
        .with_min_len(shares::least(a.plain.len() * rows))
        .zip(y.axis_chunks_iter_mut(Axis(1), rows).into_par_iter())
        .for_each_init(Vec::new, |tile, (stored, y)| T::dot_stored(&a, stored, dtype, tile, y));
    y
}

/// `y[m, n] = Σ_k a[m, k] b[k, n]`: `a: [M, K]`, `b: [K, N]`, `y: [M, N]`. Any strides; an empty sum is 0.
///
/// The sum over k runs [in sequence](self#the-order-of-the-sum), the same for every M and N.
///
/// # Panics
/// If the two K differ.
pub fn matmul<T: Kernel>(a: ArrayView2<T>, b: ArrayView2<T>) -> Array2<T> {
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

/// `Σ_k a[k] b[k]`, in the order of [`matmul_t`].
///
/// # Panics
/// If the two lengths differ.
pub fn dot<T: Kernel>(a: ArrayView1<T>, b: ArrayView1<T>) -> T {
    matmul_t(a.insert_axis(Axis(0)), b.insert_axis(Axis(0)))[[0, 0]]
}
