//! Facts about the model's matrices, with LAPACK: feature `linalg`, which needs OpenBLAS on the system (Debian:
//! `apt-get install libopenblas-dev`). Nothing else in this crate depends on it.
//!
//! | module | question |
//! |---|---|
//! | [`absorbed`] | what is W^UQ^T W^UK, and why is it never multiplied out? |
//! | [`mha_to_mla`] | where does the latent come from: what does a rank of c cost a multi-head layer? |
//! | [`orthonormal`] | weights that change no norm, at any depth |
//! | [`condition`] | how far may a correct result be off? |

pub mod absorbed;
pub mod condition;
pub mod mha_to_mla;
pub mod orthonormal;

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use ndarray_linalg::SVD;

use crate::{Error, Result};

/// A = U diag(sigma) V^T, without the columns of U and the rows of V^T that belong to no singular value.
#[derive(Clone, Debug)]
pub struct ThinSvd {
    /// Orthonormal columns: \[m,min(m,n)\].
    pub u: Array2<f64>,
    /// Singular values, falling: \[min(m,n)\].
    pub sigma: Array1<f64>,
    /// Orthonormal rows: \[min(m,n),n\].
    pub vt: Array2<f64>,
}

impl ThinSvd {
    /// Of a matrix \[m,n\].
    ///
    /// # Errors
    /// If it has no elements or one that is not finite (LAPACK may not return from those), or LAPACK finds no solution.
    pub fn of(a: ArrayView2<f64>) -> Result<Self> {
        let (rows, columns) = a.dim();
        if a.is_empty() || !a.iter().all(|x| x.is_finite()) {
            let found = format!("[{rows}, {columns}]{}", if a.is_empty() { "" } else { " with one that is not" });
            return Err(Error::input("matrix", "one or more elements, all finite", found));
        }
        // In standard layout: the wrapper transposes what is in Fortran's order, and U and V^T with it.
        let (u, sigma, vt) = a
            .as_standard_layout()
            .svd(true, true)
            .map_err(|error| Error::input("matrix", "one with a singular value decomposition", error))?;
        let rank = rows.min(columns);
        let (Some(u), Some(vt)) = (u, vt) else {
            return Err(Error::input("matrix", "its singular vectors", "singular values alone"));
        };
        Ok(ThinSvd { u: u.slice_move(s![.., ..rank]), sigma, vt: vt.slice_move(s![..rank, ..]) })
    }

    /// How many singular values are more than rounding errors: larger than max(m, n) 2^-52 times the largest.
    pub fn rank(&self) -> usize {
        let size = self.u.nrows().max(self.vt.ncols()) as f64;
        let largest = self.sigma.first().copied().unwrap_or(0.0);
        self.sigma.iter().filter(|&&sigma| sigma > size * f64::EPSILON * largest).count()
    }

    /// The best approximation of rank `rank`, as two factors \[m,rank\] and \[rank,n\]: U_r diag(sigma_r) and V_r^T.
    ///
    /// # Errors
    /// If there are fewer singular values, or none is asked for.
    pub fn truncated(&self, rank: usize) -> Result<(Array2<f64>, Array2<f64>)> {
        let most = self.sigma.len();
        if !(1..=most).contains(&rank) {
            return Err(Error::input("rank", format!("1 to {most}, the smaller side of the matrix"), rank));
        }
        let left = &self.u.slice(s![.., ..rank]) * &self.sigma.slice(s![..rank]).insert_axis(Axis(0));
        Ok((left, self.vt.slice(s![..rank, ..]).to_owned()))
    }

    /// What the best approximation of rank `rank` errs, in Frobenius' norm: sqrt(sum_{i > rank} sigma_i^2) (Eckart and
    /// Young 1936). In the spectral norm it is `sigma[rank]`.
    pub fn error_of_rank(&self, rank: usize) -> f64 {
        self.sigma.iter().skip(rank).map(|sigma| sigma * sigma).sum::<f64>().sqrt()
    }
}
