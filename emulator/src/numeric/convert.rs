//! `cvt`: between integers and floats of all sizes ("Data Movement and Conversion Instructions: cvt" in the PTX
//! manual).
//!
//! * integer to integer: the source is extended by its own sign; `.sat` clamps to the target's range, otherwise the
//!   upper bits are cut off.
//! * integer to float: one rounding.
//! * float to integer: rounded to an integer (`.rni .rzi .rmi .rpi`), then clamped to the target's range, with or
//!   without `.sat`. NaN becomes zero, except from `.f64` or to a 64-bit integer: there it becomes the integer with
//!   only the top bit set.
//! * float to float: one rounding; an integer rounding modifier rounds to an integral value of the same type.
//! * `.ftz` flushes `.f32` inputs and results; `.sat` clamps float results to `[0, 1]`.
//!
//! [`Conversion::apply`] does all of these. A caller that knows the types at its compile time, or looks at them once
//! per warp, can call the single functions instead. The packed and 8-bit forms are in [`super::format`] and
//! [`super::fp8`].

use super::double::saturate_f64;
use super::exact::{Exact, Format, Number, decode};
use super::float::{canonical_f32, flush_f32, saturate_f32};
use super::format::Half;
use super::{NAN_F32, NAN_F64, Rounding};

/// An integer type: its width in bits and its signedness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Integer {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

impl Integer {
    /// All integer types.
    pub const ALL: [Integer; 8] = {
        use Integer::*;
        [U8, S8, U16, S16, U32, S32, U64, S64]
    };

    /// The width in bits.
    #[inline(always)]
    pub fn width(self) -> u32 {
        match self {
            Integer::U8 | Integer::S8 => 8,
            Integer::U16 | Integer::S16 => 16,
            Integer::U32 | Integer::S32 => 32,
            Integer::U64 | Integer::S64 => 64,
        }
    }

    /// Whether the type has a sign.
    #[inline(always)]
    pub fn signed(self) -> bool {
        matches!(self, Integer::S8 | Integer::S16 | Integer::S32 | Integer::S64)
    }

    /// The low bits of a register as a number of this type, extended to 64 bits by sign or by zeros. A destination
    /// register that is wider than the type gets its bits in this way.
    #[inline(always)]
    pub fn extend(self, bits: u64) -> u64 {
        let unused = 64 - self.width();
        if self.signed() { ((bits << unused) as i64 >> unused) as u64 } else { bits << unused >> unused }
    }

    /// The number that the low bits of a register hold.
    #[inline(always)]
    fn value(self, bits: u64) -> i128 {
        let extended = self.extend(bits);
        if self.signed() { i128::from(extended as i64) } else { i128::from(extended) }
    }

    /// The smallest and the largest number.
    fn range(self) -> (i128, i128) {
        let top = 1i128 << (self.width() - u32::from(self.signed()));
        (if self.signed() { -top } else { 0 }, top - 1)
    }
}

/// A float type of `cvt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

impl Float {
    /// All float types.
    pub const ALL: [Float; 4] = [Float::F16, Float::Bf16, Float::F32, Float::F64];

    fn format(self) -> Format {
        match self {
            Float::F16 => Format::F16,
            Float::Bf16 => Format::BF16,
            Float::F32 => Format::F32,
            Float::F64 => Format::F64,
        }
    }

    /// The value as the host's `f64`, exactly; every NaN becomes some NaN.
    #[inline(always)]
    pub fn value(self, bits: u64) -> f64 {
        match self {
            Float::F16 => f64::from(Half::F16.value(bits as u16)),
            Float::Bf16 => f64::from(Half::Bf16.value(bits as u16)),
            Float::F32 => f64::from(f32::from_bits(bits as u32)),
            Float::F64 => f64::from_bits(bits),
        }
    }

    /// Rounds a value to this type, once. NaN becomes the canonical NaN of the type.
    #[inline(always)]
    pub fn round(self, value: f64, rounding: Rounding) -> u64 {
        match (self, rounding) {
            (Float::F64, _) if value.is_nan() => NAN_F64,
            (Float::F64, _) => value.to_bits(),
            (Float::F32, Rounding::Nearest) => u64::from(canonical_f32(value as f32)),
            (Float::F32, _) => match decode(Format::F64, value.to_bits()) {
                Number::Finite(exact) => exact.round(Format::F32, rounding),
                _ => u64::from(canonical_f32(value as f32)),
            },
            (Float::F16, _) => u64::from(Half::F16.narrow_f64(value.to_bits(), rounding)),
            (Float::Bf16, _) => u64::from(Half::Bf16.narrow_f64(value.to_bits(), rounding)),
        }
    }
}

/// `cvt{.sat}.int.int`. The result has only the target's bits; see [`Integer::extend`] for wider registers.
#[inline(always)]
pub fn int_to_int(bits: u64, from: Integer, to: Integer, saturate: bool) -> u64 {
    let result = if saturate {
        let (low, high) = to.range();
        from.value(bits).clamp(low, high) as u64
    } else {
        from.extend(bits)
    };
    result << (64 - to.width()) >> (64 - to.width())
}

/// `cvt.rnd.float.int`
#[inline(always)]
pub fn int_to_float(bits: u64, from: Integer, to: Float, rounding: Rounding) -> u64 {
    let extended = from.extend(bits);
    match (to, rounding) {
        (Float::F32, Rounding::Nearest) if from.signed() => u64::from((extended as i64 as f32).to_bits()),
        (Float::F32, Rounding::Nearest) => u64::from((extended as f32).to_bits()),
        (Float::F64, Rounding::Nearest) if from.signed() => (extended as i64 as f64).to_bits(),
        (Float::F64, Rounding::Nearest) => (extended as f64).to_bits(),
        _ => Exact::integer(from.value(bits)).round(to.format(), rounding),
    }
}

