//! How functions of rows and of pairs of numbers are applied to whole tensors.

use ndarray::{Array, Array2, Array3, ArrayView2, ArrayView3, Dimension, Zip};

use crate::Real;

/// Applies a function of rows to each token: \[B,S,·\] -> \[B,S,·\].
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
