//! PTX manual, "Floating-Point Instructions": `.f32` and `.f64`.

use super::case::{Case, Lowered};
use super::instruction::Op;
use super::shapes::two;
use crate::exec::lanes::{bits_where, map1, map2, map3, predicate};
use crate::numeric::compare::{Property, testp_f32, testp_f64};
use crate::numeric::float::{self, F32Mode};
use crate::numeric::minmax::{self, Extreme, ExtremeMode};
use crate::numeric::{Rounding, approx, double};
use crate::parse::types::Type;

/// Lowers an instruction of this chapter whose type is `.f32` or `.f64`; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case, kind: Type) -> Option<Lowered<Op>> {
    Some(match (case.name, kind) {
        ("add" | "sub" | "mul" | "fma" | "mad" | "div" | "rcp" | "sqrt" | "rsqrt", Type::F32) => single(case),
        ("add" | "sub" | "mul" | "fma" | "mad" | "div" | "rcp" | "sqrt" | "rsqrt", _) => wide(case),
        ("ex2" | "lg2" | "sin" | "cos" | "tanh", Type::F32) => function(case),
        ("min" | "max", _) => extreme(case, kind),
        ("abs" | "neg", _) => sign(case, kind),
        ("copysign", _) => two(case, kind, |a, _| a, minmax::copysign_f32, minmax::copysign_f64),
        ("testp", _) => property(case, kind),
        _ => return None,
    })
}

/// `f` with the mode known at compile time where it is the plain one, so that the loop vectorises.
macro_rules! with_mode {
    ($map:ident, $d:expr, $sources:expr, $mode:expr, $f:path, $($x:ident),+) => {{
        const FLUSH: F32Mode = F32Mode { rounding: Rounding::Nearest, ftz: true, saturate: false };
        let mode = $mode;
        if mode == F32Mode::RN {
            $map($d, $sources, |$($x: u32),+| $f($($x,)+ F32Mode::RN))
        } else if mode == FLUSH {
            $map($d, $sources, |$($x: u32),+| $f($($x,)+ FLUSH))
        } else {
            $map($d, $sources, move |$($x: u32),+| $f($($x,)+ mode))
        }
    }};
}

/// How many operands an arithmetic instruction has, with its result.
fn operands(case: &Case) -> usize {
    match case.name {
        "fma" | "mad" => 4,
        "rcp" | "sqrt" | "rsqrt" => 2,
        _ => 3,
    }
}

fn single(case: &mut Case) -> Lowered<Op> {
    let (approximate, full) = (case.take("approx"), case.take("full"));
    let rounding = case.rounding();
    let (ftz, saturate) = (case.take("ftz"), case.take("sat"));
    let mode = F32Mode { rounding: rounding.unwrap_or_default(), ftz, saturate };
    case.finish(operands(case))?;
    let kind = Type::F32;
    let d = case.target(0, kind)?;
    if approximate || full {
        if saturate || rounding.is_some() {
            return Err("an approximate function has neither a rounding nor .sat".to_string());
        }
        let a = case.source(1, kind)?;
        return Ok(Op::Lanes(match (case.name, full) {
            ("div", true) => map2(d, [a, case.source(2, kind)?], move |a, b| approx::div_full_f32(a, b, ftz)),
            ("div", false) => map2(d, [a, case.source(2, kind)?], move |a, b| approx::div_f32(a, b, ftz)),
            ("rcp", false) => map1(d, a, move |a| approx::rcp_f32(a, ftz)),
            ("sqrt", false) => map1(d, a, move |a| approx::sqrt_f32(a, ftz)),
            ("rsqrt", false) => map1(d, a, move |a| approx::rsqrt_f32(a, ftz)),
            _ => return Err("it has no approximate form".to_string()),
        }));
    }
    if rounding.is_none() && matches!(case.name, "fma" | "mad" | "div" | "rcp" | "sqrt" | "rsqrt") {
        return Err("a rounding modifier is missing".to_string());
    }
    Ok(Op::Lanes(match case.name {
        "add" => with_mode!(map2, d, case.sources(1, kind)?, mode, float::add_f32, a, b),
        "sub" => with_mode!(map2, d, case.sources(1, kind)?, mode, float::sub_f32, a, b),
        "mul" => with_mode!(map2, d, case.sources(1, kind)?, mode, float::mul_f32, a, b),
        "div" => with_mode!(map2, d, case.sources(1, kind)?, mode, float::div_f32, a, b),
        "fma" | "mad" => with_mode!(map3, d, case.sources(1, kind)?, mode, float::fma_f32, a, b, c),
        "rcp" => with_mode!(map1, d, case.source(1, kind)?, mode, float::rcp_f32, a),
        "sqrt" => with_mode!(map1, d, case.source(1, kind)?, mode, float::sqrt_f32, a),
        _ => return Err("it has an approximate form only".to_string()),
    }))
}

