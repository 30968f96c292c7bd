//! PTX manual, "Integer Arithmetic Instructions" and "Extended-Precision Integer Arithmetic Instructions".

use super::case::{Case, Lowered};
use super::flow::Cell;
use super::instruction::Op;
use super::shapes::{no_type, one, three, two};
use super::slots::Constant;
use super::video;
use crate::exec::lanes::{carry, map1, map2, map3};
use crate::exec::registers::CARRY;
use crate::numeric::{bits, integer};
use crate::parse::types::Type;

/// Whether the type is an integer that arithmetic is defined for.
pub(crate) fn is_integer(kind: Type) -> bool {
    matches!(kind, Type::U16 | Type::U32 | Type::U64 | Type::S16 | Type::S32 | Type::S64)
}

/// Lowers an instruction of this chapter whose type is `kind`; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case, kind: Type) -> Option<Lowered<Op>> {
    let signed = kind.is_signed();
    let name = case.name;
    if matches!(kind, Type::U16x2 | Type::S16x2) {
        return video::pairs(case, kind);
    }
    Some(match name {
        "min" | "max" if kind == Type::S32 && case.take("relu") => {
            let largest = name == "max";
            two(
                case,
                kind,
                |a, _| a,
                move |a, b| {
                    let (a, b) = (a as i32, b as i32);
                    (if largest { a.max(b) } else { a.min(b) }).max(0) as u32
                },
                |a, _| a,
            )
        }
        "add" | "sub" if case.take("sat") => saturating(case, kind),
        "add" | "sub" | "addc" | "subc" if case.take("cc") => extended(case, kind, true),
        "addc" | "subc" => extended(case, kind, false),
        "add" => two(case, kind, u16::wrapping_add, u32::wrapping_add, u64::wrapping_add),
        "sub" => two(case, kind, u16::wrapping_sub, u32::wrapping_sub, u64::wrapping_sub),
        "mul" => multiply(case, kind),
        "mad" | "madc" => multiply_add(case, kind),
        "mul24" | "mad24" => multiply_24(case, kind),
        "div" if signed => two(case, kind, integer::div_s16, integer::div_s32, integer::div_s64),
        "div" => two(case, kind, integer::div_u16, integer::div_u32, integer::div_u64),
        "rem" if signed => two(case, kind, integer::rem_s16, integer::rem_s32, integer::rem_s64),
        "rem" => two(case, kind, integer::rem_u16, integer::rem_u32, integer::rem_u64),
        "sad" if signed => three(case, kind, integer::sad_s16, integer::sad_s32, integer::sad_s64),
        "sad" => three(case, kind, integer::sad_u16, integer::sad_u32, integer::sad_u64),
        "min" if signed => two(
            case,
            kind,
            |a, b| (a as i16).min(b as i16) as u16,
            |a, b| (a as i32).min(b as i32) as u32,
            |a, b| (a as i64).min(b as i64) as u64,
        ),
        "min" => two(case, kind, Ord::min, Ord::min, Ord::min),
        "max" if signed => two(
            case,
            kind,
            |a, b| (a as i16).max(b as i16) as u16,
            |a, b| (a as i32).max(b as i32) as u32,
            |a, b| (a as i64).max(b as i64) as u64,
        ),
        "max" => two(case, kind, Ord::max, Ord::max, Ord::max),
        "abs" if signed => one(
            case,
            kind,
            |a| (a as i16).wrapping_abs() as u16,
            |a| (a as i32).wrapping_abs() as u32,
            |a| (a as i64).wrapping_abs() as u64,
        ),
        "neg" if signed => one(case, kind, u16::wrapping_neg, u32::wrapping_neg, u64::wrapping_neg),
        "bfind" => find_bit(case, kind),
        "dp4a" | "dp2a" => dot_product(case, kind),
        _ => return None,
    })
}

fn saturating(case: &mut Case, kind: Type) -> Lowered<Op> {
    case.finish(3)?;
    let (d, sources) = (case.target(0, kind)?, case.sources(1, kind)?);
    match (kind, case.name) {
        (Type::S32, "add") => Ok(Op::Lanes(map2(d, sources, integer::add_sat_s32))),
        (Type::S32, _) => Ok(Op::Lanes(map2(d, sources, integer::sub_sat_s32))),
        _ => Err(no_type(kind)),
    }
}

/// `add.cc`, `addc`, `addc.cc` and the same of `sub`.
fn extended(case: &mut Case, kind: Type, write: bool) -> Lowered<Op> {
    case.finish(3)?;
    let (d, [a, b]) = (case.target(0, kind)?, case.sources(1, kind)?);
    let carried = case.name.ends_with('c');
    carry_flow(case, write, carried);
    let add = case.name.starts_with("add");
    let slots = [a, b, b];
    Ok(Op::Lanes(match (kind.bits(), add) {
        (32, true) => carry(d, slots, write, move |a, b, _, c| integer::add_carry_u32(a, b, c && carried)),
        (32, false) => carry(d, slots, write, move |a, b, _, c| integer::sub_borrow_u32(a, b, c && carried)),
        (64, true) => carry(d, slots, write, move |a, b, _, c| integer::add_carry_u64(a, b, c && carried)),
        (64, false) => carry(d, slots, write, move |a, b, _, c| integer::sub_borrow_u64(a, b, c && carried)),
        _ => return Err(no_type(kind)),
    }))
}

