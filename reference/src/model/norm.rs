//! Root mean square normalisation (RMSNorm), used before each sub-layer, after the last layer, and on both latents of
//! MLA.

use ndarray::{Array1, Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut1};

use crate::arithmetic::map::row_by_row;
use crate::arithmetic::matmul::dot;
use crate::weights::WeightSource;
use crate::{Real, Result};

/// The epsilon of the two norms inside attention, `q_a_layernorm` and `kv_a_layernorm`: always this, whatever
/// `rms_norm_eps` says.
///
/// **Trap.** candle and mistral.rs pass `rms_norm_eps` to them. Every published checkpoint has `rms_norm_eps` = 1e-6,
/// so the mistake shows only with another value (an error of 1e-3 at 1e-3).
pub const LATENT_NORM_EPS: f64 = 1e-6;

/// RMSNorm with a gain.
#[derive(Debug, Clone)]
pub struct RmsNorm<T> {
    weight: Array1<T>,
    eps: T,
}

impl<T: Real> RmsNorm<T> {
    /// A norm over vectors of `weight.len()` elements.
    pub fn new(weight: Array1<T>, eps: f64) -> Self {
        RmsNorm { weight, eps: T::from_f64(eps) }
    }

    /// Takes `{path}.weight` \[width\] from `weights`.
    ///
    /// # Errors
    /// If it is missing or of another shape.
    pub fn load(weights: &dyn WeightSource, path: &str, width: usize, eps: f64) -> Result<Self> {
        Ok(RmsNorm::new(weights.tensor(&format!("{path}.weight"), &[width])?.to_array(), eps))
    }

    /// `y = w * x / sqrt(mean(x^2) + eps)`, row by row: \[N,D\] -> \[N,D\].
    ///
    /// No mean is subtracted, the gain is `w` and not `1 + w`, and eps is inside the root. In a bf16 model the
    /// statistics are fp32 and the normalised value is rounded to bf16 *before* it is multiplied by `w` (Transformers,
    /// and DeepSeek's own code); one rounding less is a benign difference.
    pub fn forward(&self, x: ArrayView2<T>) -> Array2<T> {
        let mut y = x.as_standard_layout().into_owned();
        for row in y.rows_mut() {
            self.normalise(row);
        }
        y
    }

    /// The same of each token: \[B,S,D\] -> \[B,S,D\].
    pub fn forward_3d(&self, x: ArrayView3<T>) -> Array3<T> {
        row_by_row(x, |x| self.forward(x))
    }

    fn normalise(&self, mut row: ArrayViewMut1<T>) {
        let size = T::from_f64(row.len() as f64);
        let variance = dot(row.view(), row.view()) / size;
        let scale = T::one() / (variance + self.eps).sqrt();
        row.zip_mut_with(&self.weight, |x, &w| *x = w * (*x * scale));
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn a_zero_row_stays_zero() {
        let norm = RmsNorm::new(array![1.0, 1.0], 1e-6);
        assert_eq!(norm.forward(array![[0.0, 0.0]].view()), array![[0.0, 0.0]]);
    }
}
