//! PTX manual, "Logic and Shift Instructions", with the bit-field instructions and `prmt`.

use super::case::{Case, Lowered};
use super::instruction::Op;
use super::integer::amount;
use super::shapes::{no_type, one, three, two};
use crate::exec::lanes::{map1, map2, map3, map4, predicate};
use crate::exec::registers::Pred;
use crate::numeric::bits::{self, Funnel, Permute};
use crate::parse::ast::Operand;
use crate::parse::literal::Literal;
use crate::parse::types::Type;

/// Lowers an instruction of this chapter; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    Some(match case.name {
        "and" | "or" | "xor" | "not" | "cnot" => case.kind().and_then(|kind| boolean(case, kind)),
        "shl" | "shr" => case.kind().and_then(|kind| shift(case, kind)),
        "shf" => funnel(case),
        "lop3" => lop3(case),
        "brev" | "clz" | "popc" => case.kind().and_then(|kind| count(case, kind)),
        "bfe" | "bfi" => case.kind().and_then(|kind| field(case, kind)),
        "prmt" => permute(case),
        "bmsk" => mask(case),
        "szext" => extend(case),
        "fns" => case.kind().and_then(|kind| find_nth(case, kind)),
        _ => return None,
    })
}

fn boolean(case: &mut Case, kind: Type) -> Lowered<Op> {
    if kind == Type::Pred {
        return predicates(case);
    }
    if !matches!(kind, Type::B16 | Type::B32 | Type::B64) {
        return Err(no_type(kind));
    }
    match case.name {
        "and" => two(case, kind, |a, b| a & b, |a, b| a & b, |a, b| a & b),
        "or" => two(case, kind, |a, b| a | b, |a, b| a | b, |a, b| a | b),
        "xor" => two(case, kind, |a, b| a ^ b, |a, b| a ^ b, |a, b| a ^ b),
        "not" => one(case, kind, |a| !a, |a| !a, |a| !a),
        _ => one(case, kind, |a| u16::from(a == 0), |a| u32::from(a == 0), |a| u64::from(a == 0)),
    }
}

/// Logic on predicates works on 32 lanes at once.
fn predicates(case: &mut Case) -> Lowered<Op> {
    let f: fn(u32, u32) -> u32 = match case.name {
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        "xor" => |a, b| a ^ b,
        "not" => |a, _| !a,
        _ => return Err(no_type(Type::Pred)),
    };
    let unary = case.name == "not";
    case.finish(if unary { 2 } else { 3 })?;
    let d = case.predicate(case.operand(0)?)?;
    let a = case.condition(1)?;
    let b: Pred = if unary { a } else { case.condition(2)? };
    Ok(Op::Lanes(predicate(d, move |registers| f(registers.test(a), registers.test(b)))))
}

fn shift(case: &mut Case, kind: Type) -> Lowered<Op> {
    case.finish(3)?;
    let (d, a, b) = (case.target(0, kind)?, case.source(1, kind)?, amount(case, 2)?);
    Ok(Op::Lanes(match (case.name, kind.bits(), kind.is_signed()) {
        ("shl", 16, _) => map2(d, [a, b], |a: u32, b: u32| u32::from(bits::shl_b16(a as u16, b))),
        ("shl", 32, _) => map2(d, [a, b], bits::shl_b32),
        ("shl", 64, _) => map2(d, [a, b], bits::shl_b64),
        ("shr", 16, false) => map2(d, [a, b], |a: u32, b: u32| u32::from(bits::shr_u16(a as u16, b))),
        ("shr", 32, false) => map2(d, [a, b], bits::shr_u32),
        ("shr", 64, false) => map2(d, [a, b], bits::shr_u64),
        ("shr", 16, true) => map2(d, [a, b], |a: u32, b: u32| u32::from(bits::shr_s16(a as u16, b))),
        ("shr", 32, true) => map2(d, [a, b], bits::shr_s32),
        ("shr", 64, true) => map2(d, [a, b], bits::shr_s64),
        _ => return Err(no_type(kind)),
    }))
}

fn funnel(case: &mut Case) -> Lowered<Op> {
    let left = case.one_of(&[("l", true), ("r", false)]);
    let mode = case.one_of(&[("wrap", Funnel::Wrap), ("clamp", Funnel::Clamp)]);
    let (Some(left), Some(mode), Type::B32) = (left, mode, case.kind()?) else {
        return Err("shf needs .l or .r, .wrap or .clamp, and .b32".to_string());
    };
    if left {
        three(case, Type::B32, |a, _, _| a, move |a, b, c| bits::shf_l(a, b, c, mode), |a, _, _| a)
    } else {
        three(case, Type::B32, |a, _, _| a, move |a, b, c| bits::shf_r(a, b, c, mode), |a, _, _| a)
    }
}

