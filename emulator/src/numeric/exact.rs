//! Exact arithmetic with one rounding at the end: the slow, general path behind every directed rounding mode.
//!
//! A finite number is `± magnitude * 2^exponent` with a 128-bit magnitude. Products of two 53-bit significands fit
//! exactly. Sums, quotients and roots may need more bits than that; what falls off at the right is remembered by
//! setting the lowest bit ("jamming"). The lowest bit is always far below the place where the result is rounded, so a
//! jammed value rounds as the exact one does: it lies on the same side of every tie.

use super::Rounding;

/// An IEEE binary format: one sign bit, `exponent` bits, `fraction` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Width of the exponent field.
    pub exponent: u32,
    /// Width of the fraction field; the significand has one bit more.
    pub fraction: u32,
}

impl Format {
    pub const F16: Format = Format { exponent: 5, fraction: 10 };
    pub const BF16: Format = Format { exponent: 8, fraction: 7 };
    pub const F32: Format = Format { exponent: 8, fraction: 23 };
    pub const F64: Format = Format { exponent: 11, fraction: 52 };

    /// The exponent of the last place of subnormal numbers: the smallest positive value is two to this power.
    pub fn last_place(self) -> i32 {
        2 - (1 << (self.exponent - 1)) - self.fraction as i32
    }

    /// The bits of plus infinity.
    pub fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    /// The sign bit, set or not.
    pub fn sign(self, negative: bool) -> u64 {
        u64::from(negative) << (self.exponent + self.fraction)
    }
}

/// A number taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Nan,
    Infinite { negative: bool },
    Finite(Exact),
}

/// The finite number `± magnitude * 2^exponent`. The magnitude stays below `2^126`; zero keeps its sign.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exact {
    pub negative: bool,
    pub magnitude: u128,
    pub exponent: i32,
}

/// The bit position to which operands are shifted up before they are aligned, divided or rooted.
const TOP: u32 = 125;

/// Takes the bits of a number of the given format apart.
pub(crate) fn decode(format: Format, bits: u64) -> Number {
    let negative = bits & format.sign(true) != 0;
    let fraction = bits & ((1 << format.fraction) - 1);
    let field = (bits & format.infinity()) >> format.fraction;
    if field == (1 << format.exponent) - 1 {
        return if fraction == 0 { Number::Infinite { negative } } else { Number::Nan };
    }
    // Subnormal numbers have no hidden bit and share the exponent of the first binade.
    let (significand, steps) = if field == 0 { (fraction, 0) } else { (fraction | 1 << format.fraction, field - 1) };
    let exponent = format.last_place() + steps as i32;
    Number::Finite(Exact { negative, magnitude: u128::from(significand), exponent })
}

impl Exact {
    /// An integer, as it is.
    pub fn integer(value: i128) -> Exact {
        Exact { negative: value < 0, magnitude: value.unsigned_abs(), exponent: 0 }
    }

    /// The same value with its leading one at bit `top`.
    fn normalised(self, top: u32) -> Exact {
        let shift = self.magnitude.leading_zeros().saturating_sub(127 - top);
        Exact { magnitude: self.magnitude << shift, exponent: self.exponent - shift as i32, ..self }
    }

    /// `self * other`, exact: the magnitudes of decoded numbers have at most 53 bits.
    pub fn times(self, other: Exact) -> Exact {
        Exact {
            negative: self.negative != other.negative,
            magnitude: self.magnitude * other.magnitude,
            exponent: self.exponent + other.exponent,
        }
    }

    /// `self + other`, jammed. The mode decides the sign of an exact zero: `x - x` is `-0` only when rounding down.
    pub fn plus(self, other: Exact, rounding: Rounding) -> Exact {
        match (self.magnitude, other.magnitude) {
            (0, 0) if self.negative == other.negative => return self,
            (0, 0) => return Exact { negative: rounding == Rounding::Down, ..self },
            (_, 0) => return self,
            (0, _) => return other,
            _ => {}
        }
        // One bit of room is left for the carry.
        let (mut large, mut small) = (self.normalised(TOP - 1), other.normalised(TOP - 1));
        if (large.exponent, large.magnitude) < (small.exponent, small.magnitude) {
            std::mem::swap(&mut large, &mut small);
        }
        let aligned = shift_right_jam(small.magnitude, (large.exponent - small.exponent) as u32);
        if large.negative == small.negative {
            return Exact { magnitude: large.magnitude + aligned, ..large };
        }
        let magnitude = large.magnitude - aligned;
        let negative = if magnitude == 0 { rounding == Rounding::Down } else { large.negative };
        Exact { negative, magnitude, exponent: large.exponent }
    }

    /// `self / divisor`, jammed. The divisor is not zero.
    pub fn divided_by(self, divisor: Exact) -> Exact {
        // 126 bits over 53 bits leave a quotient of at least 73 bits.
        let (dividend, divisor) = (self.normalised(TOP), divisor.normalised(52));
        let quotient = dividend.magnitude / divisor.magnitude;
        let inexact = dividend.magnitude % divisor.magnitude != 0;
        Exact {
            negative: self.negative != divisor.negative,
            magnitude: quotient | u128::from(inexact),
            exponent: dividend.exponent - divisor.exponent,
        }
    }

    /// The square root of a number that is not negative, jammed.
    pub fn root(self) -> Exact {
        let mut square = self.normalised(TOP);
        if square.exponent % 2 != 0 {
            square.magnitude >>= 1;
            square.exponent += 1;
        }
        let root = square.magnitude.isqrt();
        let inexact = root * root != square.magnitude;
        // The root has 63 bits; one more place keeps the jammed bit apart from them.
        Exact { negative: self.negative, magnitude: root << 1 | u128::from(inexact), exponent: square.exponent / 2 - 1 }
    }

