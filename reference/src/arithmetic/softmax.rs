//! Softmax over the last axis, in place.

use ndarray::{Array1, ArrayViewMut1};

use super::matmul::dot;
use crate::Real;

/// `p_j = exp(z_j - max z) / sum_i exp(z_i - max z)`, in place.
///
/// Minus infinity is a forbidden entry and gets exactly 0, and does not change a bit of the others: the row is the same
/// with and without it at its end. A row with no allowed entry at all becomes **zero** (as in PyTorch's sdpa and
/// FlashMLA; Transformers' eager attention makes it uniform over *all* keys, the future included; nobody may rely on
/// it).
pub fn softmax<T: Real>(mut row: ArrayViewMut1<T>) {
    let max = row.iter().copied().fold(T::neg_infinity(), T::max);
    if row.iter().all(|&z| z == T::neg_infinity()) {
        row.fill(T::zero());
        return;
    }
    row.mapv_inplace(|z| if z == T::neg_infinity() { T::zero() } else { (z - max).exp() });
    let sum = dot(row.view(), Array1::ones(row.len()).view());
    row.mapv_inplace(|e| e / sum);
}

/// `log sum_i exp(z_i)`, without overflow; the logarithm that cross-entropy subtracts.
pub fn log_sum_exp<T: Real>(row: ndarray::ArrayView1<T>) -> T {
    let max = row.iter().copied().fold(T::neg_infinity(), T::max);
    let exp = row.mapv(|z| (z - max).exp());
    max + dot(exp.view(), Array1::ones(exp.len()).view()).ln()
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use ndarray::array;

    use super::*;

    #[test]
    fn known_values() {
        let mut z = array![0.0, 2.0_f64.ln(), f64::NEG_INFINITY, 5.0_f64.ln()];
        softmax(z.view_mut());
        assert_abs_diff_eq!(z, array![0.125, 0.25, 0.0, 0.625], epsilon = 1e-15);
    }

    #[test]
    fn a_forbidden_tail_changes_no_bit() {
        let mut short = array![0.3_f32, -1.7, 2.2, 0.9, 4.1];
        let mut long = Array1::from_elem(37, f32::NEG_INFINITY);
        long.slice_mut(ndarray::s![..5]).assign(&short);
        softmax(short.view_mut());
        softmax(long.view_mut());
        assert_eq!(long.slice(ndarray::s![..5]), short);
    }

    #[test]
    fn a_row_without_an_allowed_entry_is_zero() {
        let mut z = Array1::from_elem(3, f64::NEG_INFINITY);
        softmax(z.view_mut());
        assert_eq!(z, Array1::<f64>::zeros(3));
    }

    #[test]
    fn nan_is_not_lost() {
        for mut z in [array![f64::NAN, f64::NAN], array![f64::NAN, 1.0], array![f64::NEG_INFINITY, f64::NAN]] {
            softmax(z.view_mut());
            assert!(z.iter().any(|p| p.is_nan()), "{z}");
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let mut z = array![1000.0_f32, 0.0];
        softmax(z.view_mut());
        assert_eq!(z, array![1.0, 0.0]);
        assert_abs_diff_eq!(log_sum_exp(array![1000.0_f32, 1000.0].view()), 1000.0 + 2.0_f32.ln());
    }
}
