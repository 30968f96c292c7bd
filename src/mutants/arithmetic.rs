//! The arithmetic that right and wrong implementations differ by: how numbers are rounded, and how products are summed.

use dsv2_reference::Dtype;
use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

/// The sum of products of two vectors of one length.
pub type Dot = fn(&[f64], &[f64]) -> f64;

/// In double precision, in sequence.
pub fn exact(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `x Wᵀ`: `[N,in]` and `[out,in]` to `[N,out]`.
pub fn product(x: ArrayView2<'_, f64>, weight: ArrayView2<'_, f64>, dot: Dot) -> Array2<f64> {
    let (x, weight) = (x.as_standard_layout(), weight.as_standard_layout());
    Array2::from_shape_fn((x.nrows(), weight.nrows()), |(n, o)| {
        let (x, w) = (x.row(n), weight.row(o));
        dot(x.as_slice().unwrap_or(&[]), w.as_slice().unwrap_or(&[]))
    })
}

/// The nearest number of a type.
pub fn rounded(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::F64 => x,
        Dtype::F32 => to_f32(x),
        Dtype::F16 => to_f16(x),
        Dtype::Bf16 => to_bf16(x),
    }
}

/// The nearest bf16 number.
pub fn to_bf16(x: f64) -> f64 {
    f64::from(bf16::from_f32(x as f32).to_f32())
}

/// The next bf16 number towards zero.
pub fn truncated(x: f64) -> f64 {
    f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000))
}

/// The nearest IEEE half number.
pub fn to_f16(x: f64) -> f64 {
    f64::from(f16::from_f32(x as f32).to_f32())
}

/// The nearest fp32 number.
pub fn to_f32(x: f64) -> f64 {
    f64::from(x as f32)
}

/// The nearest number with 10 bits of fraction, which is what TF32 keeps.
pub fn to_tf32(x: f64) -> f64 {
    fraction_bits(x, 10)
}

/// The nearest number of e4m3 (3 bits of fraction, subnormal below 2⁻⁶, at most 448).
pub fn to_fp8(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = (x.abs().log2().floor().max(-6.0) - 3.0).exp2();
    ((x / unit).round_ties_even() * unit).clamp(-448.0, 448.0)
}

fn fraction_bits(x: f64, bits: i32) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = (x.abs().log2().floor() - f64::from(bits)).exp2();
    (x / unit).round_ties_even() * unit
}

/// Operands read with 10 bits of fraction.
pub fn tf32(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| to_tf32(*x) * to_tf32(*y)).sum()
}

/// The sum rounded to bf16 after every 16 products.
pub fn bf16_accumulator(a: &[f64], b: &[f64]) -> f64 {
    a.chunks(16).zip(b.chunks(16)).fold(0.0, |sum, (a, b)| to_bf16(sum + exact(a, b)))
}

/// In fp32, one product after the other, fused.
pub fn sequential(a: &[f64], b: &[f64]) -> f64 {
    f64::from(a.iter().zip(b).fold(0.0f32, |sum, (x, y)| (*x as f32).mul_add(*y as f32, sum)))
}

/// The same from the end.
pub fn reversed(a: &[f64], b: &[f64]) -> f64 {
    f64::from(a.iter().zip(b).rev().fold(0.0f32, |sum, (x, y)| (*x as f32).mul_add(*y as f32, sum)))
}

/// In fp32 in sequence, each product rounded before it is added.
pub fn unfused(a: &[f64], b: &[f64]) -> f64 {
    f64::from(a.iter().zip(b).fold(0.0f32, |sum, (x, y)| sum + *x as f32 * *y as f32))
}

/// In fp32: blocks of `N` summed by themselves, then the sums.
pub fn blocked<const N: usize>(a: &[f64], b: &[f64]) -> f64 {
    let blocks = a.chunks(N).zip(b.chunks(N)).map(|(a, b)| sequential(a, b) as f32);
    f64::from(blocks.fold(0.0f32, |sum, block| sum + block))
}

/// In fp32: halves summed by themselves, and so on.
pub fn pairwise(a: &[f64], b: &[f64]) -> f64 {
    match a.len() {
        0 => 0.0,
        1 => to_f32(a[0] * b[0]),
        length => {
            let (left, right) = (a.split_at(length / 2), b.split_at(length / 2));
            to_f32(pairwise(left.0, right.0) + pairwise(left.1, right.1))
        }
    }
}

/// RMSNorm of one row.
pub fn rms_norm(row: ArrayView1<'_, f64>, gain: &Array1<f64>, eps: f64) -> Array1<f64> {
    let mean = mean_square(row);
    &row * (1.0 / (mean + eps).sqrt()) * gain
}

/// The mean of the squares.
pub fn mean_square(row: ArrayView1<'_, f64>) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64
}

/// Softmax of one row; minus infinity is a forbidden entry, and a row of nothing else becomes zero.
pub fn softmax(row: ArrayView1<'_, f64>) -> Array1<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return Array1::zeros(row.len());
    }
    let e = row.mapv(|z| (z - largest).exp());
    let sum = e.sum();
    e / sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roundings_keep_what_they_can_hold() {
        for round in [to_bf16, to_f16, to_tf32, to_fp8, truncated, to_f32] {
            assert_eq!([0.0, 1.0, -1.25, 0.5].map(round), [0.0, 1.0, -1.25, 0.5]);
        }
        assert_eq!([1.0 + 2f64.powi(-11), 1.0 + 3.0 * 2f64.powi(-11)].map(to_tf32), [1.0, 1.0 + 2f64.powi(-9)]);
        assert_eq!((truncated(1.999), to_bf16(1.999)), (1.9921875, 2.0));
        assert_eq!([17.0, 19.0, 1e3].map(to_fp8), [16.0, 20.0, 448.0]);
    }

    #[test]
    fn every_order_of_the_sum_gives_the_sum() {
        let a: Vec<f64> = (0..77).map(|i| to_bf16((f64::from(i) * 0.7).sin())).collect();
        let b: Vec<f64> = (0..77).map(|i| to_bf16((f64::from(i) * 1.3).cos() + 0.2)).collect();
        let sum = exact(&a, &b);
        for dot in [sequential, reversed, unfused, blocked::<16>, blocked::<64>, pairwise] {
            assert!((dot(&a, &b) - sum).abs() < 3e-6, "{} {sum}", dot(&a, &b));
        }
        assert!((bf16_accumulator(&a, &b) - sum).abs() > 1e-4);
    }
}
