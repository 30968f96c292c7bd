//! The 8-bit formats `.e4m3` and `.e5m2` ("Alternate Floating-Point Data Formats" in the PTX manual).
//!
//! `e5m2` is a small IEEE format with infinities. `e4m3` gives up infinities and all NaNs but one per sign
//! (`0x7f`, `0xff`) to reach 448. PTX always converts to them with `.satfinite`: what is beyond the largest finite
//! number, infinity included, becomes that number with its sign. NaN becomes `0x7f`.

use super::exact::{Format, Number, decode};
use super::format::{Half, f32_to_f16, pack, unpack};
use super::{NAN_F16, Rounding};

/// An 8-bit float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// `.e4m3`: 4 exponent bits, 3 fraction bits, largest number 448.
    E4m3,
    /// `.e5m2`: 5 exponent bits, 2 fraction bits, largest number 57344.
    E5m2,
}

/// The NaN that conversions to an 8-bit format return.
const NAN: u8 = 0x7f;

impl Fp8 {
    fn format(self) -> Format {
        match self {
            Fp8::E4m3 => Format { exponent: 4, fraction: 3 },
            Fp8::E5m2 => Format { exponent: 5, fraction: 2 },
        }
    }

    /// The bits of the largest finite number.
    pub fn largest(self) -> u8 {
        match self {
            Fp8::E4m3 => 0x7e,
            Fp8::E5m2 => 0x7b,
        }
    }

    /// Converts from `.f32` by `.rn.satfinite`.
    pub fn from_f32(self, bits: u32, relu: bool) -> u8 {
        self.encode(decode(Format::F32, u64::from(bits)), relu)
    }

    /// Converts from `.f16` by `.rn.satfinite`.
    pub fn from_f16(self, bits: u16, relu: bool) -> u8 {
        self.encode(decode(Format::F16, u64::from(bits)), relu)
    }

    fn encode(self, number: Number, relu: bool) -> u8 {
        let format = self.format();
        let (negative, magnitude) = match number {
            Number::Nan => return NAN,
            Number::Infinite { negative } => (negative, self.largest()),
            Number::Finite(exact) => {
                // The grid has no upper end, so that e4m3 may use the exponent that IEEE keeps for infinity.
                let bits = exact.round_to_grid(format.fraction, format.last_place(), Rounding::Nearest);
                (exact.negative, bits.min(u64::from(self.largest())) as u8)
            }
        };
        match (negative, relu) {
            (true, true) => 0,
            _ => magnitude | u8::from(negative) << 7,
        }
    }

    /// Converts to `.f16`, exactly: every value of both formats is an `.f16`.
    pub fn to_f16(self, bits: u8) -> u16 {
        match self {
            // e5m2 is the upper byte of an f16.
            Fp8::E5m2 if bits & 0x7f > 0x7c => NAN_F16,
            Fp8::E5m2 => u16::from(bits) << 8,
            Fp8::E4m3 if bits & 0x7f == 0x7f => NAN_F16,
            Fp8::E4m3 => {
                // The fields at the places of f32's; the exponent is too small by the difference of the biases, 120.
                let fields = f32::from_bits(u32::from(bits & 0x7f) << 20) * f32::from_bits((127 + 120) << 23);
                f32_to_f16(fields.to_bits()) | u16::from(bits & 0x80) << 8
            }
        }
    }
}

/// `cvt.rn.satfinite{.relu}.e4m3x2.f32 d, high, low` and the same for `.e5m2x2`.
pub fn fp8x2_from_f32(to: Fp8, high: u32, low: u32, relu: bool) -> u16 {
    u16::from_be_bytes([to.from_f32(high, relu), to.from_f32(low, relu)])
}

/// `cvt.rn.satfinite{.relu}.e4m3x2.f16x2 d, a` and the same for `.e5m2x2`.
pub fn fp8x2_from_f16x2(to: Fp8, a: u32, relu: bool) -> u16 {
    let (high, low) = unpack(a);
    u16::from_be_bytes([to.from_f16(high, relu), to.from_f16(low, relu)])
}

/// `cvt.rn{.relu}.f16x2.e4m3x2 d, a` and the same for `.e5m2x2`.
pub fn f16x2_from_fp8x2(from: Fp8, a: u16, relu: bool) -> u32 {
    let [high, low] = a.to_be_bytes().map(|byte| {
        let wide = from.to_f16(byte);
        if relu { Half::F16.relu(wide) } else { wide }
    });
    pack(high, low)
}
