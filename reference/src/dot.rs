//! The inner product, in the fixed order of [`crate::matmul`].

use ndarray::{ArrayView1, Axis};

use crate::Real;
use crate::matmul::matmul_t;

/// `sum_k a_k b_k`; the same bits for the same numbers, with any number of zeros after them.
pub fn dot<T: Real>(a: ArrayView1<T>, b: ArrayView1<T>) -> T {
    matmul_t(a.insert_axis(Axis(0)), b.insert_axis(Axis(0)))[[0, 0]]
}
