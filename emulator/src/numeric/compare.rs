//! Comparisons of floats for `set`, `setp` and `slct`, and `testp` ("Comparison and Selection Instructions" and
//! "Floating Point Instructions" in the PTX manual).
//!
//! An ordered comparison (`eq ne lt le gt ge`) is false if an operand is NaN, also `ne`; its unordered twin (`equ neu
//! ltu leu gtu geu`) is true then. `num` and `nan` ask only whether a NaN is among the operands. `+0.0` equals `-0.0`.

use super::float::flush_f32;
use std::cmp::Ordering;
use std::num::FpCategory;

/// A comparison operator of a float `setp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Both operands are numbers.
    Num,
    /// One operand is NaN.
    Nan,
}

impl Comparison {
    /// All operators.
    pub const ALL: [Comparison; 14] = {
        use Comparison::*;
        [Eq, Ne, Lt, Le, Gt, Ge, Equ, Neu, Ltu, Leu, Gtu, Geu, Num, Nan]
    };

    /// Whether the operator holds for operands in this order; `None` means that one of them is NaN.
    #[inline(always)]
    pub fn holds(self, order: Option<Ordering>) -> bool {
        use Comparison::*;
        match self {
            Eq => order == Some(Ordering::Equal),
            Ne => matches!(order, Some(Ordering::Less | Ordering::Greater)),
            Lt => order == Some(Ordering::Less),
            Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Gt => order == Some(Ordering::Greater),
            Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            Equ => matches!(order, None | Some(Ordering::Equal)),
            Neu => order != Some(Ordering::Equal),
            Ltu => matches!(order, None | Some(Ordering::Less)),
            Leu => order != Some(Ordering::Greater),
            Gtu => matches!(order, None | Some(Ordering::Greater)),
            Geu => order != Some(Ordering::Less),
            Num => order.is_some(),
            Nan => order.is_none(),
        }
    }

    /// Compares two values of one float type. One comparison of the host per operator, so that loops vectorise.
    #[inline(always)]
    pub(super) fn of<T: PartialOrd + Copy>(self, a: T, b: T) -> bool {
        use Comparison::*;
        // The unordered operators are the negations of the opposite ordered ones, by definition.
        #[allow(clippy::neg_cmp_op_on_partial_ord, clippy::eq_op)]
        match self {
            Eq => a == b,
            Ne => (a < b) | (a > b),
            Lt => a < b,
            Le => a <= b,
            Gt => a > b,
            Ge => a >= b,
            Equ => !((a < b) | (a > b)),
            Neu => a != b,
            Ltu => !(a >= b),
            Leu => !(a > b),
            Gtu => !(a <= b),
            Geu => !(a < b),
            Num => a == a && b == b,
            Nan => a != a || b != b,
        }
    }
}

/// `setp.CmpOp{.ftz}.f32`: with `.ftz`, subnormal operands compare as zeros.
#[inline(always)]
pub fn compare_f32(comparison: Comparison, a: u32, b: u32, ftz: bool) -> bool {
    let (a, b) = if ftz { (flush_f32(a), flush_f32(b)) } else { (a, b) };
    comparison.of(f32::from_bits(a), f32::from_bits(b))
}

/// `setp.CmpOp.f64`
#[inline(always)]
pub fn compare_f64(comparison: Comparison, a: u64, b: u64) -> bool {
    comparison.of(f64::from_bits(a), f64::from_bits(b))
}

/// A property that `testp` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Property {
    /// `testp.finite`: neither infinite nor NaN.
    Finite,
    /// `testp.infinite`
    Infinite,
    /// `testp.number`: not NaN.
    Number,
    /// `testp.notanumber`
    NotANumber,
    /// `testp.normal`: neither infinite, NaN nor subnormal; "positive and negative zero are considered normal numbers".
    Normal,
    /// `testp.subnormal`: below the smallest normal number, but not zero.
    Subnormal,
}

impl Property {
    #[inline(always)]
    fn of(self, class: FpCategory) -> bool {
        match self {
            Property::Finite => !matches!(class, FpCategory::Infinite | FpCategory::Nan),
            Property::Infinite => class == FpCategory::Infinite,
            Property::Number => class != FpCategory::Nan,
            Property::NotANumber => class == FpCategory::Nan,
            Property::Normal => matches!(class, FpCategory::Normal | FpCategory::Zero),
            Property::Subnormal => class == FpCategory::Subnormal,
        }
    }
}

/// `testp.op.f32`
#[inline(always)]
pub fn testp_f32(property: Property, a: u32) -> bool {
    property.of(f32::from_bits(a).classify())
}

/// `testp.op.f64`
#[inline(always)]
pub fn testp_f64(property: Property, a: u64) -> bool {
    property.of(f64::from_bits(a).classify())
}
