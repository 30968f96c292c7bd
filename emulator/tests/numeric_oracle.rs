//! An oracle for correct rounding that shares nothing with the code under test: it does not compute results, it checks
//! them against the definition, with integers of several thousand bits.
//!
//! A result `r` of the exact value `x` is rounded down if `r <= x < next(r)`, to nearest if `x` lies between the
//! midpoints on both sides of `r`, and on a midpoint only if `r` is even. So all that is needed is the sign of
//! `2x - (r + r')`, which is a sum of products of floats for every operation here.

use crate::common::Random;
use ptx_emulator::numeric::Rounding;

/// An IEEE binary format by the widths of its fields.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub exponent: u32,
    pub fraction: u32,
}

pub const F16: Format = Format { exponent: 5, fraction: 10 };
pub const BF16: Format = Format { exponent: 8, fraction: 7 };
pub const F32: Format = Format { exponent: 8, fraction: 23 };
pub const F64: Format = Format { exponent: 11, fraction: 52 };

impl Format {
    pub fn infinity(self) -> u64 {
        ((1u64 << self.exponent) - 1) << self.fraction
    }

    pub fn sign_bit(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    pub fn is_nan(self, bits: u64) -> bool {
        bits & !self.sign_bit() > self.infinity()
    }

    pub fn is_finite(self, bits: u64) -> bool {
        bits & !self.sign_bit() < self.infinity()
    }

    /// The value as `(mantissa, exponent)`. Infinity reads as the power of two that follows the largest number.
    pub fn value(self, bits: u64) -> Value {
        let magnitude = bits & !self.sign_bit();
        let field = (magnitude >> self.fraction) as i32;
        let fraction = (magnitude & ((1 << self.fraction) - 1)) as i128;
        let bias = (1 << (self.exponent - 1)) - 1;
        let (mantissa, exponent) = if field == 0 { (fraction, 1) } else { (fraction + (1 << self.fraction), field) };
        let signed = if bits & self.sign_bit() != 0 { -mantissa } else { mantissa };
        Value(signed, exponent - bias - self.fraction as i32)
    }

    /// The neighbour above, in the order of values; both zeros have the smallest positive number above them.
    fn above(self, bits: u64) -> u64 {
        if bits & !self.sign_bit() == 0 {
            1
        } else if bits & self.sign_bit() != 0 {
            bits - 1
        } else {
            bits + 1
        }
    }

    fn below(self, bits: u64) -> u64 {
        self.above(bits ^ self.sign_bit()) ^ self.sign_bit()
    }

    /// Whether `result` is the correctly rounded value of the exact sum of two terms.
    pub fn is_rounded_sum(self, result: u64, rounding: Rounding, [x, y]: [Value; 2]) -> bool {
        let sign = |r: Value, s: Value| sign_of_sum(&[x.doubled(), y.doubled(), r.negated(), s.negated()]);
        self.is_rounded(result, rounding, sign)
    }

    /// Whether `result` is the correctly rounded value of an exact `x`, where `sign(r, s)` is the sign of
    /// `2x - (r + s)`. Signs of zeros are not looked at.
    pub fn is_rounded(self, result: u64, rounding: Rounding, sign: impl Fn(Value, Value) -> i32) -> bool {
        let mirrored = |r: Value, s: Value| -sign(r.negated(), s.negated());
        let negative = sign(NOTHING, NOTHING) < 0;
        match rounding {
            _ if self.is_nan(result) => false,
            Rounding::Down => self.is_rounded_down(result, &sign),
            Rounding::Up => self.is_rounded_down(result ^ self.sign_bit(), &mirrored),
            Rounding::Zero if !self.is_finite(result) => false,
            Rounding::Zero if negative => self.is_rounded_down(result ^ self.sign_bit(), &mirrored),
            Rounding::Zero => self.is_rounded_down(result, &sign),
            Rounding::Nearest => {
                let within = |order: i32| order > 0 || (order == 0 && result & 1 == 0);
                let value = self.value(result);
                let minus_infinity = self.infinity() | self.sign_bit();
                (result == minus_infinity || within(sign(value, self.value(self.below(result)))))
                    && (result == self.infinity() || within(-sign(value, self.value(self.above(result)))))
            }
        }
    }

    fn is_rounded_down(self, result: u64, sign: &dyn Fn(Value, Value) -> i32) -> bool {
        let against = |bits: u64| sign(self.value(bits), self.value(bits));
        let largest = self.infinity() - 1;
        if result == self.infinity() {
            false
        } else if !self.is_finite(result) {
            against(largest | self.sign_bit()) < 0
        } else {
            against(result) >= 0 && (result == largest || against(self.above(result)) < 0)
        }
    }
}

/// `mantissa * 2^exponent`
#[derive(Clone, Copy, Debug)]
pub struct Value(pub i128, pub i32);

/// The second term of a sum that has only one.
pub const NOTHING: Value = Value(0, 0);

impl Value {
    pub fn times(self, other: Value) -> Value {
        Value(self.0 * other.0, self.1 + other.1)
    }

