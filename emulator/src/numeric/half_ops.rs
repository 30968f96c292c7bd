//! `.f16` and `.bf16` arithmetic, scalar and packed ("Half Precision Floating Point Instructions" in the PTX manual).
//!
//! Every operation rounds once, by `.rn`; subnormal numbers are kept unless `.ftz` is given. The result is first formed
//! in a wider format of the host: exactly, or with so many bits that the final rounding is right all the same. Where
//! that is not enough (`fma`), the wide sum is *rounded to odd* (see [`super::float`]).

use super::compare::Comparison;
use super::float::{round_to_odd_f32, round_to_odd_f64};
use super::format::Half;
use super::minmax::{self, Extreme, ExtremeMode};

/// The modifiers of a 16-bit arithmetic instruction. The default has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct HalfMode {
    /// `.ftz` (`.f16` only): subnormal inputs and results become zero.
    pub ftz: bool,
    /// `.sat` (`.f16` only): the result is clamped to `[0, 1]`, NaN to `+0`.
    pub saturate: bool,
    /// `.relu` (`fma` only): a negative result becomes zero.
    pub relu: bool,
}

impl HalfMode {
    #[inline(always)]
    fn input(self, half: Half, bits: u16) -> f32 {
        half.value(if self.ftz { half.flush(bits) } else { bits })
    }

    /// Rounds a value to the format. It must be exact, or have been rounded in a way that lets this rounding be right.
    #[inline(always)]
    fn output(self, half: Half, value: f32) -> u16 {
        let mut bits = half.nearest(value.to_bits());
        if self.ftz {
            bits = half.flush(bits);
        }
        if self.relu {
            bits = half.relu(bits);
        }
        if self.saturate {
            bits = half.saturate(bits);
        }
        bits
    }
}

/// An exact value in `f64` as `f32`, rounded to odd if it does not fit.
#[inline(always)]
fn narrow_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    // Truncate (this also takes infinity back to the largest number), then set the last bit. NaN is not inexact.
    let inexact = (back < value) | (back > value);
    let rounded_away = back.abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(rounded_away)) | u32::from(inexact))
}

/// `add{.rn}{.ftz}{.sat}`
#[inline(always)]
pub fn add(half: Half, a: u16, b: u16, mode: HalfMode) -> u16 {
    // f32 has more than twice as many significant bits and two more: then rounding twice is rounding once.
    mode.output(half, mode.input(half, a) + mode.input(half, b))
}

/// `sub{.rn}{.ftz}{.sat}`
#[inline(always)]
pub fn sub(half: Half, a: u16, b: u16, mode: HalfMode) -> u16 {
    mode.output(half, mode.input(half, a) - mode.input(half, b))
}

/// `mul{.rn}{.ftz}{.sat}`
#[inline(always)]
pub fn mul(half: Half, a: u16, b: u16, mode: HalfMode) -> u16 {
    // The 16 bits of a bf16 product that is large enough to matter fit into f32, also where f32 becomes subnormal.
    mode.output(half, mode.input(half, a) * mode.input(half, b))
}

/// `fma.rn{.ftz}{.sat}{.relu}`: one rounding.
#[inline(always)]
pub fn fma(half: Half, a: u16, b: u16, c: u16, mode: HalfMode) -> u16 {
    let [a, b, c] = [a, b, c].map(|bits| mode.input(half, bits));
    let sum = match half {
        Half::F16 => round_to_odd_f32(a * b, c, a * b + c),
        Half::Bf16 => {
            let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
            narrow_to_odd(round_to_odd_f64(product, c, product + c))
        }
    };
    mode.output(half, sum)
}

/// `min` or `max` `{.ftz}{.NaN}{.xorsign.abs}`
#[inline(always)]
pub fn extreme(half: Half, which: Extreme, a: u16, b: u16, mode: ExtremeMode) -> u16 {
    let operands = [a, b].map(|bits| if mode.ftz { half.flush(bits) } else { bits });
    minmax::extreme_16(which, operands, mode, half.infinity(), half.canonical_nan())
}

/// `neg{.ftz}`. A NaN keeps its payload, as the manual allows.
#[inline(always)]
pub fn neg(half: Half, a: u16, ftz: bool) -> u16 {
    (if ftz { half.flush(a) } else { a }) ^ 0x8000
}

/// `abs{.ftz}`. A NaN keeps its payload, as the manual allows.
#[inline(always)]
pub fn abs(half: Half, a: u16, ftz: bool) -> u16 {
    (if ftz { half.flush(a) } else { a }) & 0x7fff
}

/// `setp.CmpOp{.ftz}`
#[inline(always)]
pub fn compare(half: Half, comparison: Comparison, a: u16, b: u16, ftz: bool) -> bool {
    let value = |bits| half.value(if ftz { half.flush(bits) } else { bits });
    comparison.of(value(a), value(b))
}

/// A one-operand operation on both halves of an `.f16x2` or `.bf16x2` register.
#[inline(always)]
pub fn both1(a: u32, operation: impl Fn(u16) -> u16) -> u32 {
    both3(a, 0, 0, |a, _, _| operation(a))
}

/// A two-operand operation on both halves: `both2(a, b, |a, b| add(Half::F16, a, b, mode))` is `add.f16x2`.
#[inline(always)]
pub fn both2(a: u32, b: u32, operation: impl Fn(u16, u16) -> u16) -> u32 {
    both3(a, b, 0, |a, b, _| operation(a, b))
}

/// A three-operand operation on both halves.
#[inline(always)]
pub fn both3(a: u32, b: u32, c: u32, operation: impl Fn(u16, u16, u16) -> u16) -> u32 {
    // A loop has one place where the operation is called, so the compiler puts its code there.
    [0, 16].into_iter().fold(0, |result, shift| {
        let [a, b, c] = [a, b, c].map(|bits| (bits >> shift) as u16);
        result | u32::from(operation(a, b, c)) << shift
    })
}
