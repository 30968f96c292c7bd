//! Projections: every stage that is a matrix times the stage before it.

use std::rc::Rc;

use dsv2_reference::stage::{self, table};
use ndarray::{Array1, Array2, ArrayD};

use crate::mutants::arithmetic::{Dot, product};
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
            table::Q_PROJ | table::Q_A_PROJ | table::KV_A_PROJ => self.rows(table::INPUT_LAYERNORM, layer)?,
            table::Q_B_PROJ => self.rows(table::Q_A_LAYERNORM, layer)?,
            table::KV_B_PROJ => {
                let latents = keys_of_this_pass()?;
                let (batch, keys, width) = latents.dim();
                latents.into_shape_with_order((batch * keys, width)).ok()?
            }
            table::O_PROJ => self.rows(table::ATTN_OUTPUT, layer)?,
            table::GATE_PROJ | table::UP_PROJ | table::ROUTER_LOGITS => {
                self.rows(table::POST_ATTENTION_LAYERNORM, layer)?
            }
            table::DOWN_PROJ => {
                let activation = self.config().activation().ok()?;
                self.rows(table::GATE_PROJ, layer)?.mapv(|x| activation.apply(x)) * self.rows(table::UP_PROJ, layer)?
            }
            table::LM_HEAD if self.inputs().logits_to_keep.is_some() => return None,
            table::LM_HEAD | table::SCORE => self.rows(table::NORM, 0)?,
            _ => return None,
        };
        let path = match kind {
            table::ROUTER_LOGITS => stage::name(kind, layer).replace(".router_logits", ""),
            _ => stage::name(kind, layer),
        };
        let weight = self.weights().matrix(&format!("{path}.weight"))?;
        Some(Projection { x, weight, bias: self.weights().vector(&format!("{path}.bias")) })
    }
}
