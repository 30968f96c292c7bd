//! `.f32` arithmetic: `add sub mul fma div rcp sqrt` ("Floating Point Instructions" in the PTX manual).
//!
//! All four rounding modes are correctly rounded. `.rn` runs on the host's own arithmetic, which rounds in the same
//! way; the directed modes go through exact integers.
//!
//! * `.ftz` flushes subnormal inputs and results to a zero of the same sign. A result counts as subnormal by its
//!   rounded value (the manual does not say whether it looks before or after rounding).
//! * `.sat` clamps the result to `[0.0, 1.0]`; NaN becomes `+0.0`, and so does `-0.0`.
//! * A NaN result is always [`NAN_F32`].

use super::exact::{Format, Operation};
use super::{NAN_F32, Rounding};

/// The modifiers of an `.f32` instruction. The default is plain round to nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct F32Mode {
    /// `.rn .rz .rm .rp`
    pub rounding: Rounding,
    /// `.ftz`: subnormal inputs and results become zero.
    pub ftz: bool,
    /// `.sat`: the result is clamped to `[0, 1]`.
    pub saturate: bool,
}

impl F32Mode {
    /// `.rn` without `.ftz` and `.sat`: one machine instruction.
    pub const RN: F32Mode = F32Mode { rounding: Rounding::Nearest, ftz: false, saturate: false };

    /// The operand as the instruction sees it.
    #[inline(always)]
    fn input(self, bits: u32) -> u32 {
        if self.ftz { flush_f32(bits) } else { bits }
    }

    /// The result as the instruction delivers it.
    #[inline(always)]
    fn output(self, bits: u32) -> u32 {
        let bits = if self.ftz { flush_f32(bits) } else { bits };
        if self.saturate { saturate_f32(bits) } else { bits }
    }

    /// `nearest` in the mode `.rn`, the exact path in the others.
    #[inline(always)]
    fn apply(self, operation: Operation, operands: [u32; 3], nearest: impl FnOnce([f32; 3]) -> f32) -> u32 {
        let operands = operands.map(|bits| self.input(bits));
        self.output(if self.rounding == Rounding::Nearest {
            canonical_f32(nearest(operands.map(f32::from_bits)))
        } else {
            directed(operation, operands, self.rounding)
        })
    }
}

/// The directed modes; not inlined, so that the loops over lanes stay small.
#[inline(never)]
fn directed(operation: Operation, operands: [u32; 3], rounding: Rounding) -> u32 {
    let [a, b, c] = operands.map(|bits| f64::from(f32::from_bits(bits)));
    // Products of two are exact in `f64`.
    match operation {
        Operation::Add => return directed_sum(a, b, rounding),
        Operation::Multiply => return directed_f32(a * b, rounding),
        Operation::Fma => return directed_sum(a * b, c, rounding),
        Operation::Divide | Operation::Root => {}
    }
    operation.evaluate(Format::F32, operands.map(u64::from), rounding).map_or(NAN_F32, |bits| bits as u32)
}

/// The sum of two numbers that are exact in `f64`, in a directed mode.
fn directed_sum(a: f64, b: f64, rounding: Rounding) -> u32 {
    let sum = a + b;
    if sum == 0.0 && a.is_sign_negative() != b.is_sign_negative() {
        // `x - x` is `-0` only when rounding down, and no inexact sum is zero.
        return if rounding == Rounding::Down { 0x8000_0000 } else { 0 };
    }
    // The result lies between the same two neighbours as the exact sum, and on neither of them unless the sum does.
    directed_f32(round_to_odd_f64(a, b, sum), rounding)
}

/// The `.f32` next to a number on the side that a directed mode wants.
fn directed_f32(value: f64, rounding: Rounding) -> u32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    let rounded = match rounding {
        Rounding::Down if back > value => nearest.next_down(),
        Rounding::Up if back < value => nearest.next_up(),
        Rounding::Zero if back.abs() > value.abs() => {
            if value > 0.0 {
                nearest.next_down()
            } else {
                nearest.next_up()
            }
        }
        _ => nearest,
    };
    canonical_f32(rounded)
}

/// The bits of a value, with every NaN replaced by [`NAN_F32`].
#[inline(always)]
pub fn canonical_f32(value: f32) -> u32 {
    if value.is_nan() { NAN_F32 } else { value.to_bits() }
}

