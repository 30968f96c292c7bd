//! Errors drawn at random where a computation rounds: one more implementation of the same precision.
//!
//! Two plain implementations round at other places and add in another order. On a large tensor both err alike; on one of a
//! few numbers, one of them may be lucky, or a sum cancels to nearly nothing in the one and not in the other. So each number
//! is moved by an error of a rounding's usual size: where it is stored, in place of the rounding, and where it is read. What
//! a sum makes of that is in proportion to its terms, not to what is left of them.

use dsv2_reference::stage::table::{DOWN_PROJ, EXPERTS, SHARED_EXPERTS};
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::changed::Changed;
use dsv2_reference::weights::generator::{fnv1a64, splitmix64};
use dsv2_reference::{DeepseekV2Config, Dtype, Real, Tensor};

use ndarray::ArrayD;

use super::storage::{ROUNDING, Tf32Operands, normal, roundings_inside};
use crate::precision::{Choice, Precision, unit_roundoff};

/// Such errors of a model's weights, for what is rounded inside a stage: each product of a sum has one of its own.
#[derive(Clone, Copy)]
pub struct DrawnWeights<'a> {
    /// What kind of model has them.
    pub config: &'a DeepseekV2Config,
    /// What is computed in.
    pub precision: Precision,
    /// Which draw it is.
    pub draw: u64,
}

impl DrawnWeights<'_> {
    /// The weights with these errors.
    pub fn of(self, weights: &dyn WeightSource) -> impl WeightSource {
        let change = move |name: &str, exact: Tensor| {
            // what is looked up is copied; and where both sides have 8 bits, the operands' errors are far larger
            if name.ends_with("embed_tokens.weight") || (self.precision == Precision::Fp8 && exact.is_scaled()) {
                return Ok(exact);
            }
            let wide: ArrayD<f64> = exact.to_array();
            let (size, seed) = (self.size(name), fnv1a64(name) ^ splitmix64(self.draw));
            let drawn = wide.iter().enumerate().map(|(i, x)| x * (1.0 + size * normal(seed.wrapping_add(i as u64))));
            Ok(Tensor::from_values(Dtype::F64, exact.shape(), drawn))
        };
        Changed { source: weights, change }
    }

    /// What is lost, relative to a product.
    fn size(&self, name: &str) -> f64 {
        let kind = match name.ends_with(".down_proj.weight") {
            true if name.contains(".shared_experts.") => SHARED_EXPERTS,
            true if name.contains(".experts.") => EXPERTS,
            true => DOWN_PROJ,
            false => return ROUNDING * unit_roundoff(Dtype::F32),
        };
        let (roundings, _) = roundings_inside(kind, self.config);
        let unit = match self.precision {
            Precision::Tf32 => Tf32Operands::UNIT_ROUNDOFF,
            other => unit_roundoff(other.narrow().unwrap_or(Dtype::F32)),
        };
        ROUNDING * unit * (roundings as f64).sqrt()
    }
}

/// Where the errors are made.
#[derive(Clone, Copy)]
enum Where<'a> {
    /// Where numbers are stored in a narrow type.
    Stored,
    /// Where they are read. Those that the trace holds came rounded, and another implementation may not have stored them.
    Read { held: Option<Choice<'a>>, operands: Option<Tf32Operands> },
}

/// See the module.
pub struct Drawn<'a> {
    precision: Precision,
    draw: u64,
    place: Where<'a>,
}

impl<'a> Drawn<'a> {
    /// In place of rounding to the type in which numbers are stored.
    pub fn stored(precision: Precision, draw: u64) -> Self {
        Drawn { precision, draw, place: Where::Stored }
    }

    /// In place of what reading them costs: the numbers of what is `held` are given, and matrix products read `operands` as TF32.
    pub fn read(precision: Precision, draw: u64, held: Option<Choice<'a>>, operands: Option<Tf32Operands>) -> Self {
        Drawn { precision, draw, place: Where::Read { held, operands } }
    }

    /// What is lost, relative to a number.
    fn size(&self, name: &str) -> f64 {
        let stored = self.precision.stored(name);
        match &self.place {
            Where::Stored if Some(stored) == self.precision.narrow() => unit_roundoff(stored),
            Where::Stored => 0.0,
            Where::Read { operands: Some(operands), .. } if operands.reads(name) => Tf32Operands::UNIT_ROUNDOFF,
            Where::Read { held: Some(held), .. } if held(name) => unit_roundoff(stored),
            Where::Read { .. } => unit_roundoff(Dtype::F32),
        }
    }
}

impl<T: Real> Tap<T> for Drawn<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        let StageValue::Real(mut value) = value else { return };
        let size = ROUNDING * self.size(name);
        if size == 0.0 {
            return;
        }
        // The numbers of f16 are no closer together below its smallest normal one.
        let least = if self.precision.stored(name) == Dtype::F16 { f64::from(half::f16::MIN_POSITIVE) } else { 0.0 };
        let place = u64::from(matches!(self.place, Where::Stored));
        let seed = fnv1a64(name) ^ splitmix64(2 * self.draw + place);
        for (i, x) in value.iter_mut().enumerate().filter(|(_, x)| x.is_finite()) {
            let own = Real::to_f64(*x);
            *x = T::from_f64(own + size * own.abs().max(least) * normal(seed.wrapping_add(i as u64)));
        }
    }
}
