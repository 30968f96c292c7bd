//! A tap that stores every tensor in a narrower type: the storage of a bf16 (or f16) implementation around fp32
//! arithmetic.
//!
//! A plain bf16 implementation computes each operation in fp32 and rounds its result. Doing the same to every stage
//! gives the error that such an implementation may make, which is what a budget is measured in.

use half::{bf16, f16};

use crate::tap::{StageValue, Tap};
use crate::{Dtype, Real};

/// Rounds each stage to nearest, ties to even, except those that stay fp32 in a narrow model too: the rotary tables,
/// the router, the loss.
#[derive(Debug, Clone, Copy)]
pub struct RoundingTap(pub Dtype);

impl RoundingTap {
    /// Whether the stage is stored in the narrow type.
    pub fn rounds(stage: &str) -> bool {
        let fp32 = ["rotary_emb.cos", "rotary_emb.sin", "mlp.gate.router_logits", "mlp.gate.topk_weights"];
        stage != "loss" && !fp32.iter().any(|end| stage.ends_with(end))
    }

    fn round<T: Real>(self, x: T) -> T {
        match self.0 {
            Dtype::Bf16 => T::from_f32(bf16::from_f32(x.to_f32()).to_f32()),
            Dtype::F16 => T::from_f32(f16::from_f32(x.to_f32()).to_f32()),
            Dtype::F32 => T::from_f32(x.to_f32()),
            Dtype::F64 => x,
        }
    }
}

impl<T: Real> Tap<T> for RoundingTap {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if let StageValue::Real(mut value) = value
            && RoundingTap::rounds(name)
        {
            value.mapv_inplace(|x| self.round(x));
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn rounds_to_nearest_even_and_keeps_infinities() {
        let mut x = array![1.0_f32, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::NEG_INFINITY];
        RoundingTap(Dtype::Bf16).stage("model.norm", StageValue::Real(x.view_mut().into_dyn()));
        assert_eq!(x, array![1.0, 1.0, 1.015625, f32::NEG_INFINITY]);
    }

    #[test]
    fn router_and_rotary_tables_stay_fp32() {
        for stage in ["model.rotary_emb.cos", "model.layers.3.mlp.gate.router_logits", "loss"] {
            let mut x = array![1.0_f32 + 1.0 / 256.0];
            RoundingTap(Dtype::Bf16).stage(stage, StageValue::Real(x.view_mut().into_dyn()));
            assert_eq!(x, array![1.0 + 1.0 / 256.0], "{stage}");
        }
    }
}
