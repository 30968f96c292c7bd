//! Norms.

use dsv2_reference::model::norm::LATENT_NORM_EPS;
use dsv2_reference::stage::{self, table};
use ndarray::{Array1, Array2, ArrayD, ArrayView1, Axis, s};

use crate::mutants::At;
use crate::mutants::scene::{Scene, shaped};

/// What a norm is computed from.
pub struct NormInput {
    /// The rows that are normed.
    pub rows: Array2<f64>,
    /// The gain.
    pub gain: Array1<f64>,
    /// What is added to the mean square.
    pub eps: f64,
}

impl NormInput {
    /// Norms each row by `norm(row, gain, eps)`; the result has the shape of `like`.
    pub fn each(
        &self,
        like: &ArrayD<f64>,
        norm: impl Fn(ArrayView1<'_, f64>, &Array1<f64>, f64) -> Array1<f64>,
    ) -> Option<ArrayD<f64>> {
        let mut normed = self.rows.clone();
        for mut row in normed.axis_iter_mut(Axis(0)) {
            let y = norm(row.view(), &self.gain, self.eps);
            row.assign(&y);
        }
        shaped(normed, like)
    }
}

impl Scene<'_> {
    /// The input of a norm.
    pub fn norm_input(&self, kind: &str, layer: usize) -> Option<NormInput> {
        let c = self.config();
        let (rows, eps) = match kind {
            table::INPUT_LAYERNORM => (self.stream(layer)?, c.rms_norm_eps),
            table::POST_ATTENTION_LAYERNORM => (self.middle(layer)?, c.rms_norm_eps),
            table::NORM => (self.stream(c.num_hidden_layers)?, c.rms_norm_eps),
            table::Q_A_LAYERNORM => (self.rows(table::Q_A_PROJ, layer)?, LATENT_NORM_EPS),
            table::KV_A_LAYERNORM => {
                (self.rows(table::KV_A_PROJ, layer)?.slice_move(s![.., ..c.kv_lora_rank]), LATENT_NORM_EPS)
            }
            _ => return None,
        };
        let gain = self.weights().vector(&format!("{}.weight", stage::name(kind, layer)))?;
        Some(NormInput { rows, gain, eps })
    }

    /// Another norm in the place of one of the model: each row by `norm(row, gain, eps)`.
    pub fn normed(
        &self,
        at: At<'_>,
        norm: impl Fn(ArrayView1<'_, f64>, &Array1<f64>, f64) -> Array1<f64>,
    ) -> Option<ArrayD<f64>> {
        self.norm_input(at.kind, at.layer)?.each(at.value, norm)
    }
}