fn wide(case: &mut Case) -> Lowered<Op> {
    let kind = Type::F64;
    let (approximate, ftz) = (case.take("approx"), case.take("ftz"));
    let rounding = case.rounding();
    case.finish(operands(case))?;
    let d = case.target(0, kind)?;
    if approximate {
        let a = case.source(1, kind)?;
        return Ok(Op::Lanes(match (case.name, ftz) {
            ("rsqrt", false) => map1(d, a, approx::rsqrt_f64),
            ("rsqrt", true) => map1(d, a, approx::rsqrt_ftz_f64),
            ("rcp", true) => map1(d, a, approx::rcp_ftz_f64),
            _ => return Err("it has no such approximate form".to_string()),
        }));
    }
    if ftz {
        return Err("the modifier .ftz is not supported here".to_string());
    }
    if rounding.is_none() && !matches!(case.name, "add" | "sub" | "mul") {
        return Err("a rounding modifier is missing".to_string());
    }
    let plain = rounding.is_none_or(|rounding| rounding == Rounding::Nearest);
    let mode = rounding.unwrap_or_default();
    const RN: Rounding = Rounding::Nearest;
    Ok(Op::Lanes(match case.name {
        "add" if plain => map2(d, case.sources(1, kind)?, |a, b| double::add_f64(a, b, RN)),
        "sub" if plain => map2(d, case.sources(1, kind)?, |a, b| double::sub_f64(a, b, RN)),
        "mul" if plain => map2(d, case.sources(1, kind)?, |a, b| double::mul_f64(a, b, RN)),
        "add" => map2(d, case.sources(1, kind)?, move |a, b| double::add_f64(a, b, mode)),
        "sub" => map2(d, case.sources(1, kind)?, move |a, b| double::sub_f64(a, b, mode)),
        "mul" => map2(d, case.sources(1, kind)?, move |a, b| double::mul_f64(a, b, mode)),
        "div" => map2(d, case.sources(1, kind)?, move |a, b| double::div_f64(a, b, mode)),
        "fma" | "mad" => map3(d, case.sources(1, kind)?, move |a, b, c| double::fma_f64(a, b, c, mode)),
        "rcp" => map1(d, case.source(1, kind)?, move |a| double::rcp_f64(a, mode)),
        "sqrt" => map1(d, case.source(1, kind)?, move |a| double::sqrt_f64(a, mode)),
        _ => return Err("it has an approximate form only".to_string()),
    }))
}

/// The functions that exist as `.approx` only.
fn function(case: &mut Case) -> Lowered<Op> {
    if !case.take("approx") {
        return Err("the modifier .approx is missing".to_string());
    }
    let ftz = case.take("ftz");
    case.finish(2)?;
    let (d, a) = (case.target(0, Type::F32)?, case.source(1, Type::F32)?);
    Ok(Op::Lanes(match (case.name, ftz) {
        ("ex2", _) => map1(d, a, move |a| approx::ex2_f32(a, ftz)),
        ("lg2", _) => map1(d, a, move |a| approx::lg2_f32(a, ftz)),
        ("sin", _) => map1(d, a, move |a| approx::sin_f32(a, ftz)),
        ("cos", _) => map1(d, a, move |a| approx::cos_f32(a, ftz)),
        (_, false) => map1(d, a, approx::tanh_f32),
        (_, true) => return Err("tanh has no .ftz".to_string()),
    }))
}

/// `min` or `max` as the instruction's name says.
pub(crate) fn which(case: &Case) -> Extreme {
    if case.name == "min" { Extreme::Min } else { Extreme::Max }
}

fn extreme(case: &mut Case, kind: Type) -> Lowered<Op> {
    let which = which(case);
    let (xorsign, absolute) = (case.take("xorsign"), case.take("abs"));
    let mode = ExtremeMode { ftz: case.take("ftz"), nan: case.take("NaN"), xorsign_abs: xorsign };
    if xorsign != absolute || kind == Type::F64 && mode != ExtremeMode::default() {
        return Err("this combination of modifiers does not exist".to_string());
    }
    let ternary = case.operands.len() == 4;
    case.finish(3)
        .map_err(|reason| if ternary { "the form with three sources is for sm_100".to_string() } else { reason })?;
    let (d, sources) = (case.target(0, kind)?, case.sources(1, kind)?);
    const PLAIN: ExtremeMode = ExtremeMode { ftz: false, nan: false, xorsign_abs: false };
    Ok(Op::Lanes(match (kind, which) {
        (Type::F64, _) => map2(d, sources, move |a, b| minmax::extreme_f64(which, a, b)),
        (_, Extreme::Max) if mode == PLAIN => map2(d, sources, |a, b| minmax::extreme_f32(Extreme::Max, a, b, PLAIN)),
        (_, Extreme::Min) if mode == PLAIN => map2(d, sources, |a, b| minmax::extreme_f32(Extreme::Min, a, b, PLAIN)),
        _ => map2(d, sources, move |a, b| minmax::extreme_f32(which, a, b, mode)),
    }))
}

fn sign(case: &mut Case, kind: Type) -> Lowered<Op> {
    let ftz = case.take("ftz");
    case.finish(2)?;
    let (d, a) = (case.target(0, kind)?, case.source(1, kind)?);
    Ok(Op::Lanes(match (case.name, kind, ftz) {
        ("abs", Type::F32, _) => map1(d, a, move |a| minmax::abs_f32(a, ftz)),
        (_, Type::F32, _) => map1(d, a, move |a| minmax::neg_f32(a, ftz)),
        ("abs", _, false) => map1(d, a, minmax::abs_f64),
        (_, _, false) => map1(d, a, minmax::neg_f64),
        _ => return Err("the modifier .ftz is not supported here".to_string()),
    }))
}

fn property(case: &mut Case, kind: Type) -> Lowered<Op> {
    let property = case.one_of(&[
        ("finite", Property::Finite),
        ("infinite", Property::Infinite),
        ("number", Property::Number),
        ("notanumber", Property::NotANumber),
        ("normal", Property::Normal),
        ("subnormal", Property::Subnormal),
    ]);
    let property = property.ok_or("the property is missing")?;
    case.finish(2)?;
    let (d, a) = (case.predicate(case.operand(0)?)?, case.source(1, kind)?);
    Ok(Op::Lanes(match kind {
        Type::F32 => predicate(d, move |registers| bits_where(registers.get(a), |a| testp_f32(property, a))),
        _ => predicate(d, move |registers| bits_where(registers.get(a), |a| testp_f64(property, a))),
    }))
}
