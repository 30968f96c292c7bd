//! The 16-bit formats `.f16` and `.bf16`, and `.tf32`: widening, narrowing and clamping.
//!
//! Widening to `f32` is exact. Narrowing by `.rn` is a few integer operations without branches; the directed modes and
//! narrowing from `f64` go through exact integers. A NaN becomes the canonical NaN of the target, in both directions
//! (the manual leaves the NaN of `cvt.f32.bf16` unspecified).

use super::exact::{Format, Number, decode};
use super::float::canonical_f32;
use super::{NAN_BF16, NAN_F16, NAN_F32, Rounding};

/// One of the two 16-bit float types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// `.f16`: 5 exponent bits, 10 fraction bits.
    F16,
    /// `.bf16`: 8 exponent bits like `.f32`, 7 fraction bits.
    Bf16,
}

impl Half {
    /// Widens to `.f32`, exactly.
    #[inline(always)]
    pub fn widen(self, bits: u16) -> u32 {
        match self {
            Half::F16 => f16_to_f32(bits),
            Half::Bf16 => bf16_to_f32(bits),
        }
    }

    /// The value as the host's `f32`.
    #[inline(always)]
    pub fn value(self, bits: u16) -> f32 {
        f32::from_bits(self.widen(bits))
    }

    /// Narrows from `.f32` by `.rn`.
    #[inline(always)]
    pub fn nearest(self, bits: u32) -> u16 {
        match self {
            Half::F16 => f32_to_f16(bits),
            Half::Bf16 => f32_to_bf16(bits),
        }
    }

    /// Narrows from `.f32` in any mode.
    #[inline(always)]
    pub fn narrow(self, bits: u32, rounding: Rounding) -> u16 {
        match rounding {
            Rounding::Nearest => self.nearest(bits),
            _ => self.narrow_exactly(Format::F32, u64::from(bits), rounding),
        }
    }

    /// Narrows from `.f64` in any mode, with one rounding.
    pub fn narrow_f64(self, bits: u64, rounding: Rounding) -> u16 {
        self.narrow_exactly(Format::F64, bits, rounding)
    }

    /// Narrows from any format with one rounding.
    #[inline(never)]
    fn narrow_exactly(self, from: Format, bits: u64, rounding: Rounding) -> u16 {
        match decode(from, bits) {
            Number::Nan => self.canonical_nan(),
            Number::Infinite { negative } => self.infinity() | u16::from(negative) << 15,
            Number::Finite(exact) => exact.round(self.format(), rounding) as u16,
        }
    }

    pub(super) fn format(self) -> Format {
        match self {
            Half::F16 => Format::F16,
            Half::Bf16 => Format::BF16,
        }
    }

    /// The bits of plus infinity.
    #[inline(always)]
    pub fn infinity(self) -> u16 {
        match self {
            Half::F16 => 0x7c00,
            Half::Bf16 => 0x7f80,
        }
    }

    /// The NaN of results.
    #[inline(always)]
    pub fn canonical_nan(self) -> u16 {
        match self {
            Half::F16 => NAN_F16,
            Half::Bf16 => NAN_BF16,
        }
    }

    /// Whether the bits are a NaN.
    #[inline(always)]
    pub fn is_nan(self, bits: u16) -> bool {
        bits & 0x7fff > self.infinity()
    }

    /// `.ftz`: a subnormal number becomes a zero of its sign. PTX has it for `.f16`, and for `.bf16` in `ex2` only.
    #[inline(always)]
    pub fn flush(self, bits: u16) -> u16 {
        if bits & self.infinity() == 0 { bits & 0x8000 } else { bits }
    }

    /// `.sat`: clamps to `[0.0, 1.0]`, NaN to `+0.0`.
    #[inline(always)]
    pub fn saturate(self, bits: u16) -> u16 {
        let one = match self {
            Half::F16 => 0x3c00,
            Half::Bf16 => 0x3f80,
        };
        // Positive numbers are in the order of their bits.
        if self.is_nan(bits) || bits & 0x8000 != 0 { 0 } else { bits.min(one) }
    }

    /// `.relu`: a negative result becomes `+0.0` (so does `-0.0`), NaN the canonical NaN.
    #[inline(always)]
    pub fn relu(self, bits: u16) -> u16 {
        if self.is_nan(bits) {
            self.canonical_nan()
        } else if bits & 0x8000 != 0 {
            0
        } else {
            bits
        }
    }

    /// `.satfinite`: infinity becomes the largest finite number of its sign; NaN stays. Applied after rounding, which
    /// is the same as before it: what rounds to infinity is beyond the largest number.
    #[inline(always)]
    pub fn satfinite(self, bits: u16) -> u16 {
        if bits & 0x7fff == self.infinity() { bits - 1 } else { bits }
    }
}

/// `cvt.f32.f16`. Multiplying by a power of two makes the host normalise subnormal numbers.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> u32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    // The fields of f16 at the places of f32's: the exponent is too small by the difference of the biases, 112.
    let scaled = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    if magnitude > 0x7c00 {
        NAN_F32
    } else if magnitude == 0x7c00 {
        sign | 0x7f80_0000
    } else {
        sign | scaled
    }
}

/// `cvt.rn.f16.f32`
#[inline(always)]
pub fn f32_to_f16(bits: u32) -> u16 {
    let magnitude = bits & 0x7fff_ffff;
    let sign = (bits >> 16) as u16 & 0x8000;
    // Below 2^-14: the last place of 0.5 is 2^-24, the step of f16's subnormal numbers, so the sum is rounded there.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    // Else: rebias the exponent and round at bit 13, up if above the tie or on it with an odd last place.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    let small = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let finite = if magnitude >= 0x4780_0000 { 0x7c00 } else { small };
    if magnitude > 0x7f80_0000 { NAN_F16 } else { sign | finite as u16 }
}

/// `cvt.f32.bf16`
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> u32 {
    canonical_f32(f32::from_bits(u32::from(bits) << 16))
}

/// `cvt.rn.bf16.f32`
#[inline(always)]
pub fn f32_to_bf16(bits: u32) -> u16 {
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN_BF16 } else { rounded as u16 }
}

/// `cvt.rna.tf32.f32`: rounds to 10 fraction bits, ties away from zero. The other 13 bits, which `mma` ignores, are
/// zero.
#[inline(always)]
pub fn f32_to_tf32(bits: u32) -> u32 {
    let magnitude = bits & 0x7fff_ffff;
    let rounded = bits.wrapping_add(0x1000) & !0x1fff;
    if magnitude > 0x7f80_0000 {
        NAN_F32
    } else if magnitude == 0x7f80_0000 {
        bits
    } else {
        rounded
    }
}

/// `cvt.rn.tf32.f32`: rounds to 10 fraction bits, ties to even.
#[inline(always)]
pub fn f32_to_tf32_nearest(bits: u32) -> u32 {
    let rounded = bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff;
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN_F32 } else { rounded }
}

/// `cvt.rz.tf32.f32`: cuts off behind 10 fraction bits.
#[inline(always)]
pub fn f32_to_tf32_zero(bits: u32) -> u32 {
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN_F32 } else { bits & !0x1fff }
}

/// Two 16-bit values in a 32-bit register: `high` in bits 31:16, as in `cvt.rn.f16x2.f32 d, high, low`.
#[inline(always)]
pub fn pack(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// The two halves of a packed register: `(high, low)`.
#[inline(always)]
pub fn unpack(bits: u32) -> (u16, u16) {
    ((bits >> 16) as u16, bits as u16)
}