    /// The magnitude rounded to the grid of a format with `fraction` bits whose smallest step is `2^last_place`, as
    /// the bits of exponent and fraction fields side by side. There is no upper limit yet: the caller applies it.
    pub fn round_to_grid(self, fraction: u32, last_place: i32, rounding: Rounding) -> u64 {
        if self.magnitude == 0 {
            return 0;
        }
        let leading = self.exponent + 127 - self.magnitude.leading_zeros() as i32;
        let step = (leading - fraction as i32).max(last_place);
        let shift = step - self.exponent;
        let kept = if shift <= 0 {
            (self.magnitude << -shift) as u64
        } else {
            let kept = self.magnitude.checked_shr(shift as u32).unwrap_or(0) as u64;
            // Twice the remainder against the step tells the three cases below, at and above the tie apart. From a
            // shift of 127 on the remainder is below half a step, since magnitudes stay below 2^126.
            let (inexact, above, tie) = if shift > 126 {
                (true, false, false)
            } else {
                let remainder = self.magnitude & ((1 << shift) - 1);
                let half = 1u128 << (shift - 1);
                (remainder != 0, remainder > half, remainder == half)
            };
            let away = match rounding {
                Rounding::Nearest => above || (tie && kept & 1 == 1),
                Rounding::Zero => false,
                Rounding::Down => inexact && self.negative,
                Rounding::Up => inexact && !self.negative,
            };
            kept + u64::from(away)
        };
        // A subnormal result has step == last_place and no hidden bit; a normal one adds its hidden bit to the field.
        // A carry out of the fraction moves on to the next exponent by itself.
        (((step - last_place) as u64) << fraction) + kept
    }

    /// Rounds to a format: the bits, with sign. Overflow gives infinity, or the largest finite number where the mode
    /// rounds away from infinity.
    pub fn round(self, format: Format, rounding: Rounding) -> u64 {
        let bits = self.round_to_grid(format.fraction, format.last_place(), rounding);
        let limit = match rounding {
            Rounding::Nearest => format.infinity(),
            Rounding::Zero => format.infinity() - 1,
            Rounding::Down => format.infinity() - u64::from(!self.negative),
            Rounding::Up => format.infinity() - u64::from(self.negative),
        };
        bits.min(limit) | format.sign(self.negative)
    }
}

/// Shifts right; the lowest bit becomes one if any lost bit was one.
fn shift_right_jam(value: u128, count: u32) -> u128 {
    match value.checked_shr(count) {
        Some(shifted) => shifted | u128::from(shifted << count != value),
        None => u128::from(value != 0),
    }
}

/// Which bits an operation on `format` returns for numbers that are not both finite, or whose rule is special; the
/// operations of one format share this through [`Operation::evaluate`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// `a + b`
    Add,
    /// `a * b`
    Multiply,
    /// `a * b + c`
    Fma,
    /// `a / b`
    Divide,
    /// `sqrt(a)`
    Root,
}

impl Operation {
    /// The correctly rounded result, or `None` where it is NaN. Operands that the operation does not have are ignored.
    #[cold]
    pub fn evaluate(self, format: Format, operands: [u64; 3], rounding: Rounding) -> Option<u64> {
        use Number::{Finite, Infinite, Nan};
        let [a, b, c] = operands.map(|bits| decode(format, bits));
        let infinite = |negative| Some(format.infinity() | format.sign(negative));
        let sum = |x, y| match (x, y) {
            (Nan, _) | (_, Nan) => None,
            (Infinite { negative: x }, Infinite { negative: y }) if x != y => None,
            (Infinite { negative }, _) | (_, Infinite { negative }) => infinite(negative),
            (Finite(x), Finite(y)) => Some(x.plus(y, rounding).round(format, rounding)),
        };
        match self {
            Operation::Add => sum(a, b),
            Operation::Multiply => match product(a, b) {
                Nan => None,
                Infinite { negative } => infinite(negative),
                Finite(exact) => Some(exact.round(format, rounding)),
            },
            Operation::Fma => sum(product(a, b), c),
            Operation::Divide => match (a, b) {
                (Nan, _) | (_, Nan) | (Infinite { .. }, Infinite { .. }) => None,
                (Infinite { negative: x }, Finite(y)) => infinite(x != y.negative),
                (Finite(x), Infinite { negative: y }) => Some(format.sign(x.negative != y)),
                (Finite(x), Finite(y)) if y.magnitude == 0 && x.magnitude == 0 => None,
                (Finite(x), Finite(y)) if y.magnitude == 0 => infinite(x.negative != y.negative),
                (Finite(x), Finite(y)) if x.magnitude == 0 => Some(format.sign(x.negative != y.negative)),
                (Finite(x), Finite(y)) => Some(x.divided_by(y).round(format, rounding)),
            },
            Operation::Root => match a {
                Finite(x) if x.magnitude == 0 => Some(operands[0]),
                Finite(x) if !x.negative => Some(x.root().round(format, rounding)),
                Infinite { negative: false } => infinite(false),
                _ => None,
            },
        }
    }
}

/// The product as a number, with `0 * inf` as NaN.
fn product(a: Number, b: Number) -> Number {
    match (a, b) {
        (Number::Finite(x), Number::Finite(y)) => Number::Finite(x.times(y)),
        (Number::Infinite { negative }, Number::Finite(x)) | (Number::Finite(x), Number::Infinite { negative })
            if x.magnitude != 0 =>
        {
            Number::Infinite { negative: negative != x.negative }
        }
        (Number::Infinite { negative: x }, Number::Infinite { negative: y }) => Number::Infinite { negative: x != y },
        _ => Number::Nan,
    }
}
