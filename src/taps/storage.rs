//! What a type does to numbers: where it is stored, where it is read, and what a plain loop in it makes of a sum.
//!
//! | precision | stages are stored in | operands of matrix products are read as | sums |
//! |---|---|---|---|
//! | f64, f32 | f64, f32 | they are | |
//! | tf32 | f32 | rounded to 10 bits of fraction | f32 |
//! | f16, bf16 | f16, bf16; rotary tables, router and loss in f32 | they are | f32 |
//!
//! A cache may have a narrower type of its own ([`CacheFormat`](dsv2_reference::model::cache::CacheFormat)): that is not done here, but
//! by the reference's cache, which then holds real bytes.

use dsv2_reference::stage::table::*;
use dsv2_reference::stage::{Stage, flow};
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::weights::generator::{fnv1a64, splitmix64};
use dsv2_reference::{DeepseekV2Config, Dtype, Real};
use ndarray::ArrayViewMutD;

use super::PartialSums;
use crate::precision::unit_roundoff;

/// Reads the operands of matrix products as TF32 does: rounded to 10 bits of fraction.
#[derive(Clone, Copy)]
pub struct Tf32Operands {
    /// Whether latents and rotary keys are read from a cache, and not as they were made.
    pub cached: bool,
}

/// Stages that are read by a matrix product.
const OPERANDS: [&str; 14] = [
    INPUT_LAYERNORM,
    Q_PROJ,
    Q_A_LAYERNORM,
    Q_B_PROJ,
    Q_PE,
    K_PE,
    KV_A_LAYERNORM,
    CACHED_KV,
    CACHED_K_PE,
    KV_B_PROJ,
    ATTN_WEIGHTS,
    ATTN_OUTPUT,
    POST_ATTENTION_LAYERNORM,
    NORM,
];

impl Tf32Operands {
    /// Half the distance of neighbours, relative.
    pub const UNIT_ROUNDOFF: f64 = 1.0 / (1 << 11) as f64;

    /// Whether the stage is such an operand.
    pub fn reads(&self, name: &str) -> bool {
        let Some(Stage { kind, .. }) = Stage::parse(name) else { return false };
        let goes_to_cache = [KV_A_LAYERNORM, K_PE].contains(&kind);
        OPERANDS.contains(&kind) && !(self.cached && goes_to_cache)
    }
}

impl<T: Real> Tap<T> for Tf32Operands {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if let StageValue::Real(mut value) = value
            && self.reads(name)
        {
            value.mapv_inplace(|x| T::from_f32(tf32(x.to_f32())));
        }
    }
}

/// The nearest number with 10 bits of fraction, ties to even.
fn tf32(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    let bits = x.to_bits();
    let even = (bits >> 13) & 1;
    f32::from_bits((bits + 0x0fff + even) & !0x1fff)
}

/// Makes stages err as much as those of a plain implementation, which is more than the reference does.
///
/// * The reference adds in many short sums. A loop over K products in fp32 was measured to err by 0.17·√K·2⁻²⁴ of the
///   result's usual size (for K from 512 to 16384).
/// * The reference rounds to a narrow type only where there is a stage. A program of many small kernels does so after each of
///   them (`roundings_inside`). One rounding costs 0.42·2⁻⁸ of the usual size in bf16, 0.42·2⁻¹¹ in f16.
///
/// So much, drawn at random but always alike, is added to each stage.
pub struct PlainErrors<'a> {
    config: &'a DeepseekV2Config,
    /// Which of all draws it is.
    draw: u64,
    /// What one rounding to the narrow type costs; 0 if there is none.
    rounding: f64,
    /// How many keys there are, from the last stage that has an axis of them.
    keys: usize,
    /// Whether the model is a classifier. A language model's loss is fp32 in any type.
    classifier: bool,
}

/// See [`PlainErrors`].
const PLAIN_SUM: f64 = 0.17 / (1 << 24) as f64;
/// What one rounding costs as a rule, in units of half the distance of neighbours.
pub const ROUNDING: f64 = 0.42;

/// How often a program of small kernels rounds on the way from one stage to the next, and whether what it rounds there is of
/// the stage's own elements or of many that are then summed.
pub fn roundings_inside(name: &str, config: &DeepseekV2Config) -> (usize, Rounded) {
    match Stage::parse(name).map_or(name, |stage| stage.kind) {
        // normalised, before the gain
        INPUT_LAYERNORM | Q_A_LAYERNORM | KV_A_LAYERNORM | NORM => (1, Rounded::Elements),
        // the same, and the residual stream between attention and MLP
        POST_ATTENTION_LAYERNORM => (2, Rounded::Elements),
        LAYER => (1, Rounded::Elements),
        // the product, scaled, then masked
        ATTN_SCORES => (2, Rounded::Elements),
        // activation, product with the other half
        DOWN_PROJ => (2, Rounded::Sums),
        // gate and up as well
        SHARED_EXPERTS => (3, Rounded::Sums),
        // and the output with its weight, expert by expert
        EXPERTS => (4 + config.experts_per_token().unwrap_or(0), Rounded::Sums),
        // a classifier's, in the type of its logits: difference, square, mean
        LOSS => (4, Rounded::Elements),
        _ => (0, Rounded::Elements),
    }
}

