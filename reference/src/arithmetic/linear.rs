//! A linear map whose weight stays in the type it is stored in.
//!
//! ```text
//! y[m, o] = Σ_i x[m, i] · W[o, i]  (+ b[o])        x: [M, in]   W: [out, in]   b: [out]   y: [M, out]
//! ```
//!
//! The weights are nearly all of the model, so the memory they take and the time to read them matter more than
//! anything else: 2 M flops for every weight read. At M = 1 (decoding one sequence) that is one flop per byte of bf16,
//! and the time is that of reading the weight from memory once; it becomes the time of the arithmetic when M exceeds
//! the number of flops that the machine does while it reads a byte, some ten or so.
//! Therefore W is never copied as a whole. It stays as it is stored, in memory or in a mapped file. Threads share its
//! rows out in blocks, and each number is read from memory once per call, however many rows x has: for a few rows, it
//! is widened on its way into a register; for more, once, into a scratch copy of one block, which stays in a cache while
//! the rows of x pass by.
//!
//! Widening is exact, and the sum has the fixed order of [`crate::arithmetic::matmul`]: the result is, bit for bit,
//! [`matmul_t`](crate::arithmetic::matmul::matmul_t) of x and the widened weight, for any number of rows and threads. The bias is
//! added to the finished sum.

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::arithmetic::matmul::{Rows, Stored, block_rows};
use crate::{Real, Tensor};

/// `y = x Wᵀ + b`, computed in `T` with W as it is stored.
#[derive(Clone, Debug)]
pub struct Linear<T> {
    weight: Tensor,
    bias: Option<Array1<T>>,
}

impl<T: Real> Linear<T> {
    /// From a weight `[out, in]` and, if there is one, a bias `[out]`.
    ///
    /// # Panics
    /// If the shapes are others; loaders check them first.
    pub fn new(weight: Tensor, bias: Option<Array1<T>>) -> Self {
        assert_eq!(weight.shape().len(), 2, "the axes of a linear weight");
        if let Some(bias) = &bias {
            assert_eq!(bias.len(), weight.shape()[0], "the length of a linear bias");
        }
        Linear { weight, bias }
    }

    /// The weight, `[out, in]`, as it is stored.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&Array1<T>> {
        self.bias.as_ref()
    }

    /// The length of a row of x.
    pub fn in_features(&self) -> usize {
        self.weight.shape()[1]
    }

    /// The length of a row of y.
    pub fn out_features(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Some rows of the weight, widened: `[rows, in]`.
    pub fn rows(&self, rows: Range<usize>) -> Array2<T> {
        self.weight.rows(rows).to_array()
    }

    /// `x Wᵀ + b`: `x: [M, in]`, of any strides, to `[M, out]`.
    ///
    /// # Panics
    /// If the rows of x are not `in` long.
    pub fn forward(&self, x: ArrayView2<T>) -> Array2<T> {
        let k = self.in_features();
        assert_eq!(x.ncols(), k, "the length of a row of x");
        let mut y = Array2::zeros((x.nrows(), self.out_features()));
        if !y.is_empty() && k > 0 {
            let x = x.as_standard_layout();
            let x = Rows::new(x.as_slice().expect("standard layout"), k);
            let (rows, dtype) = (block_rows::<T>(k), self.weight.dtype());
            self.weight
                .bytes()
                .par_chunks(rows * k * dtype.size())
                .zip(y.axis_chunks_iter_mut(Axis(1), rows).into_par_iter())
                .for_each_init(Vec::new, |tile, (weight, y)| T::dot_stored(&x, weight, dtype, tile, y));
        }
        if let Some(bias) = &self.bias {
            y += bias;
        }
        y
    }
}

// The formats, one number at a time as [`Tensor::widen`] reads them, in terms that become vector instructions.

/// bfloat16.
pub(crate) struct Bf16;

impl<T: Real> Stored<T> for Bf16 {
    type Raw = [u8; 2];
    #[inline(always)]
    fn widen(raw: [u8; 2]) -> T {
        T::from_f32(f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16))
    }
}

/// IEEE half.
pub(crate) struct F16;

impl<T: Real> Stored<T> for F16 {
    type Raw = [u8; 2];
    /// Shifts exponent and fraction to their places in an `f32` and multiplies by 2¹¹², the difference of the two
    /// exponent biases (127 - 15). This is exact, for subnormal numbers too; infinity and NaN get their exponent.
    #[inline(always)]
    fn widen(raw: [u8; 2]) -> T {
        let half = u32::from(u16::from_le_bytes(raw));
        let finite = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        T::from_f32(f32::from_bits((half & 0x8000) << 16 | finite.to_bits() | special))
    }
}

/// IEEE single.
pub(crate) struct F32;

impl<T: Real> Stored<T> for F32 {
    type Raw = [u8; 4];
    #[inline(always)]
    fn widen(raw: [u8; 4]) -> T {
        T::from_f32(f32::from_le_bytes(raw))
    }
}

