//! `.f64` arithmetic: `add sub mul fma div rcp sqrt` ("Floating Point Instructions" in the PTX manual).
//!
//! Correctly rounded in all four modes. There is no `.ftz` for `.f64`, and `.sat` in `cvt` only ([`saturate_f64`]). NaN
//! payloads are kept: the first NaN operand is the result, with its quiet bit set; an invalid operation gives
//! [`NAN_F64`].

use super::exact::{Format, Operation};
use super::{NAN_F64, Rounding};

/// The quiet bit of a NaN.
const QUIET: u64 = 0x0008_0000_0000_0000;

/// The NaN result of an operation: its first NaN operand made quiet, or the generated NaN. It is chosen from the
/// operands, so that it does not depend on the host's compiler. Operands that the operation does not have are zero.
#[inline(always)]
fn payload(operands: [u64; 3]) -> u64 {
    operands.into_iter().find(|bits| f64::from_bits(*bits).is_nan()).map_or(NAN_F64, |bits| bits | QUIET)
}

#[inline(never)]
fn directed(operation: Operation, operands: [u64; 3], rounding: Rounding) -> u64 {
    operation.evaluate(Format::F64, operands, rounding).unwrap_or_else(|| payload(operands))
}

/// `nearest` in the mode `.rn`, the exact path in the others.
#[inline(always)]
fn apply(operation: Operation, operands: [u64; 3], rounding: Rounding, nearest: impl FnOnce([f64; 3]) -> f64) -> u64 {
    if rounding != Rounding::Nearest {
        return directed(operation, operands, rounding);
    }
    let value = nearest(operands.map(f64::from_bits));
    if value.is_nan() { payload(operands) } else { value.to_bits() }
}

/// `add{.rnd}.f64`
#[inline(always)]
pub fn add_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    apply(Operation::Add, [a, b, 0], rounding, |[a, b, _]| a + b)
}

/// `sub{.rnd}.f64`
#[inline(always)]
pub fn sub_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    // a - b is a + (-b) in every rounding mode; a NaN operand keeps its sign, so only numbers are negated.
    add_f64(a, if f64::from_bits(b).is_nan() { b } else { b ^ 1 << 63 }, rounding)
}

/// `mul{.rnd}.f64`
#[inline(always)]
pub fn mul_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    apply(Operation::Multiply, [a, b, 0], rounding, |[a, b, _]| a * b)
}

/// `fma.rnd.f64` and `mad.rnd.f64`: one rounding.
#[inline(always)]
pub fn fma_f64(a: u64, b: u64, c: u64, rounding: Rounding) -> u64 {
    apply(Operation::Fma, [a, b, c], rounding, |[a, b, c]| a.mul_add(b, c))
}

/// `div.rnd.f64`
#[inline(always)]
pub fn div_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    apply(Operation::Divide, [a, b, 0], rounding, |[a, b, _]| a / b)
}

/// `rcp.rnd.f64`
#[inline(always)]
pub fn rcp_f64(a: u64, rounding: Rounding) -> u64 {
    div_f64(1.0f64.to_bits(), a, rounding)
}

/// `sqrt.rnd.f64`
#[inline(always)]
pub fn sqrt_f64(a: u64, rounding: Rounding) -> u64 {
    apply(Operation::Root, [a, 0, 0], rounding, |[a, _, _]| a.sqrt())
}

/// `.sat` of a `.f64` result of `cvt`: clamps to `[0.0, 1.0]`, NaN to `+0.0`.
#[inline(always)]
pub fn saturate_f64(bits: u64) -> u64 {
    let value = f64::from_bits(bits);
    let low = if value > 0.0 { value } else { 0.0 };
    (if low < 1.0 { low } else { 1.0 }).to_bits()
}
