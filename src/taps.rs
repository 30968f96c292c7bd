//! The taps of the judge: recording a trace, putting somebody else's values in place of the computed ones, and storing or
//! reading numbers in a narrower type.

mod assumed;
mod drawn;
mod forced;
mod fp8_operands;
mod partial_sums;
mod recorder;
pub mod storage;

use dsv2_reference::tap::{StageValue, Tap};

pub use assumed::Assumed;
pub use drawn::{Drawn, DrawnWeights};
pub use forced::Forced;
pub use fp8_operands::{fp8_operands, has_8_bits};
pub use partial_sums::{PartialSums, RoundedParts};
pub use recorder::{Recorder, recorded};

/// A tap for whatever type the computation has.
pub trait AnyTap: Tap<f32> + Tap<f64> {}

impl<A: Tap<f32> + Tap<f64>> AnyTap for A {}

/// The same value, for one more tap to look at.
pub fn again<'a, T>(value: &'a mut StageValue<'_, T>) -> StageValue<'a, T> {
    match value {
        StageValue::Real(a) => StageValue::Real(a.view_mut()),
        StageValue::Index(a) => StageValue::Index(a.view_mut()),
    }
}
