//! Projections: every stage that is a matrix times the stage before it.

use std::rc::Rc;

use dsv2_reference::stage::{self, table::*};
use ndarray::{Array1, Array2, ArrayD};

use crate::mutants::At;
use crate::mutants::arithmetic::{Dot, product};
use crate::mutants::scene::{Scene, shaped};

/// Every stage that is one matrix product, and a head's; but the router.
pub const PROJECTIONS: &[&str] =
    &[Q_PROJ, Q_A_PROJ, Q_B_PROJ, KV_A_PROJ, KV_B_PROJ, O_PROJ, GATE_PROJ, UP_PROJ, DOWN_PROJ, LM_HEAD, SCORE];

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
        let x = match kind {
            Q_PROJ | Q_A_PROJ | KV_A_PROJ => self.rows(INPUT_LAYERNORM, layer)?,
            Q_B_PROJ => self.rows(Q_A_LAYERNORM, layer)?,
            KV_B_PROJ => {
                let latents = self.latents(layer)?;
                let (batch, keys, width) = latents.dim();
                latents.into_shape_with_order((batch * keys, width)).ok()?
            }
            O_PROJ => self.rows(ATTN_OUTPUT, layer)?,
            GATE_PROJ | UP_PROJ | ROUTER_LOGITS => self.rows(POST_ATTENTION_LAYERNORM, layer)?,
            DOWN_PROJ => {
                let activation = self.config().activation().ok()?;
                self.rows(GATE_PROJ, layer)?.mapv(|x| activation.apply(x)) * self.rows(UP_PROJ, layer)?
            }
            LM_HEAD if self.inputs().logits_to_keep.is_some() => return None,
            LM_HEAD | SCORE => self.rows(NORM, 0)?,
            _ => return None,
        };
        let path = match kind {
            ROUTER_LOGITS => stage::name(kind, layer).replace(".router_logits", ""),
            _ => stage::name(kind, layer),
        };
        let weight = self.weights().matrix(&format!("{path}.weight"))?;
        Some(Projection { x, weight, bias: self.weights().vector(&format!("{path}.bias")) })
    }

    /// Whatever is a sum of products of weights, a projection or all experts, summed by `dot`.
    pub fn summed(&self, at: At<'_>, dot: Dot) -> Option<ArrayD<f64>> {
        match at.kind {
            EXPERTS => {
                let routed = self.routed(at.layer)?;
                routed.sum(at.value, |e, x| routed.experts[e].forward(x, dot))
            }
            SHARED_EXPERTS => {
                let (x, expert) = self.shared(at.layer)?;
                shaped(expert.forward(&x, dot), at.value)
            }
            kind => self.projection(kind, at.layer)?.apply(at.value, dot),
        }
    }
}
