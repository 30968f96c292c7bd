//! The two building blocks with weights, as modules of a checkpoint: found by path, applied to \[B,S,·\]. And how
//! functions of rows and of numbers are applied.

use ndarray::{Array, Array1, Array2, Array3, ArrayView2, ArrayView3, Dimension, Zip};

use crate::arithmetic::linear::Linear;
use crate::model::norm::RmsNorm;
use crate::weights::WeightSource;
use crate::{Real, Result};

impl<T: Real> Linear<T> {
    /// Takes `{path}.weight` \[rows,columns\], and `{path}.bias` \[rows\] if it has one, from `weights`.
    ///
    /// # Errors
    /// If either is missing or of another shape.
    pub fn load(weights: &dyn WeightSource, path: &str, rows: usize, columns: usize, bias: bool) -> Result<Self> {
        let weight = weights.tensor(&format!("{path}.weight"), &[rows, columns])?;
        let bias = if bias { Some(weights.tensor(&format!("{path}.bias"), &[rows])?.to_array()) } else { None };
        Ok(Linear::new(weight, bias))
    }

    /// \[B,S,in\] -> \[B,S,out\].
    pub fn forward_3d(&self, x: ArrayView3<T>) -> Array3<T> {
        row_by_row(x, |x| self.forward(x))
    }
}

impl<T: Real> RmsNorm<T> {
    /// Takes `{path}.weight` \[width\] from `weights`.
    ///
    /// # Errors
    /// If it is missing or of another shape.
    pub fn load(weights: &dyn WeightSource, path: &str, width: usize, eps: f64) -> Result<Self> {
        let weight: Array1<T> = weights.tensor(&format!("{path}.weight"), &[width])?.to_array();
        Ok(RmsNorm::new(weight, eps))
    }

    /// \[B,S,D\] -> \[B,S,D\].
    pub fn forward_3d(&self, x: ArrayView3<T>) -> Array3<T> {
        row_by_row(x, |x| self.forward(x))
    }
}

/// Applies a function of rows to each token.
pub(crate) fn row_by_row<T: Real>(x: ArrayView3<T>, f: impl Fn(ArrayView2<T>) -> Array2<T>) -> Array3<T> {
    let (batch, length, width) = x.dim();
    let rows = x.to_shape((batch * length, width)).expect("a row for each token");
    let y = f(rows.view());
    let columns = y.ncols();
    y.into_shape_with_order((batch, length, columns)).expect("a row for each token")
}

/// Fewer numbers are done sooner than a thread takes over work.
const WORTH_A_THREAD: usize = 1 << 15;

/// Applies `f` to each number of x and its partner in y, which is repeated along axes of length 1.
pub(crate) fn pair_by_pair<T: Real, D: Dimension>(x: &mut Array<T, D>, y: &Array<T, D>, f: impl Fn(&mut T, &T) + Sync) {
    let pairs = Zip::from(x).and_broadcast(y);
    if pairs.size() < WORTH_A_THREAD {
        pairs.for_each(f);
    } else {
        pairs.par_for_each(&f);
    }
}
