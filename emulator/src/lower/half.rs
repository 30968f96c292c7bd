//! PTX manual, "Half Precision Floating-Point Instructions": `.f16`, `.bf16` and the packed `.f16x2`, `.bf16x2`.

use super::case::{Case, Lowered};
use super::float::which;
use super::instruction::Op;
use super::shapes::{no_type, one, three, two};
use crate::numeric::approx;
use crate::numeric::format::Half;
use crate::numeric::half_ops::{self as ops, HalfMode, both1, both2, both3};
use crate::numeric::minmax::ExtremeMode;
use crate::parse::types::Type;

/// The format of a 16-bit type, and whether two of them are packed into a word.
pub(crate) fn format(kind: Type) -> Option<(Half, bool)> {
    match kind {
        Type::F16 => Some((Half::F16, false)),
        Type::F16x2 => Some((Half::F16, true)),
        Type::Bf16 => Some((Half::Bf16, false)),
        Type::Bf16x2 => Some((Half::Bf16, true)),
        _ => None,
    }
}

/// Lowers an instruction of this chapter with such a type; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case, kind: Type) -> Option<Lowered<Op>> {
    Some(match case.name {
        "add" => arithmetic2(case, kind, ops::add),
        "sub" => arithmetic2(case, kind, ops::sub),
        "mul" => arithmetic2(case, kind, ops::mul),
        "fma" => fma(case, kind),
        "min" | "max" => extreme(case, kind),
        "neg" => sign(case, kind, ops::neg),
        "abs" => sign(case, kind, ops::abs),
        "ex2" => function(case, kind, approx::ex2_half),
        "tanh" => function(case, kind, approx::tanh_half),
        _ => return None,
    })
}

/// `.ftz`, `.sat` and `.relu` where the format has them.
fn mode(case: &mut Case, half: Half, relu: bool) -> Lowered<HalfMode> {
    let rounding = case.rounding();
    if rounding.is_some_and(|rounding| rounding != Default::default()) {
        return Err("only .rn exists here".to_string());
    }
    let mode = HalfMode { ftz: case.take("ftz"), saturate: case.take("sat"), relu: relu && case.take("relu") };
    if half == Half::Bf16 && (mode.ftz || mode.saturate) {
        return Err("bf16 has neither .ftz nor .sat".to_string());
    }
    Ok(mode)
}

fn formatted(kind: Type) -> Lowered<Half> {
    format(kind).map(|(half, _)| half).ok_or_else(|| no_type(kind))
}

// A type of this chapter has 16 bits, or 32 where two numbers are packed: the last formula of each shape is never used.

fn arithmetic2(case: &mut Case, kind: Type, f: fn(Half, u16, u16, HalfMode) -> u16) -> Lowered<Op> {
    let half = formatted(kind)?;
    let mode = mode(case, half, false)?;
    let f = move |a, b| f(half, a, b, mode);
    two(case, kind, f, move |a, b| both2(a, b, f), |a, _| a)
}

fn fma(case: &mut Case, kind: Type) -> Lowered<Op> {
    let half = formatted(kind)?;
    let mode = mode(case, half, true)?;
    let f = move |a, b, c| ops::fma(half, a, b, c, mode);
    three(case, kind, f, move |a, b, c| both3(a, b, c, f), |a, _, _| a)
}

fn extreme(case: &mut Case, kind: Type) -> Lowered<Op> {
    let half = formatted(kind)?;
    let which = which(case);
    let (xorsign, absolute) = (case.take("xorsign"), case.take("abs"));
    let mode = ExtremeMode { ftz: case.take("ftz"), nan: case.take("NaN"), xorsign_abs: xorsign };
    if xorsign != absolute || half == Half::Bf16 && mode.ftz {
        return Err("this combination of modifiers does not exist".to_string());
    }
    let f = move |a, b| ops::extreme(half, which, a, b, mode);
    two(case, kind, f, move |a, b| both2(a, b, f), |a, _| a)
}

fn sign(case: &mut Case, kind: Type, f: fn(Half, u16, bool) -> u16) -> Lowered<Op> {
    let half = formatted(kind)?;
    let ftz = half == Half::F16 && case.take("ftz");
    let f = move |a| f(half, a, ftz);
    one(case, kind, f, move |a| both1(a, f), |a| a)
}

fn function(case: &mut Case, kind: Type, f: fn(Half, u16) -> u16) -> Lowered<Op> {
    let half = formatted(kind)?;
    if !case.take("approx") {
        return Err("the modifier .approx is missing".to_string());
    }
    // `ex2.approx.ftz.bf16` names what bf16 does anyway: the modifier is part of its name.
    let ftz = case.take("ftz");
    if ftz != (half == Half::Bf16 && case.name == "ex2") {
        return Err("this combination of modifiers does not exist".to_string());
    }
    let f = move |a| f(half, a);
    one(case, kind, f, move |a| both1(a, f), |a| a)
}
