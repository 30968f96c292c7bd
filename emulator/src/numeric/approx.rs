//! The `.approx` instructions ("Floating Point Instructions" and "Half Precision Floating Point Instructions" in the
//! PTX manual).
//!
//! How the hardware approximates is not documented, only how far off it may be. These functions return the *correctly
//! rounded* value of the function: it is computed in `f64` by the host's mathematics library and rounded once (which is
//! the correctly rounded `.f32` for all but about one in a hundred million arguments, where the `f64` value was too
//! close to a tie). A kernel must work with any value within the manual's error, so it must work with this one; to
//! check that it does not rely on more, compare with a tolerance of that error.
//!
//! | instruction | the manual's error bound for the hardware |
//! |---|---|
//! | `ex2.approx.f32` | 2 ulp |
//! | `lg2.approx.f32` | `2^-22` absolute in (0.5, 2), `2^-22` relative elsewhere |
//! | `rcp.approx.f32` | 1 ulp |
//! | `sqrt.approx.f32` | `2^-23` relative |
//! | `rsqrt.approx.f32` | `2^-22.9` relative |
//! | `sin.approx.f32`, `cos.approx.f32` | `2^-20.5` absolute in [-2pi, 2pi], `2^-14.7` in [-100pi, 100pi], none beyond |
//! | `tanh.approx.f32` | `2^-11` relative |
//! | `div.approx.f32` | 2 ulp for a divisor in [`2^-126`, `2^126`] |
//! | `div.full.f32` | 2 ulp |
//! | `ex2.approx.f16`, `.bf16` | `2^-9.9`, `2^-7` relative |
//! | `tanh.approx.f16`, `.bf16` | `2^-10.987`, `2^-8` absolute |
//! | `rcp`, `rsqrt` `.approx.ftz.f64` | "gross": 20 fraction bits |
//!
//! Special values are those of the manual's tables. `.ftz` flushes subnormal inputs and results to zeros.

use super::double::rcp_f64;
use super::float::{self, F32Mode, canonical_f32, flush_f32};
use super::format::Half;
use super::{NAN_F64, Rounding};

/// A function of one argument in `f64`, rounded to `.f32`.
#[inline(always)]
fn unary(a: u32, ftz: bool, function: impl Fn(f64) -> f64) -> u32 {
    let a = if ftz { flush_f32(a) } else { a };
    let result = canonical_f32(function(f64::from(f32::from_bits(a))) as f32);
    if ftz { flush_f32(result) } else { result }
}

/// Round to nearest, with or without `.ftz`.
fn nearest(ftz: bool) -> F32Mode {
    F32Mode { ftz, ..F32Mode::RN }
}

