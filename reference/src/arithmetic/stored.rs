//! The types that numbers are stored in, and how one number is widened to the type of the computation.
//!
//! Widening is exact (but for `f64` to `f32`, which rounds), and written in terms that become vector instructions.

/// The type of a stored tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16: 8 exponent bits, 7 fraction bits.
    Bf16,
    /// IEEE half: 5 exponent bits, 10 fraction bits.
    F16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
        }
    }
}

/// A format that numbers are stored in, and how one is read as a `T`.
pub(super) trait Stored<T> {
    /// One number as it is stored.
    type Raw: Copy;
    /// Its value.
    fn widen(raw: Self::Raw) -> T;
}

/// Numbers in the type of the computation.
pub(super) struct Same;

impl<T: Copy> Stored<T> for Same {
    type Raw = T;
    #[inline(always)]
    fn widen(raw: T) -> T {
        raw
    }
}

/// [`Dtype::Bf16`], little-endian.
pub(super) struct Bf16;

impl<T: From<f32>> Stored<T> for Bf16 {
    type Raw = [u8; 2];
    #[inline(always)]
    fn widen(raw: [u8; 2]) -> T {
        f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16).into()
    }
}

/// [`Dtype::F16`], little-endian.
pub(super) struct F16;

impl<T: From<f32>> Stored<T> for F16 {
    type Raw = [u8; 2];
    /// Shifts exponent and fraction to their places in an `f32` and multiplies by 2¹¹², the difference of the two
    /// exponent biases (127 - 15). This is exact, for subnormal numbers too; infinity and NaN get their exponent.
    #[inline(always)]
    fn widen(raw: [u8; 2]) -> T {
        let half = u32::from(u16::from_le_bytes(raw));
        let finite = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits((half & 0x8000) << 16 | finite.to_bits() | special).into()
    }
}

/// [`Dtype::F32`], little-endian.
pub(super) struct F32;

impl<T: From<f32>> Stored<T> for F32 {
    type Raw = [u8; 4];
    #[inline(always)]
    fn widen(raw: [u8; 4]) -> T {
        f32::from_le_bytes(raw).into()
    }
}

/// [`Dtype::F64`], little-endian.
pub(super) struct F64;

impl Stored<f64> for F64 {
    type Raw = [u8; 8];
    #[inline(always)]
    fn widen(raw: [u8; 8]) -> f64 {
        f64::from_le_bytes(raw)
    }
}

impl Stored<f32> for F64 {
    type Raw = [u8; 8];
    #[inline(always)]
    fn widen(raw: [u8; 8]) -> f32 {
        f64::from_le_bytes(raw) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_has_its_value() {
        for half in 0..=u16::MAX {
            for (name, found, expected) in [
                ("f16", F16::widen(half.to_le_bytes()), half::f16::from_bits(half).to_f32()),
                ("bf16", Bf16::widen(half.to_le_bytes()), half::bf16::from_bits(half).to_f32()),
            ] {
                let equal = f32::to_bits(found) == expected.to_bits() || (found.is_nan() && expected.is_nan());
                assert!(equal, "{name} {half:#06x}: {found} {expected}");
            }
        }
    }
}