/// What rounding to `narrow` costs a stage in the program of small kernels, which has parts of its `sums` on several ranks, as a
/// rule: a stage of a few numbers may be lucky.
pub fn usual_rounding(name: &str, config: &DeepseekV2Config, sums: PartialSums, narrow: Dtype) -> f64 {
    let (inside, _) = roundings_inside(name, config);
    ROUNDING * unit_roundoff(narrow) * ((1 + inside) as f64 + sums.roundings(name)).sqrt()
}

/// See `roundings_inside`.
#[derive(Clone, Copy, PartialEq)]
pub enum Rounded {
    /// The stage's own elements.
    Elements,
    /// Many that are then summed.
    Sums,
}

impl<'a> PlainErrors<'a> {
    /// For a model of this config, stored in `narrow`, if that is narrower than fp32.
    /// There are as many `draw`s of it as one likes.
    pub fn new(config: &'a DeepseekV2Config, narrow: Option<Dtype>, draw: u64) -> Self {
        PlainErrors {
            config,
            draw,
            rounding: narrow.map_or(0.0, |dtype| ROUNDING * unit_roundoff(dtype)),
            keys: 1,
            classifier: false,
        }
    }

    /// Adds `of_all` times the stage's usual size, and `of_each` times the element's own.
    fn add_error<T: Real>(&self, name: &str, mut value: ArrayViewMutD<'_, T>, of_all: f64, of_each: f64) {
        let finite = value.iter().filter(|x| x.is_finite());
        let (square, count) =
            finite.fold((0.0, 0), |(square, count), x| (square + Real::to_f64(*x).powi(2), count + 1));
        let usual = (square / f64::from(count.max(1))).sqrt();
        let seed = if self.draw == 0 { fnv1a64(name) } else { fnv1a64(name) ^ splitmix64(self.draw) };
        for (i, x) in value.iter_mut().enumerate().filter(|(_, x)| x.is_finite()) {
            let own = Real::to_f64(*x);
            let size = (of_all * usual).hypot(of_each * own);
            // one draw alone may be near 0
            let draw = if count == 1 && self.draw == 0 { 1.0 } else { normal(seed.wrapping_add(i as u64)) };
            *x = T::from_f64(own + size * draw);
        }
    }
}

/// A number of mean 0 and variance 1: four uniform ones, summed.
pub fn normal(seed: u64) -> f64 {
    let bits = splitmix64(seed);
    let sum: u64 = (0..4).map(|field| (bits >> (16 * field)) & 0xffff).sum();
    (sum as f64 / 65536.0 - 2.0) * 3.0_f64.sqrt()
}

impl<T: Real> Tap<T> for PlainErrors<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        let StageValue::Real(value) = value else { return };
        if name.ends_with(".attn_weights") {
            self.keys = value.shape().last().copied().unwrap_or(1);
        }
        let terms = if name.ends_with(".attn_output") { self.keys } else { flow::terms(name, self.config) };
        let sum = if terms > 1 { PLAIN_SUM * (terms as f64).sqrt() } else { 0.0 };
        self.classifier |= name == "pooled_logits";
        let (roundings, of) = roundings_inside(name, self.config);
        let rounding = match name {
            "loss" if !self.classifier => 0.0,
            _ => self.rounding * (roundings as f64).sqrt(),
        };
        match of {
            _ if sum == 0.0 && rounding == 0.0 => {}
            Rounded::Elements => self.add_error(name, value, sum, rounding),
            Rounded::Sums => self.add_error(name, value, sum.hypot(rounding), 0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_keeps_ten_bits() {
        assert_eq!(
            [1.0, 1.0 + 1.0 / 1024.0, f32::NEG_INFINITY].map(tf32),
            [1.0, 1.0 + 1.0 / 1024.0, f32::NEG_INFINITY]
        );
        assert_eq!(tf32(1.0 + 1.0 / 2048.0), 1.0);
        assert_eq!(tf32(1.0 + 3.0 / 2048.0), 1.0 + 2.0 / 1024.0);
    }

    #[test]
    fn sums_err_as_much_as_a_loop_does() {
        let config = DeepseekV2Config::preset("v2").unwrap();
        let mut logits = ndarray::Array2::from_elem((64, 64), 1.0f64);
        PlainErrors::new(&config, None, 0).stage("lm_head", StageValue::Real(logits.view_mut().into_dyn()));
        let error = (logits.iter().map(|x| (x - 1.0).powi(2)).sum::<f64>() / 4096.0).sqrt();
        let expected = 0.17 * 5120.0_f64.sqrt() / f64::from(1 << 24);
        assert!((error / expected - 1.0).abs() < 0.05, "{error} {expected}");
    }
}
