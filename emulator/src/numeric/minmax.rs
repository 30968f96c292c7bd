//! `min`, `max`, `abs`, `neg` and `copysign` on floats ("Floating Point Instructions" in the PTX manual).
//!
//! `min` and `max` return the operand that is a number if the other is NaN, and the canonical NaN if both are; with
//! `.NaN` one NaN is enough. `-0.0` is less than `+0.0`. With `.xorsign.abs` the magnitudes are compared and the result
//! gets the exclusive or of the operands' signs, unless it is NaN.
//!
//! Numbers are compared as integers: for a set sign bit all other bits are flipped, which orders every float as a
//! signed integer, zeros included.

use super::float::flush_f32;
use super::{NAN_F32, NAN_F64};

/// Which of the two: the smaller or the larger operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extreme {
    /// `min`
    Min,
    /// `max`
    Max,
}

/// The modifiers of a float `min` or `max`. The default has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ExtremeMode {
    /// `.ftz` (`.f32` and `.f16` only)
    pub ftz: bool,
    /// `.NaN`: the result is NaN if one operand is.
    pub nan: bool,
    /// `.xorsign.abs`
    pub xorsign_abs: bool,
}

/// The rule of all formats, for one width: what is above `infinity` without its sign is NaN, and then `nan` is the
/// result.
macro_rules! extreme {
    ($name:ident, $bits:ty, $number:ty) => {
        #[inline(always)]
        pub(super) fn $name(
            which: Extreme,
            [a, b]: [$bits; 2],
            mode: ExtremeMode,
            infinity: $bits,
            nan: $bits,
        ) -> $bits {
            const SIGN: $bits = 1 << (<$bits>::BITS - 1);
            let is_nan = |x: $bits| x & !SIGN > infinity;
            // A signed integer in the order of the numbers, -0 < +0.
            let key = |x: $bits| x as $number ^ ((x as $number >> (<$bits>::BITS - 1)) as $bits >> 1) as $number;
            let (x, y) = if mode.xorsign_abs { (a & !SIGN, b & !SIGN) } else { (a, b) };
            let first = match which {
                Extreme::Min => key(x) < key(y),
                Extreme::Max => key(x) > key(y),
            };
            let number = if is_nan(y) || (first && !is_nan(x)) { x } else { y };
            let is_none = if mode.nan { is_nan(x) || is_nan(y) } else { is_nan(x) && is_nan(y) };
            if is_none {
                nan
            } else if mode.xorsign_abs {
                number & !SIGN | (a ^ b) & SIGN
            } else {
                number
            }
        }
    };
}

extreme!(extreme_16, u16, i16);
extreme!(extreme_32, u32, i32);
extreme!(extreme_64, u64, i64);

/// `min` or `max` `{.ftz}{.NaN}{.xorsign.abs}.f32`
#[inline(always)]
pub fn extreme_f32(which: Extreme, a: u32, b: u32, mode: ExtremeMode) -> u32 {
    let (a, b) = if mode.ftz { (flush_f32(a), flush_f32(b)) } else { (a, b) };
    extreme_32(which, [a, b], mode, f32::INFINITY.to_bits(), NAN_F32)
}

/// `min.f64` or `max.f64`, which have no modifiers.
#[inline(always)]
pub fn extreme_f64(which: Extreme, a: u64, b: u64) -> u64 {
    extreme_64(which, [a, b], ExtremeMode::default(), f64::INFINITY.to_bits(), NAN_F64)
}

/// `abs{.ftz}.f32`. A NaN keeps its payload, as the manual allows.
#[inline(always)]
pub fn abs_f32(a: u32, ftz: bool) -> u32 {
    (if ftz { flush_f32(a) } else { a }) & 0x7fff_ffff
}

/// `neg{.ftz}.f32`. A NaN keeps its payload, as the manual allows.
#[inline(always)]
pub fn neg_f32(a: u32, ftz: bool) -> u32 {
    (if ftz { flush_f32(a) } else { a }) ^ 0x8000_0000
}

/// `abs.f64`
#[inline(always)]
pub fn abs_f64(a: u64) -> u64 {
    a & !(1 << 63)
}

/// `neg.f64`
#[inline(always)]
pub fn neg_f64(a: u64) -> u64 {
    a ^ 1 << 63
}

/// `copysign.f32 d, a, b`: the sign of the **first** operand on the magnitude of the second.
#[inline(always)]
pub fn copysign_f32(sign: u32, magnitude: u32) -> u32 {
    (sign & 0x8000_0000) | (magnitude & 0x7fff_ffff)
}

/// `copysign.f64 d, a, b`: the sign of the **first** operand on the magnitude of the second.
#[inline(always)]
pub fn copysign_f64(sign: u64, magnitude: u64) -> u64 {
    (sign & 1 << 63) | (magnitude & !(1 << 63))
}