/// `d = f(a, b, c)` on words; `kind` must say so.
fn words(case: &mut Case, kind: Type, f: impl Fn(u32, u32, u32) -> u32 + Send + Sync + 'static) -> Lowered<Op> {
    if kind != Type::B32 {
        return Err(no_type(kind));
    }
    let (d, sources) = (case.target(0, kind)?, case.sources(1, kind)?);
    Ok(Op::Lanes(map3(d, sources, f)))
}

fn lop3(case: &mut Case) -> Lowered<Op> {
    let kind = case.kind()?;
    case.finish(5)?;
    let Operand::Literal(Literal::Int(table @ 0..=255)) = *case.operand(4)? else {
        return Err("the table must be a number from 0 to 255".to_string());
    };
    words(case, kind, move |a, b, c| bits::lop3(a, b, c, table as u8))
}

/// `brev`, and `clz` and `popc`, whose results have 32 bits always.
fn count(case: &mut Case, kind: Type) -> Lowered<Op> {
    case.finish(2)?;
    let result = if case.name == "brev" { kind } else { Type::B32 };
    let (d, a) = (case.target(0, result)?, case.source(1, kind)?);
    Ok(Op::Lanes(match (case.name, kind) {
        ("brev", Type::B32) => map1(d, a, u32::reverse_bits),
        ("brev", Type::B64) => map1(d, a, u64::reverse_bits),
        ("clz", Type::B32) => map1(d, a, u32::leading_zeros),
        ("clz", Type::B64) => map1(d, a, u64::leading_zeros),
        ("popc", Type::B32) => map1(d, a, u32::count_ones),
        ("popc", Type::B64) => map1(d, a, u64::count_ones),
        _ => return Err(no_type(kind)),
    }))
}

fn field(case: &mut Case, kind: Type) -> Lowered<Op> {
    let insert = case.name == "bfi";
    case.finish(if insert { 5 } else { 4 })?;
    let (d, a) = (case.target(0, kind)?, case.source(1, kind)?);
    if insert {
        let (b, position, length) = (case.source(2, kind)?, amount(case, 3)?, amount(case, 4)?);
        return Ok(Op::Lanes(match kind {
            Type::B32 => map4(d, [a, b, position, length], bits::bfi_b32),
            Type::B64 => map4(d, [a, b, position, length], bits::bfi_b64),
            _ => return Err(no_type(kind)),
        }));
    }
    let sources = [a, amount(case, 2)?, amount(case, 3)?];
    Ok(Op::Lanes(match kind {
        Type::U32 => map3(d, sources, bits::bfe_u32),
        Type::S32 => map3(d, sources, bits::bfe_s32),
        Type::U64 => map3(d, sources, bits::bfe_u64),
        Type::S64 => map3(d, sources, bits::bfe_s64),
        _ => return Err(no_type(kind)),
    }))
}

fn permute(case: &mut Case) -> Lowered<Op> {
    let kind = case.kind()?;
    let mode = case.one_of(&[
        ("f4e", Permute::Forward),
        ("b4e", Permute::Backward),
        ("rc8", Permute::Replicate8),
        ("ecl", Permute::EdgeClampLeft),
        ("ecr", Permute::EdgeClampRight),
        ("rc16", Permute::Replicate16),
    ]);
    let mode = mode.unwrap_or(Permute::Index);
    case.finish(4)?;
    words(case, kind, move |a, b, c| bits::prmt(a, b, c, mode))
}

fn find_nth(case: &mut Case, kind: Type) -> Lowered<Op> {
    case.finish(4)?;
    words(case, kind, bits::fns)
}

/// `.clamp` or `.wrap`
fn clamps(case: &mut Case) -> Lowered<bool> {
    case.one_of(&[("clamp", true), ("wrap", false)]).ok_or_else(|| "one of .clamp and .wrap is missing".to_string())
}

fn mask(case: &mut Case) -> Lowered<Op> {
    let clamp = clamps(case)?;
    case.kind_is("b32")?;
    case.finish(3)?;
    let (d, sources) = (case.target(0, Type::B32)?, case.sources(1, Type::B32)?);
    Ok(Op::Lanes(map2(d, sources, move |a, b| bits::bmsk(a, b, clamp))))
}

fn extend(case: &mut Case) -> Lowered<Op> {
    let clamp = clamps(case)?;
    let kind = case.kind()?;
    case.finish(3)?;
    if !matches!(kind, Type::U32 | Type::S32) {
        return Err(no_type(kind));
    }
    let signed = kind.is_signed();
    let (d, a, n) = (case.target(0, kind)?, case.source(1, kind)?, amount(case, 2)?);
    Ok(Op::Lanes(map2(d, [a, n], move |a, n| bits::szext(a, n, signed, clamp))))
}