/// Functions of one argument, each with what it computes in `f64`.
macro_rules! functions {
    ($($(#[$doc:meta])+ $name:ident = $function:expr;)+) => {$(
        $(#[$doc])+
        #[inline]
        pub fn $name(a: u32, ftz: bool) -> u32 {
            unary(a, ftz, $function)
        }
    )+};
}

functions! {
    /// `ex2.approx{.ftz}.f32`: two to the power `a`.
    ex2_f32 = f64::exp2;
    /// `lg2.approx{.ftz}.f32`: the logarithm to base two. Of either zero it is `-inf`, of negative numbers NaN.
    lg2_f32 = f64::log2;
    /// `rsqrt.approx{.ftz}.f32`: of a zero, infinity with the zero's sign; of negative numbers NaN.
    rsqrt_f32 = |a| 1.0 / a.sqrt();
    /// `sin.approx{.ftz}.f32`, the angle in radians. NaN for infinities.
    sin_f32 = f64::sin;
    /// `cos.approx{.ftz}.f32`, the angle in radians. NaN for infinities.
    cos_f32 = f64::cos;
}

/// `rcp.approx{.ftz}.f32`
#[inline]
pub fn rcp_f32(a: u32, ftz: bool) -> u32 {
    float::rcp_f32(a, nearest(ftz))
}

/// `sqrt.approx{.ftz}.f32`
#[inline]
pub fn sqrt_f32(a: u32, ftz: bool) -> u32 {
    float::sqrt_f32(a, nearest(ftz))
}

/// `tanh.approx.f32`. It has no `.ftz`: subnormal numbers pass through.
#[inline]
pub fn tanh_f32(a: u32) -> u32 {
    unary(a, false, f64::tanh)
}

/// `div.approx{.ftz}.f32`, computed by the hardware as `a * (1/b)`. For `2^126 < |b| < 2^128` the reciprocal is lost:
/// the manual has NaN for an infinite `a` and a zero of the right sign otherwise.
#[inline]
pub fn div_f32(a: u32, b: u32, ftz: bool) -> u32 {
    let huge = 0x7e80_0000 < b & 0x7fff_ffff && b & 0x7fff_ffff < 0x7f80_0000;
    if huge {
        // The reciprocal as the hardware has it: a zero of b's sign. Infinity times zero is the NaN.
        float::mul_f32(a, b & 0x8000_0000, nearest(ftz))
    } else {
        float::div_f32(a, b, nearest(ftz))
    }
}

/// `div.full{.ftz}.f32`
#[inline]
pub fn div_full_f32(a: u32, b: u32, ftz: bool) -> u32 {
    float::div_f32(a, b, nearest(ftz))
}

/// `rsqrt.approx.f64`, which NVIDIA emulates in software; here within one unit in the last place.
#[inline]
pub fn rsqrt_f64(a: u64) -> u64 {
    let value = f64::from_bits(a);
    if value < 0.0 { NAN_F64 } else { rcp_f64(super::double::sqrt_f64(a, Rounding::Nearest), Rounding::Nearest) }
}

/// `rcp.approx.ftz.f64`: looks at the upper word only and delivers an upper word only.
#[inline]
pub fn rcp_ftz_f64(a: u64) -> u64 {
    upper_word(a, |a| 1.0 / a)
}

/// `rsqrt.approx.ftz.f64`: looks at the upper word only and delivers an upper word only.
#[inline]
pub fn rsqrt_ftz_f64(a: u64) -> u64 {
    upper_word(a, |a| 1.0 / a.sqrt())
}

/// The rule of the two gross approximations: subnormal inputs and results are zeros, the lower word is ignored on the
/// way in and zero on the way out, NaN is `0x7fffffff00000000`. The result is rounded to nearest at the upper word.
#[inline(always)]
fn upper_word(a: u64, function: impl Fn(f64) -> f64) -> u64 {
    const LOW: u64 = 0xffff_ffff;
    const FIELD: u64 = 0x7ff0_0000_0000_0000;
    let flush = |bits: u64| if bits & FIELD == 0 { bits & 1 << 63 } else { bits };
    // A NaN whose payload lies in the lower word alone looks infinite to the hardware, and here too.
    let result = function(f64::from_bits(flush(a & !LOW)));
    if result.is_nan() {
        0x7fff_ffff_0000_0000
    } else {
        // Adding half a unit cannot pass infinity: infinity itself has a zero fraction.
        flush((result.to_bits() + (1 << 31)) & !LOW)
    }
}

/// A function of one argument in `f64`, rounded once to a 16-bit format.
#[inline(always)]
fn unary_half(half: Half, a: u16, ftz: bool, function: impl Fn(f64) -> f64) -> u16 {
    let a = if ftz { half.flush(a) } else { a };
    let result = half.narrow_f64(function(f64::from(half.value(a))).to_bits(), Rounding::Nearest);
    if ftz { half.flush(result) } else { result }
}

/// `ex2.approx.f16` and `ex2.approx.ftz.bf16`: the manual has `.ftz` for `.bf16` always and for `.f16` never.
#[inline]
pub fn ex2_half(half: Half, a: u16) -> u16 {
    unary_half(half, a, half == Half::Bf16, f64::exp2)
}

/// `tanh.approx.f16` and `tanh.approx.bf16`
#[inline]
pub fn tanh_half(half: Half, a: u16) -> u16 {
    unary_half(half, a, false, f64::tanh)
}