/// IEEE double.
pub(crate) struct F64;

impl<T: Real> Stored<T> for F64 {
    type Raw = [u8; 8];
    #[inline(always)]
    fn widen(raw: [u8; 8]) -> T {
        T::from_f64(f64::from_le_bytes(raw))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ndarray::s;

    use super::*;
    use crate::Dtype;
    use crate::arithmetic::matmul::matmul_t;

    const DTYPES: [Dtype; 4] = [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::F64];

    fn value(i: usize) -> f64 {
        let hash = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 40) as f64 / f64::from(1 << 23) - 1.0
    }

    fn weight(dtype: Dtype, rows: usize, columns: usize) -> Tensor {
        Tensor::from_values(dtype, &[rows, columns], (0..rows * columns).map(value))
    }

    fn input<T: Real>(rows: usize, columns: usize) -> Array2<T> {
        Array2::from_shape_fn((rows, columns), |(i, j)| T::from_f64(value(7 * i + 1000 * j)))
    }

    fn equals_matmul_t<T: Real>() {
        for dtype in DTYPES {
            for [m, k, n] in [[1, 40, 9], [2, 64, 33], [4, 100, 70], [5, 700, 130], [6, 31, 3], [33, 128, 65]] {
                let weight = weight(dtype, n, k);
                let x = input::<T>(m, k);
                let expected = matmul_t(x.view(), weight.to_array().view());
                let linear = Linear::new(weight, None);
                assert_eq!(linear.forward(x.view()), expected, "{dtype:?} {m} {k} {n}");
                let x = x.slice(s![..;-1, ..]);
                assert_eq!(linear.forward(x), expected.slice(s![..;-1, ..]), "{dtype:?} {m} {k} {n}, reversed");
            }
        }
    }

    #[test]
    fn equals_matmul_t_of_the_widened_weight_for_every_type() {
        equals_matmul_t::<f32>();
        equals_matmul_t::<f64>();
    }

    #[test]
    fn threads_and_company_do_not_matter() {
        let linear = Linear::<f32>::new(weight(Dtype::Bf16, 300, 200), None);
        let x = input(11, 200);
        let expected = linear.forward(x.view());
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for rows in [1, 2, 3, 5, 8, 11] {
                for start in (0..11).step_by(rows) {
                    let part = s![start..11.min(start + rows), ..];
                    assert_eq!(pool.install(|| linear.forward(x.slice(part))), expected.slice(part));
                }
            }
        }
    }

    #[test]
    fn every_half_is_widened_as_the_tensor_does() {
        let bytes = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let all = Tensor::new("all", dtype, &[1 << 16], Arc::new(bytes.clone()), 0..bytes.len()).unwrap();
            for (raw, expected) in bytes.as_chunks().0.iter().zip(all.to_array::<f32, ndarray::Ix1>()) {
                let found: f32 = if dtype == Dtype::F16 { F16::widen(*raw) } else { Bf16::widen(*raw) };
                let equal = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
                assert!(equal, "{dtype:?} {raw:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn the_bias_is_added_to_the_finished_sum() {
        let x = input::<f32>(3, 50);
        let bias = Array1::from_shape_fn(20, |o| value(o) as f32);
        let plain = Linear::new(weight(Dtype::Bf16, 20, 50), None).forward(x.view());
        let linear = Linear::new(weight(Dtype::Bf16, 20, 50), Some(bias.clone()));
        assert_eq!(linear.forward(x.view()), plain + &bias);
        assert_eq!((linear.in_features(), linear.out_features(), linear.bias()), (50, 20, Some(&bias)));
    }

    #[test]
    fn bytes_need_no_alignment_and_rows_are_the_weights_own() {
        let aligned = weight(Dtype::F32, 6, 10);
        let bytes = [&[0u8; 3][..], aligned.bytes()].concat();
        let shifted = Tensor::new("w", Dtype::F32, &[6, 10], Arc::new(bytes), 3..243).unwrap();
        let (aligned, shifted) = (Linear::<f32>::new(aligned, None), Linear::<f32>::new(shifted, None));
        let x = input(7, 10);
        assert_eq!(shifted.forward(x.view()), aligned.forward(x.view()));
        assert_eq!(shifted.forward(x.slice(s![..1, ..])), aligned.forward(x.slice(s![..1, ..])));
        assert_eq!(shifted.rows(2..5), aligned.weight().to_array::<f32, ndarray::Ix2>().slice(s![2..5, ..]));
    }

    #[test]
    fn nothing_in_or_nothing_out_is_no_trouble() {
        for [m, k, n] in [[0, 4, 3], [2, 0, 3], [2, 4, 0]] {
            let linear = Linear::<f64>::new(weight(Dtype::F16, n, k), Some(Array1::from_elem(n, 0.5)));
            assert_eq!(linear.forward(input(m, k).view()), Array2::from_elem((m, n), 0.5));
        }
    }
}