/// The hidden predicate is read and written, too.
fn carry_flow(case: &mut Case, write: bool, carried: bool) {
    if carried {
        case.flow.reads.push(Cell::Predicate(CARRY));
    }
    if write {
        case.flow.writes.push(Cell::Predicate(CARRY));
    }
}

/// Which part of a product an instruction gives.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Low,
    High,
    Wide,
}

fn part(case: &mut Case) -> Lowered<Part> {
    let part = case.one_of(&[("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)]);
    part.ok_or_else(|| "one of .lo, .hi and .wide is missing".to_string())
}

/// The type of twice the width.
fn doubled(kind: Type) -> Lowered<Type> {
    match kind {
        Type::U16 => Ok(Type::U32),
        Type::S16 => Ok(Type::S32),
        Type::U32 => Ok(Type::U64),
        Type::S32 => Ok(Type::S64),
        _ => Err(no_type(kind)),
    }
}

/// The full product of two 16-bit numbers.
fn wide_16(signed: bool) -> impl Fn(u32, u32) -> u32 + Copy {
    move |a, b| {
        if signed {
            i32::from(a as i16).wrapping_mul(i32::from(b as i16)) as u32
        } else {
            (a & 0xffff).wrapping_mul(b & 0xffff)
        }
    }
}

/// The full product of two 32-bit numbers.
fn wide_32(signed: bool) -> impl Fn(u32, u32) -> u64 + Copy {
    move |a, b| {
        if signed {
            i64::from(a as i32).wrapping_mul(i64::from(b as i32)) as u64
        } else {
            u64::from(a).wrapping_mul(u64::from(b))
        }
    }
}

fn multiply(case: &mut Case, kind: Type) -> Lowered<Op> {
    let signed = kind.is_signed();
    match part(case)? {
        Part::Low => two(case, kind, u16::wrapping_mul, u32::wrapping_mul, u64::wrapping_mul),
        Part::High if signed => two(case, kind, integer::mul_hi_s16, integer::mul_hi_s32, integer::mul_hi_s64),
        Part::High => two(case, kind, integer::mul_hi_u16, integer::mul_hi_u32, integer::mul_hi_u64),
        Part::Wide => {
            case.finish(3)?;
            let (d, sources) = (case.target(0, doubled(kind)?)?, case.sources(1, kind)?);
            Ok(Op::Lanes(match kind {
                Type::U16 | Type::S16 => map2(d, sources, wide_16(signed)),
                Type::U32 => map2(d, sources, wide_32(false)),
                _ => map2(d, sources, wide_32(true)),
            }))
        }
    }
}

fn multiply_add(case: &mut Case, kind: Type) -> Lowered<Op> {
    let (part, signed) = (part(case)?, kind.is_signed());
    let (write, carried) = (case.take("cc"), case.name == "madc");
    if write || carried {
        return multiply_add_extended(case, kind, part, write, carried);
    }
    if case.take("sat") {
        case.finish(4)?;
        let (d, sources) = (case.target(0, kind)?, case.sources(1, kind)?);
        return match (kind, part) {
            (Type::S32, Part::High) => Ok(Op::Lanes(map3(d, sources, integer::mad_hi_sat_s32))),
            _ => Err("mad.sat exists as mad.hi.sat.s32 only".to_string()),
        };
    }
    match part {
        Part::Low => three(
            case,
            kind,
            |a, b, c| a.wrapping_mul(b).wrapping_add(c),
            |a, b, c| a.wrapping_mul(b).wrapping_add(c),
            |a, b, c| a.wrapping_mul(b).wrapping_add(c),
        ),
        Part::High if signed => three(
            case,
            kind,
            |a, b, c| integer::mul_hi_s16(a, b).wrapping_add(c),
            |a, b, c| integer::mul_hi_s32(a, b).wrapping_add(c),
            |a, b, c| integer::mul_hi_s64(a, b).wrapping_add(c),
        ),
        Part::High => three(
            case,
            kind,
            |a, b, c| integer::mul_hi_u16(a, b).wrapping_add(c),
            |a, b, c| integer::mul_hi_u32(a, b).wrapping_add(c),
            |a, b, c| integer::mul_hi_u64(a, b).wrapping_add(c),
        ),
        Part::Wide => {
            case.finish(4)?;
            let big = doubled(kind)?;
            let (d, [a, b], c) = (case.target(0, big)?, case.sources(1, kind)?, case.source(3, big)?);
            let (narrow, wide) = (wide_16(signed), wide_32(signed));
            Ok(Op::Lanes(match kind.bits() {
                16 => map3(d, [a, b, c], move |a: u32, b: u32, c: u32| narrow(a, b).wrapping_add(c)),
                _ => map3(d, [a, b, c], move |a: u32, b: u32, c: u64| wide(a, b).wrapping_add(c)),
            }))
        }
    }
}

/// `mad.cc` and `madc`: the product's part plus c plus the carry.
fn multiply_add_extended(case: &mut Case, kind: Type, part: Part, write: bool, carried: bool) -> Lowered<Op> {
    case.finish(4)?;
    let (d, slots) = (case.target(0, kind)?, case.sources(1, kind)?);
    carry_flow(case, write, carried);
    let signed = kind.is_signed();
    match (kind.bits(), part) {
        (32, Part::Low | Part::High) => Ok(Op::Lanes(carry(d, slots, write, move |a, b, c, flag| {
            let product = wide_32(signed)(a, b);
            let half = if part == Part::Low { product as u32 } else { (product >> 32) as u32 };
            integer::add_carry_u32(half, c, flag && carried)
        }))),
        (64, Part::Low | Part::High) => Ok(Op::Lanes(carry(d, slots, write, move |a, b, c, flag| {
            let half = match (part, signed) {
                (Part::Low, _) => u64::wrapping_mul(a, b),
                (_, true) => integer::mul_hi_s64(a, b),
                (_, false) => integer::mul_hi_u64(a, b),
            };
            integer::add_carry_u64(half, c, flag && carried)
        }))),
        _ => Err(no_type(kind)),
    }
}

fn multiply_24(case: &mut Case, kind: Type) -> Lowered<Op> {
    let (part, adds) = (part(case)?, case.name == "mad24");
    let product: fn(u32, u32) -> u32 = match (kind, part) {
        (Type::U32, Part::Low) => integer::mul24_lo_u32,
        (Type::S32, Part::Low) => integer::mul24_lo_s32,
        (Type::U32, Part::High) => integer::mul24_hi_u32,
        (Type::S32, Part::High) => integer::mul24_hi_s32,
        _ => return Err(no_type(kind)),
    };
    case.finish(if adds { 4 } else { 3 })?;
    let d = case.target(0, kind)?;
    Ok(Op::Lanes(if adds {
        map3(d, case.sources(1, kind)?, move |a, b, c: u32| product(a, b).wrapping_add(c))
    } else {
        map2(d, case.sources(1, kind)?, product)
    }))
}

fn find_bit(case: &mut Case, kind: Type) -> Lowered<Op> {
    let distance = case.take("shiftamt");
    case.finish(2)?;
    let (d, a) = (case.target(0, Type::U32)?, case.source(1, kind)?);
    Ok(Op::Lanes(match kind {
        Type::U32 => map1(d, a, move |a| bits::bfind_u32(a, distance)),
        Type::S32 => map1(d, a, move |a| bits::bfind_s32(a, distance)),
        Type::U64 => map1(d, a, move |a| bits::bfind_u64(a, distance)),
        Type::S64 => map1(d, a, move |a| bits::bfind_s64(a, distance)),
        _ => return Err(no_type(kind)),
    }))
}

/// `dp4a.atype.btype`; `kind` is atype, the other one is still among the modifiers.
fn dot_product(case: &mut Case, kind: Type) -> Lowered<Op> {
    let other = case.kind()?;
    let half = case.one_of(&[("lo", false), ("hi", true)]);
    case.finish(4)?;
    if ![kind, other].iter().all(|kind| matches!(kind, Type::U32 | Type::S32)) {
        return Err(no_type(other));
    }
    let (d, sources) = (case.target(0, kind)?, case.sources(1, kind)?);
    let (a_signed, b_signed) = (kind.is_signed(), other.is_signed());
    match (case.name, half) {
        ("dp4a", None) => Ok(Op::Lanes(map3(d, sources, move |a, b, c| integer::dp4a(a, a_signed, b, b_signed, c)))),
        ("dp2a", Some(upper)) => {
            Ok(Op::Lanes(map3(d, sources, move |a, b, c| integer::dp2a(a, a_signed, b, b_signed, c, upper))))
        }
        _ => Err("dp2a needs .lo or .hi, dp4a has neither".to_string()),
    }
}

/// The slot of a count operand, which is always a `.u32`.
pub(crate) fn amount(case: &mut Case, index: usize) -> Lowered<u32> {
    match case.operand(index)? {
        // A negative literal is a large count.
        crate::parse::ast::Operand::Literal(literal) => {
            let value = literal.bits(32, false).ok_or("a count must be an integer")?;
            Ok(case.slots.constant(false, Constant::Value(value)))
        }
        _ => case.source(index, Type::U32),
    }
}
