//! How far a correct result may be off: the bounds behind the budgets.
//!
//! ```text
//! |fl(W x) - W x| <= gamma_K |W| |x|,     gamma_K = K u / (1 - K u)                   rounding, element by element
//! |W (x + dx) - W x| / |W x| <= kappa(W, x) |dx| / |x|,   kappa(W, x) = |W|_2 |x| / |W x| <= kappa(W)   propagation
//! ```
//!
//! u is the unit roundoff (2^-24 in fp32), K the length of the sum. The first holds for every order of summation; it is what
//! no correct implementation exceeds, and some 1e5 times what a good one errs at K = 5120, so it is no tolerance. The
//! second is why an error that was made in one stage may be larger in the next with nothing wrong there, and why a
//! verdict needs local errors. (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 3.1 and 7.1.)

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use super::ThinSvd;
use crate::Result;
use crate::arithmetic::matmul::matmul_t;

/// kappa(W) = sigma_max / sigma_min: the largest factor by which a relative error can grow. Infinite if W has not full rank.
///
/// # Errors
/// If W is empty or has an element that is not finite.
pub fn condition_number(w: ArrayView2<f64>) -> Result<f64> {
    let svd = ThinSvd::of(w)?;
    let full = svd.rank() == svd.sigma.len();
    Ok(if full { svd.sigma[0] / svd.sigma[svd.sigma.len() - 1] } else { f64::INFINITY })
}

/// kappa(W, x): the largest factor by which a relative error of this x \[in\] can grow. At most [`condition_number`], if W
/// is not wider than high.
///
/// # Errors
/// If W is empty or has an element that is not finite.
pub fn propagation(w: ArrayView2<f64>, x: ArrayView1<f64>) -> Result<f64> {
    let largest = ThinSvd::of(w)?.sigma[0];
    Ok(largest * norm(x) / norm(apply(w, x).view()))
}

/// gamma_K |W| |x|: how far each element of W x \[out\] may be off, if products and sums are rounded to unit roundoff `u`, in
/// whatever order.
pub fn rounding_bound(w: ArrayView2<f64>, x: ArrayView1<f64>, u: f64) -> Array1<f64> {
    let ku = w.ncols() as f64 * u;
    apply(w.mapv(f64::abs).view(), x.mapv(f64::abs).view()) * (ku / (1.0 - ku))
}

fn apply(w: ArrayView2<f64>, x: ArrayView1<f64>) -> Array1<f64> {
    let row: Array2<f64> = matmul_t(x.insert_axis(ndarray::Axis(0)), w);
    row.index_axis_move(ndarray::Axis(0), 0)
}

fn norm(x: ArrayView1<f64>) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}