/// `cvt.rnd.int.float`, where `rounding` is the integer rounding. The result has only the target's bits.
#[inline(always)]
pub fn float_to_int(bits: u64, from: Float, to: Integer, rounding: Rounding) -> u64 {
    let value = from.value(bits);
    if value.is_nan() {
        let top_bit = from == Float::F64 || to.width() == 64;
        return if top_bit { 1 << (to.width() - 1) } else { 0 };
    }
    // Rust's casts from float to integer clamp, as the manual wants; they also round towards zero.
    let integral = if rounding == Rounding::Zero { value } else { round_integral(value, rounding) };
    match to {
        Integer::U8 => u64::from(integral as u8),
        Integer::S8 => u64::from(integral as i8 as u8),
        Integer::U16 => u64::from(integral as u16),
        Integer::S16 => u64::from(integral as i16 as u16),
        Integer::U32 => u64::from(integral as u32),
        Integer::S32 => u64::from(integral as i32 as u32),
        Integer::U64 => integral as u64,
        Integer::S64 => integral as i64 as u64,
    }
}

/// The integral value next to `value` in the given direction.
#[inline(always)]
fn round_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// `cvt.rni .rzi .rmi .rpi` within one float type: the result is an integral value of the same type.
#[inline(always)]
pub fn float_to_integral(bits: u64, float: Float, rounding: Rounding) -> u64 {
    // Integral values next to a number of a type are numbers of that type, so nothing is rounded again.
    float.round(round_integral(float.value(bits), rounding), Rounding::Nearest)
}

/// `cvt.rnd.float.float` between different types. Widening is exact and ignores the rounding.
#[inline(always)]
pub fn float_to_float(bits: u64, from: Float, to: Float, rounding: Rounding) -> u64 {
    match (from, to) {
        (Float::F16, Float::F32) => u64::from(Half::F16.widen(bits as u16)),
        (Float::Bf16, Float::F32) => u64::from(Half::Bf16.widen(bits as u16)),
        (Float::F32, Float::F16) => u64::from(Half::F16.narrow(bits as u32, rounding)),
        (Float::F32, Float::Bf16) => u64::from(Half::Bf16.narrow(bits as u32, rounding)),
        _ => to.round(from.value(bits), rounding),
    }
}

/// An operand type of `cvt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// One of the integer types.
    Integer(Integer),
    /// One of the float types.
    Float(Float),
}

/// A whole scalar `cvt` instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conversion {
    /// The source type.
    pub from: Type,
    /// The target type.
    pub to: Type,
    /// `.rn .rz .rm .rp` or `.rni .rzi .rmi .rpi`; what it means follows from the types. `None` where the
    /// instruction has no rounding modifier; it is read as `.rn` if a rounding is needed all the same.
    pub rounding: Option<Rounding>,
    /// `.ftz`: `.f32` inputs and results.
    pub ftz: bool,
    /// `.sat`
    pub saturate: bool,
    /// `.relu`, for 16-bit float targets.
    pub relu: bool,
    /// `.satfinite`, for 16-bit float targets.
    pub satfinite: bool,
}

impl Conversion {
    /// Converts the low bits of a register. The result has only the target's bits.
    #[inline]
    pub fn apply(&self, bits: u64) -> u64 {
        let rounding = self.rounding.unwrap_or_default();
        let flushes = |side: Type| self.ftz && side == Type::Float(Float::F32);
        let bits = if flushes(self.from) { u64::from(flush_f32(bits as u32)) } else { bits };
        let result = match (self.from, self.to) {
            (Type::Integer(from), Type::Integer(to)) => return int_to_int(bits, from, to, self.saturate),
            (Type::Float(from), Type::Integer(to)) => return float_to_int(bits, from, to, rounding),
            (Type::Integer(from), Type::Float(to)) => int_to_float(bits, from, to, rounding),
            (Type::Float(from), Type::Float(to)) if from == to => match self.rounding {
                Some(rounding) => float_to_integral(bits, from, rounding),
                None => canonical(bits, from),
            },
            (Type::Float(from), Type::Float(to)) => float_to_float(bits, from, to, rounding),
        };
        let result = if flushes(self.to) { u64::from(flush_f32(result as u32)) } else { result };
        self.clamp(result)
    }

    /// `.sat`, `.relu` and `.satfinite` of a float result.
    fn clamp(&self, bits: u64) -> u64 {
        let half = match self.to {
            Type::Float(Float::F16) => Half::F16,
            Type::Float(Float::Bf16) => Half::Bf16,
            Type::Float(Float::F32) if self.saturate => return u64::from(saturate_f32(bits as u32)),
            Type::Float(Float::F64) if self.saturate => return saturate_f64(bits),
            _ => return bits,
        };
        let mut result = bits as u16;
        if self.satfinite {
            result = half.satfinite(result);
        }
        if self.relu {
            result = half.relu(result);
        }
        if self.saturate {
            result = half.saturate(result);
        }
        u64::from(result)
    }
}

/// A `cvt` to the same type without rounding: the value itself, NaN made canonical for the narrow types.
fn canonical(bits: u64, float: Float) -> u64 {
    let half = |half: Half| if half.is_nan(bits as u16) { half.canonical_nan() } else { bits as u16 };
    match float {
        Float::F16 => u64::from(half(Half::F16)),
        Float::Bf16 => u64::from(half(Half::Bf16)),
        Float::F32 if f32::from_bits(bits as u32).is_nan() => u64::from(NAN_F32),
        Float::F32 | Float::F64 => bits,
    }
}