    pub fn negated(self) -> Value {
        Value(-self.0, self.1)
    }

    pub fn doubled(self) -> Value {
        Value(self.0, self.1 + 1)
    }
}

/// The sign of a sum, exactly: the terms are added into one long two's complement number.
pub fn sign_of_sum(terms: &[Value]) -> i32 {
    let terms = || terms.iter().filter(|term| term.0 != 0);
    let exponents = || terms().map(|term| term.1);
    let (Some(lowest), Some(highest)) = (exponents().min(), exponents().max()) else { return 0 };
    // 128 bits of mantissa above the highest exponent, and room for the sum of a few terms.
    let mut limbs = vec![0u64; (highest - lowest) as usize / 64 + 4];
    for Value(mantissa, exponent) in terms() {
        let position = (exponent - lowest) as usize;
        let (limb, shift) = (position / 64, position % 64);
        // Three limbs hold the shifted mantissa, all further ones its sign.
        let low = (*mantissa as u128) << shift;
        let high = if shift == 0 { mantissa >> 127 } else { mantissa >> (128 - shift) };
        let fill = (mantissa >> 127) as u64;
        let mut carry = 0u128;
        for (offset, place) in limbs[limb..].iter_mut().enumerate() {
            let part = match offset {
                0 => low as u64,
                1 => (low >> 64) as u64,
                2 => high as u64,
                _ => fill,
            };
            let total = u128::from(*place) + u128::from(part) + carry;
            *place = total as u64;
            carry = total >> 64;
        }
    }
    if limbs[limbs.len() - 1] >> 63 != 0 { -1 } else { i32::from(limbs.iter().any(|limb| *limb != 0)) }
}

impl Random {
    /// A number of the format that is likely to meet ties, cancellation and the ends of the range: a special value,
    /// random bits, or few significant bits with an exponent near the middle.
    pub fn float(&mut self, format: Format) -> u64 {
        let random = self.bits();
        let width = format.exponent + format.fraction + 1;
        let bits = random & (u64::MAX >> (64 - width));
        match self.bits() % 4 {
            0 => {
                let list = specials(format);
                list[(random % list.len() as u64) as usize]
            }
            1 => bits,
            2 => {
                let bias = (1u64 << (format.exponent - 1)) - 1;
                let field = bias - 3 + self.bits() % 7;
                bits & (format.sign_bit() | ((1 << format.fraction) - 1)) | field << format.fraction
            }
            // Only the upper half of the fraction: products and sums hit ties.
            _ => {
                let bias = (1u64 << (format.exponent - 1)) - 1;
                let reach = u64::from(format.fraction) + 3;
                let field = (bias - reach.min(bias - 1) + self.bits() % (2 * reach.min(bias - 1))) << format.fraction;
                let keep = !((1u64 << (format.fraction / 2)) - 1) & ((1 << format.fraction) - 1);
                bits & (format.sign_bit() | keep) | field
            }
        }
    }
}

/// The values at which rules change, with both signs.
pub fn specials(format: Format) -> Vec<u64> {
    let one = ((1u64 << (format.exponent - 1)) - 1) << format.fraction;
    let normal = 1u64 << format.fraction;
    let infinity = format.infinity();
    let positive = [
        0,
        1,
        2,
        3,
        normal / 2,
        normal - 1,
        normal,
        normal + 1,
        2 * normal,
        one - normal,
        one - 1,
        one,
        one + 1,
        one + normal / 2,
        one + normal,
        one + normal - 1,
        one + 3 * (normal / 4),
        infinity - normal,
        infinity - 2,
        infinity - 1,
        infinity,
        infinity + normal / 2,
        infinity + 1,
    ];
    positive.iter().flat_map(|bits| [*bits, bits | format.sign_bit()]).collect()
}
