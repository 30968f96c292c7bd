//! Constants (PTX manual, "Constants": integer and floating-point literals).

/// A constant as it was written. Which bits it gives depends on the type of the operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Literal {
    /// An integer; the manual computes with 64 bits, so that is what is kept.
    Int(i64),
    /// `0fXXXXXXXX`: the bits of a single precision number.
    Single(u32),
    /// `0dXXXXXXXXXXXXXXXX`, or a decimal number with a point: double precision.
    Double(f64),
}

impl Literal {
    /// Reads an unsigned literal.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        let lower = word.to_ascii_lowercase();
        let radix = |digits: &str, radix| u64::from_str_radix(digits.trim_end_matches('u'), radix).ok();
        if let Some(hex) = lower.strip_prefix("0f").filter(|hex| hex.len() == 8) {
            return u32::from_str_radix(hex, 16).ok().map(Self::Single);
        }
        if let Some(hex) = lower.strip_prefix("0d").filter(|hex| hex.len() == 16) {
            return u64::from_str_radix(hex, 16).ok().map(|bits| Self::Double(f64::from_bits(bits)));
        }
        if lower.contains('.') {
            return lower.parse().ok().map(Self::Double);
        }
        let value = if let Some(hex) = lower.strip_prefix("0x") {
            radix(hex, 16)
        } else if let Some(binary) = lower.strip_prefix("0b") {
            radix(binary, 2)
        } else if lower.len() > 1 && lower.starts_with('0') {
            radix(&lower[1..], 8)
        } else {
            radix(&lower, 10)
        };
        value.map(|bits| Self::Int(bits as i64))
    }

    /// The same with a minus sign in front.
    pub(crate) fn negated(self) -> Self {
        match self {
            Self::Int(value) => Self::Int(value.wrapping_neg()),
            Self::Single(bits) => Self::Single(bits ^ 0x8000_0000),
            Self::Double(value) => Self::Double(-value),
        }
    }

    /// The bits in a register of `bits` bits; `float` where the instruction's type is a floating-point one.
    pub(crate) fn bits(self, bits: u32, float: bool) -> Option<u64> {
        let raw = match (self, bits, float) {
            (Self::Int(value), 32, true) => u64::from((value as f32).to_bits()),
            (Self::Int(value), 64, true) => (value as f64).to_bits(),
            (Self::Int(value), ..) => value as u64,
            (Self::Single(single), 32, _) => u64::from(single),
            (Self::Single(single), 64, _) => f64::from(f32::from_bits(single)).to_bits(),
            (Self::Double(value), 64, _) => value.to_bits(),
            (Self::Double(value), 32, _) => u64::from((value as f32).to_bits()),
            _ => return None,
        };
        Some(if bits >= 64 { raw } else { raw & ((1 << bits) - 1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        assert_eq!(Literal::parse("0f3F800000"), Some(Literal::Single(0x3f80_0000)));
        assert_eq!(Literal::parse("0d3FF0000000000000"), Some(Literal::Double(1.0)));
        assert_eq!(Literal::parse("0xFFu"), Some(Literal::Int(255)));
        assert_eq!(Literal::parse("017"), Some(Literal::Int(15)));
        assert_eq!(Literal::parse("0b101"), Some(Literal::Int(5)));
        assert_eq!(Literal::parse("0"), Some(Literal::Int(0)));
        assert_eq!(Literal::parse("18446744073709551615"), Some(Literal::Int(-1)));
        assert_eq!(Literal::parse("2.5"), Some(Literal::Double(2.5)));
        assert_eq!(Literal::parse("9z"), None);
        assert_eq!(Literal::Int(-1).bits(16, false), Some(0xffff));
        assert_eq!(Literal::Int(2).negated().bits(32, true), Some(u64::from((-2.0f32).to_bits())));
        assert_eq!(Literal::Single(0).bits(16, true), None);
    }
}
