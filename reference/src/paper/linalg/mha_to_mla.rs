//! A multi-head layer made into MLA: where the latent comes from (paper 2.1.2, eq. 9 to 11).
//!
//! ```text
//! c^KV_t = W^DKV h_t                                      (9)
//! k^C_t  = W^UK c^KV_t,   v^C_t = W^UV c^KV_t             (10, 11)
//! ```
//!
//! Multi-head attention computes \[k;v\] = W h with one W = \[W^K; W^V\] of shape \[H(n+v),D\]. MLA says that W = W^UKV W^DKV
//! goes through c numbers. If W has rank c or less that is no approximation; if not, the best W^UKV W^DKV is W's truncated
//! singular value decomposition, and its error is known beforehand: the singular values that were left out
//! ([`ThinSvd::error_of_rank`]). Keys and values are compressed *jointly*, as the paper does: what they have in common is
//! kept once.
//!
//! Two ways: the best for the weights ([`LatentKeysAndValues::of_weights`]), and the best for given inputs
//! ([`LatentKeysAndValues::of_inputs`]), where a direction that no input has costs nothing.
//!
//! What this is not: the released models have an RMSNorm between W^DKV and W^UKV (paper 3.1.2), which no conversion of
//! weights can bring about, and a key with a position (eq. 43) beside the latent. A layer whose keys are rotated cannot
//! be converted exactly at all: the rotation stands between W^K and W^Q and depends on the position (paper 2.1.3).

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use super::ThinSvd;
use crate::arithmetic::matmul::matmul_t;
use crate::{Error, Result};

/// W^DKV and W^UKV instead of W^K and W^V.
#[derive(Clone, Debug)]
pub struct LatentKeysAndValues {
    /// \[c,D\].
    pub w_dkv: Array2<f64>,
    /// \[Hn,c\].
    pub w_uk: Array2<f64>,
    /// \[Hv,c\].
    pub w_uv: Array2<f64>,
    /// What it errs in Frobenius' norm: in \[W^K; W^V\], or in the keys and values of the given inputs.
    pub error: f64,
}

impl LatentKeysAndValues {
    /// The `rank` numbers from which W^K \[Hn,D\] and W^V \[Hv,D\] themselves are restored best.
    ///
    /// # Errors
    /// If W^K and W^V have different D or an element that is not finite, or `rank` exceeds H(n+v) or D.
    pub fn of_weights(w_k: ArrayView2<f64>, w_v: ArrayView2<f64>, rank: usize) -> Result<Self> {
        let svd = ThinSvd::of(joint(w_k, w_v)?.view())?;
        let (up, down) = svd.truncated(rank)?;
        Ok(Self::new(down, up, w_k.nrows(), svd.error_of_rank(rank)))
    }

    /// The `rank` numbers from which the keys and values of `inputs` \[N,D\] are restored best.
    ///
    /// With Y = inputs W^T \[N,H(n+v)\] = U diag(sigma) V^T, the best approximation of Y is Y V_c V_c^T, so W^DKV = V_c^T W and
    /// W^UKV = V_c.
    ///
    /// # Errors
    /// As above; and if `rank` exceeds N.
    pub fn of_inputs(w_k: ArrayView2<f64>, w_v: ArrayView2<f64>, inputs: ArrayView2<f64>, rank: usize) -> Result<Self> {
        let w = joint(w_k, w_v)?;
        if inputs.ncols() != w.ncols() {
            return Err(Error::input("inputs", format!("[N, {}]", w.ncols()), format!("{:?}", inputs.shape())));
        }
        let svd = ThinSvd::of(matmul_t(inputs, w.view()).view())?;
        let (_, directions) = svd.truncated(rank)?;
        let down = matmul_t(directions.view(), w.t());
        Ok(Self::new(down, directions.reversed_axes(), w_k.nrows(), svd.error_of_rank(rank)))
    }

    fn new(w_dkv: Array2<f64>, w_ukv: Array2<f64>, keys: usize, error: f64) -> Self {
        let w_uk = w_ukv.slice(s![..keys, ..]).to_owned();
        let w_uv = w_ukv.slice(s![keys.., ..]).to_owned();
        LatentKeysAndValues { w_dkv, w_uk, w_uv, error }
    }

    /// c^KV, k and v of `hidden` \[N,D\] (eq. 9 to 11): \[N,c\], \[N,Hn\], \[N,Hv\].
    pub fn forward(&self, hidden: ArrayView2<f64>) -> (Array2<f64>, Array2<f64>, Array2<f64>) {
        let latent = matmul_t(hidden, self.w_dkv.view());
        let keys = matmul_t(latent.view(), self.w_uk.view());
        let values = matmul_t(latent.view(), self.w_uv.view());
        (latent, keys, values)
    }
}

/// \[W^K; W^V\].
fn joint(w_k: ArrayView2<f64>, w_v: ArrayView2<f64>) -> Result<Array2<f64>> {
    concatenate(Axis(0), &[w_k, w_v])
        .map(|w| w.as_standard_layout().into_owned())
        .map_err(|_| Error::input("w_v", format!("[., {}], as wide as w_k", w_k.ncols()), format!("{:?}", w_v.shape())))
}
