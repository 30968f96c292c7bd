//! Projections: every stage that is a matrix times the stage before it.

use std::rc::Rc;

use ndarray::{Array1, Array2, ArrayD};

use crate::mutants::arithmetic::{Dot, product};
use crate::mutants::kinds;
use crate::mutants::scene::{Scene, shaped};

/// A projection's input and its weights.
pub struct Projection {
    /// `[N,in]`
    pub x: Array2<f64>,
    /// `[out,in]`
    pub weight: Rc<Array2<f64>>,
    /// `[out]`
    pub bias: Option<Array1<f64>>,
}

impl Projection {
    /// `x Wᵀ + b`, summed by `dot`, in the shape of `like`.
    pub fn apply(&self, like: &ArrayD<f64>, dot: Dot) -> Option<ArrayD<f64>> {
        let mut y = product(self.x.view(), self.weight.view(), dot);
        if let Some(bias) = &self.bias {
            y += bias;
        }
        shaped(y, like)
    }
}

impl Scene<'_> {
    /// A projection, by the kind of its output. The router is one, and so is the head (if all positions get logits).
    pub fn projection(&self, kind: &str, layer: usize) -> Option<Projection> {
        let keys_of_this_pass = || self.latents(layer);
        let x = match kind {
            kinds::Q | kinds::Q_A | kinds::KV_A => self.rows(kinds::INPUT_NORM, layer)?,
            kinds::Q_B => self.rows(kinds::Q_A_NORM, layer)?,
            kinds::KV_B => {
                let latents = keys_of_this_pass()?;
                let (batch, keys, width) = latents.dim();
                latents.into_shape_with_order((batch * keys, width)).ok()?
            }
            kinds::O => self.rows(kinds::ATTENTION, layer)?,
            kinds::GATE | kinds::UP | kinds::LOGITS => self.rows(kinds::POST_NORM, layer)?,
            kinds::DOWN => {
                let activation = self.config().activation().ok()?;
                self.rows(kinds::GATE, layer)?.mapv(|x| activation.apply(x)) * self.rows(kinds::UP, layer)?
            }
            kinds::LM_HEAD if self.inputs().logits_to_keep.is_some() => return None,
            kinds::LM_HEAD | kinds::SCORE => self.rows(kinds::FINAL_NORM, 0)?,
            _ => return None,
        };
        let path = match kind {
            kinds::LOGITS => kinds::name(kind, layer).replace(".router_logits", ""),
            _ => kinds::name(kind, layer),
        };
        let weight = self.weights().matrix(&format!("{path}.weight"))?;
        Some(Projection { x, weight, bias: self.weights().vector(&format!("{path}.bias")) })
    }
}
