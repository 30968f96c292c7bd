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
//! [`matmul_t`](crate::arithmetic::matmul::matmul_t) of x and the widened weight, for any number of rows and threads.
//! The bias is added to the finished sum.

use std::ops::Range;

use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayView3, CowArray, Ix2};

use crate::arithmetic::map::row_by_row;
use crate::arithmetic::matmul::matmul_t_stored;
use crate::model::cache::as_e4m3;
use crate::weights::WeightSource;
use crate::{Real, Result, Tensor};

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

    /// Takes `{path}.weight` \[rows,columns\], and `{path}.bias` \[rows\] if it has one, from `weights`.
    ///
    /// # Errors
    /// If either is missing or of another shape.
    pub fn load(weights: &dyn WeightSource, path: &str, rows: usize, columns: usize, bias: bool) -> Result<Self> {
        let weight = weights.tensor(&format!("{path}.weight"), &[rows, columns])?;
        let bias = if bias { Some(weights.tensor(&format!("{path}.bias"), &[rows])?.to_array()) } else { None };
        Ok(Linear::new(weight, bias))
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
        assert_eq!(x.ncols(), self.in_features(), "the length of a row of x");
        let (x, dtype) = (self.as_read(x), self.weight.dtype());
        let mut y = matmul_t_stored(x.view(), &self.weight.bytes(), dtype, self.out_features());
        if let Some(bias) = &self.bias {
            y += bias;
        }
        y
    }

    /// The operand: as it is, or e4m3 numbers, if it is to be multiplied with such ([`Tensor::with_fp8_operands`]).
    fn as_read<'x>(&self, x: ArrayView2<'x, T>) -> CowArray<'x, T, Ix2> {
        let Some(tile) = self.weight.operand_tile() else { return x.into() };
        let mut x = x.as_standard_layout().into_owned();
        for mut row in x.rows_mut() {
            as_e4m3(row.as_slice_mut().expect("standard layout"), tile);
        }
        x.into()
    }

    /// The same of each token: \[B,S,in\] -> \[B,S,out\].
    pub fn forward_3d(&self, x: ArrayView3<T>) -> Array3<T> {
        row_by_row(x, |x| self.forward(x))
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
    fn neither_threads_nor_the_other_rows_change_a_bit() {
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
        let bytes = [&[0u8; 3][..], &aligned.bytes()].concat();
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
