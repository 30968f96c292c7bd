//! `.f64` arithmetic: `add sub mul fma div rcp sqrt` ("Floating Point Instructions" in the PTX manual).
//!
//! Correctly rounded in all four modes. There is no `.ftz` for `.f64`, and `.sat` in `cvt` only ([`saturate_f64`]). NaN
//! payloads are kept: the first NaN operand is the result, with its quiet bit set; an invalid operation gives
//! [`NAN_F64`].

use super::exact::{Format, Operation};
use super::{NAN_F64, Rounding};

/// The quiet bit of a NaN.
const QUIET: u64 = 0x0008_0000_0000_0000;

/// The result's bits; a NaN is chosen from the operands, so that it does not depend on the host's compiler.
#[inline(always)]
fn with_payload(value: f64, operands: &[u64]) -> u64 {
    if value.is_nan() { payload(operands) } else { value.to_bits() }
}

/// The NaN result of an operation: its first NaN operand made quiet, or the generated NaN.
#[inline(always)]
fn payload(operands: &[u64]) -> u64 {
    operands.iter().copied().find(|bits| f64::from_bits(*bits).is_nan()).map_or(NAN_F64, |bits| bits | QUIET)
}

#[inline(never)]
fn directed(operation: Operation, operands: [u64; 3], rounding: Rounding) -> u64 {
    operation.evaluate(Format::F64, operands, rounding).unwrap_or_else(|| payload(&operands))
}

/// `add{.rnd}.f64`
#[inline(always)]
pub fn add_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::Nearest => with_payload(f64::from_bits(a) + f64::from_bits(b), &[a, b]),
        _ => directed(Operation::Add, [a, b, 0], rounding),
    }
}

/// `sub{.rnd}.f64`
#[inline(always)]
pub fn sub_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::Nearest => with_payload(f64::from_bits(a) - f64::from_bits(b), &[a, b]),
        // A NaN operand keeps its sign, so only numbers are negated.
        _ => directed(Operation::Add, [a, if f64::from_bits(b).is_nan() { b } else { b ^ 1 << 63 }, 0], rounding),
    }
}

/// `mul{.rnd}.f64`
#[inline(always)]
pub fn mul_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::Nearest => with_payload(f64::from_bits(a) * f64::from_bits(b), &[a, b]),
        _ => directed(Operation::Multiply, [a, b, 0], rounding),
    }
}

/// `fma.rnd.f64` and `mad.rnd.f64`: one rounding.
#[inline(always)]
pub fn fma_f64(a: u64, b: u64, c: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::Nearest => with_payload(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)), &[a, b, c]),
        _ => directed(Operation::Fma, [a, b, c], rounding),
    }
}

/// `div.rnd.f64`
#[inline(always)]
pub fn div_f64(a: u64, b: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::Nearest => with_payload(f64::from_bits(a) / f64::from_bits(b), &[a, b]),
        _ => directed(Operation::Divide, [a, b, 0], rounding),
    }
}

/// `rcp.rnd.f64`
#[inline(always)]
pub fn rcp_f64(a: u64, rounding: Rounding) -> u64 {
    div_f64(1.0f64.to_bits(), a, rounding)
}

/// `sqrt.rnd.f64`
#[inline(always)]
pub fn sqrt_f64(a: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::Nearest => with_payload(f64::from_bits(a).sqrt(), &[a]),
        _ => directed(Operation::Root, [a, 0, 0], rounding),
    }
}

/// `.sat` of a `.f64` result of `cvt`: clamps to `[0.0, 1.0]`, NaN to `+0.0`.
#[inline(always)]
pub fn saturate_f64(bits: u64) -> u64 {
    let value = f64::from_bits(bits);
    let low = if value > 0.0 { value } else { 0.0 };
    (if low < 1.0 { low } else { 1.0 }).to_bits()
}
