//! Weights that change no norm: for tests at any depth.
//!
//! With Gaussian weights of variance 1/in a vector keeps its norm on average only. Through L layers its logarithm walks at
//! random, and a common factor of 1/1000 or 1000 after 60 layers says nothing about the code that is tested. A matrix
//! with orthonormal columns (or rows, if it is wide) keeps the norm of every vector (of its row space) to the last bits,
//! and the condition number is 1: errors are carried on as they are.

use ndarray::Array2;
use ndarray_linalg::QR;

use crate::weights::WeightSource;
use crate::weights::changed::Changed;
use crate::{Dtype, Error, Result, Tensor};

/// The weights of another source, each matrix \[out,in\] replaced by the nearest thing that keeps norms: the Q of its QR
/// decomposition (of the transposed matrix's, if it is wider than high). Vectors (norms, biases) stay as they are.
pub fn orthonormal<W: WeightSource>(source: W) -> impl WeightSource {
    let change = |name: &str, tensor: Tensor| {
        let &[rows, columns] = tensor.shape() else { return Ok(tensor) };
        let matrix: Array2<f64> = tensor.to_array();
        let q =
            q(matrix).map_err(|error| Error::weight(name, "a matrix with a QR decomposition", error.to_string()))?;
        Ok(Tensor::from_values(Dtype::F64, &[rows, columns], q.iter().copied()))
    };
    Changed { source: Box::new(source), change }
}

fn q(matrix: Array2<f64>) -> Result<Array2<f64>, ndarray_linalg::error::LinalgError> {
    if matrix.is_empty() {
        return Ok(matrix);
    }
    if matrix.nrows() >= matrix.ncols() {
        return Ok(matrix.qr()?.0);
    }
    let (columns, _) = matrix.t().as_standard_layout().qr()?;
    Ok(columns.reversed_axes().as_standard_layout().into_owned())
}