/// `.ftz`: a subnormal number becomes a zero of its sign; everything else stays.
#[inline(always)]
pub fn flush_f32(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// `.sat`: clamps to `[0.0, 1.0]`, NaN to `+0.0`. Whatever is not above zero becomes `+0.0`.
#[inline(always)]
pub fn saturate_f32(bits: u32) -> u32 {
    let value = f32::from_bits(bits);
    let low = if value > 0.0 { value } else { 0.0 };
    (if low < 1.0 { low } else { 1.0 }).to_bits()
}

/// `add{.rnd}{.ftz}{.sat}.f32`
#[inline(always)]
pub fn add_f32(a: u32, b: u32, mode: F32Mode) -> u32 {
    mode.apply(Operation::Add, [a, b, 0], |[a, b, _]| a + b)
}

/// `sub{.rnd}{.ftz}{.sat}.f32`
#[inline(always)]
pub fn sub_f32(a: u32, b: u32, mode: F32Mode) -> u32 {
    // a - b is a + (-b) in every rounding mode, NaN included since results are canonical.
    add_f32(a, b ^ 0x8000_0000, mode)
}

/// `mul{.rnd}{.ftz}{.sat}.f32`
#[inline(always)]
pub fn mul_f32(a: u32, b: u32, mode: F32Mode) -> u32 {
    mode.apply(Operation::Multiply, [a, b, 0], |[a, b, _]| a * b)
}

/// `fma.rnd{.ftz}{.sat}.f32` (and `mad.rnd.f32`, which is the same instruction): one rounding.
#[inline(always)]
pub fn fma_f32(a: u32, b: u32, c: u32, mode: F32Mode) -> u32 {
    mode.apply(Operation::Fma, [a, b, c], |[a, b, c]| fma_nearest(a, b, c))
}

/// `div.rnd{.ftz}.f32`; `div.approx` and `div.full` are in [`super::approx`].
#[inline(always)]
pub fn div_f32(a: u32, b: u32, mode: F32Mode) -> u32 {
    mode.apply(Operation::Divide, [a, b, 0], |[a, b, _]| a / b)
}

/// `rcp.rnd{.ftz}.f32`
#[inline(always)]
pub fn rcp_f32(a: u32, mode: F32Mode) -> u32 {
    div_f32(1.0f32.to_bits(), a, mode)
}

/// `sqrt.rnd{.ftz}.f32`
#[inline(always)]
pub fn sqrt_f32(a: u32, mode: F32Mode) -> u32 {
    mode.apply(Operation::Root, [a, 0, 0], |[a, _, _]| a.sqrt())
}

/// `a * b + c` with one rounding to nearest, without needing a fused instruction of the host.
///
/// The product of two 24-bit significands is exact in `f64`. Rounding the sum to 53 bits and then to 24 would be wrong
/// where the 53-bit sum lies on a tie of the 24-bit grid only because of its first rounding; rounding to odd first is
/// right. There is no branch in this, so a loop over lanes is vectorised.
#[inline(always)]
fn fma_nearest(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    round_to_odd_f64(product, c, product + c) as f32
}

/// Rounding to odd, for one float type of the host.
macro_rules! round_to_odd {
    ($name:ident, $float:ty, $bits:ty) => {
        /// `x + y` rounded to odd, where `sum` is the sum rounded to nearest: if the sum is inexact, the neighbour of
        /// the exact value whose last bit is one.
        ///
        /// Such a value is never on a tie of a narrower format unless the exact sum is, so that rounding it once more
        /// gives the correctly rounded sum. The error of the sum is computed without error ("TwoSum", Knuth).
        #[inline(always)]
        pub(super) fn $name(x: $float, y: $float, sum: $float) -> $float {
            let y_part = sum - x;
            let error = (x - (sum - y_part)) + (y - y_part);
            // An infinite sum has a NaN as its error, and stays.
            let inexact = error.abs() > 0.0;
            let rounded_away = inexact & ((error < 0.0) != (sum < 0.0));
            <$float>::from_bits((sum.to_bits() - <$bits>::from(rounded_away)) | <$bits>::from(inexact))
        }
    };
}

round_to_odd!(round_to_odd_f32, f32, u32);
round_to_odd!(round_to_odd_f64, f64, u64);
