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

/// A format whose values are compared through their bits.
pub(super) trait Ordered: Copy {
    /// A signed integer in the order of the numbers, `-0 < +0`.
    fn key(self) -> i64;
    fn is_nan(self) -> bool;
    fn magnitude(self) -> Self;
    fn with_xor_sign(self, a: Self, b: Self) -> Self;
    fn canonical_nan(self) -> Self;
}

/// The rule shared by all formats.
#[inline(always)]
pub(super) fn extreme<T: Ordered>(which: Extreme, a: T, b: T, mode: ExtremeMode) -> T {
    let (x, y) = if mode.xorsign_abs { (a.magnitude(), b.magnitude()) } else { (a, b) };
    let first = match which {
        Extreme::Min => x.key() < y.key(),
        Extreme::Max => x.key() > y.key(),
    };
    let number = if y.is_nan() || (first && !x.is_nan()) { x } else { y };
    let nan = if mode.nan { x.is_nan() || y.is_nan() } else { x.is_nan() && y.is_nan() };
    if nan {
        x.canonical_nan()
    } else if mode.xorsign_abs {
        number.with_xor_sign(a, b)
    } else {
        number
    }
}

impl Ordered for u32 {
    #[inline(always)]
    fn key(self) -> i64 {
        i64::from(self as i32 ^ ((self as i32 >> 31) as u32 >> 1) as i32)
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        f32::from_bits(self).is_nan()
    }
    #[inline(always)]
    fn magnitude(self) -> u32 {
        self & 0x7fff_ffff
    }
    #[inline(always)]
    fn with_xor_sign(self, a: u32, b: u32) -> u32 {
        self.magnitude() | (a ^ b) & 0x8000_0000
    }
    #[inline(always)]
    fn canonical_nan(self) -> u32 {
        NAN_F32
    }
}

impl Ordered for u64 {
    #[inline(always)]
    fn key(self) -> i64 {
        self as i64 ^ ((self as i64 >> 63) as u64 >> 1) as i64
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        f64::from_bits(self).is_nan()
    }
    #[inline(always)]
    fn magnitude(self) -> u64 {
        self & !(1 << 63)
    }
    #[inline(always)]
    fn with_xor_sign(self, a: u64, b: u64) -> u64 {
        self.magnitude() | (a ^ b) & 1 << 63
    }
    #[inline(always)]
    fn canonical_nan(self) -> u64 {
        NAN_F64
    }
}

/// `min` or `max` `{.ftz}{.NaN}{.xorsign.abs}.f32`
#[inline(always)]
pub fn extreme_f32(which: Extreme, a: u32, b: u32, mode: ExtremeMode) -> u32 {
    let (a, b) = if mode.ftz { (flush_f32(a), flush_f32(b)) } else { (a, b) };
    extreme(which, a, b, mode)
}

/// `min.f64` or `max.f64`, which have no modifiers.
#[inline(always)]
pub fn extreme_f64(which: Extreme, a: u64, b: u64) -> u64 {
    extreme(which, a, b, ExtremeMode::default())
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
