//! PTX manual, "Data Movement and Conversion Instructions": `mov`, `cvta`, `isspacep`.

use super::case::{Case, Lowered};
use super::instruction::Op;
use super::shapes::no_type;
use crate::Space;
use crate::exec::lanes::{Lanes, bits_where, map1, predicate};
use crate::exec::registers::{LANES, Lane, Registers, get, lanes, set};
use crate::memory::address::{self, LOCAL, PARAM, SHARED};
use crate::parse::ast::Operand;
use crate::parse::literal::Literal;
use crate::parse::types::Type;

/// Lowers an instruction of this chapter; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    Some(match case.name {
        "mov" => case.kind().and_then(|kind| mov(case, kind)),
        "cvta" => cvta(case),
        "isspacep" => isspacep(case),
        _ => return None,
    })
}

fn mov(case: &mut Case, kind: Type) -> Lowered<Op> {
    case.finish(2)?;
    match (case.operand(0)?, case.operand(1)?) {
        (Operand::Vector(parts), source) => unpack(case, kind, parts, source),
        (_, Operand::Vector(parts)) => pack(case, kind, parts),
        // `mov.pred %p, 0`: compilers write a condition down so.
        (_, Operand::Literal(Literal::Int(value))) if kind == Type::Pred => {
            let (d, bits) = (case.predicate(case.operand(0)?)?, if *value == 0 { 0 } else { u32::MAX });
            Ok(Op::Lanes(predicate(d, move |_| bits)))
        }
        _ if kind == Type::Pred => {
            let (d, a) = (case.predicate(case.operand(0)?)?, case.condition(1)?);
            Ok(Op::Lanes(predicate(d, move |registers| registers.test(a))))
        }
        (_, Operand::Name(name)) if name.starts_with("%clock") || name == "%globaltimer" => clock(case, kind, name),
        _ => {
            let (d, a) = (case.target(0, kind)?, case.source(1, kind)?);
            Ok(Op::Lanes(if kind.bits() > 32 { map1(d, a, |a: u64| a) } else { map1(d, a, |a: u32| a) }))
        }
    }
}

/// `%clock` counts the instructions of the warp; it only ever grows.
fn clock(case: &mut Case, kind: Type, name: &str) -> Lowered<Op> {
    let d = case.target(0, kind)?;
    Ok(Op::Lanes(match (name, kind.bits()) {
        ("%clock", 32) => at_step(d, |steps| steps as u32),
        ("%clock_hi", 32) => at_step(d, |steps| (steps >> 32) as u32),
        ("%clock64" | "%globaltimer", 64) => at_step(d, |steps| steps),
        _ => return Err(format!("{name} with this type is not supported")),
    }))
}

/// `d = f(instructions so far)`
fn at_step<T: Lane>(d: u32, f: fn(u64) -> T) -> Lanes {
    Box::new(move |registers, mask| registers.put(d, &[f(registers.steps); LANES], mask))
}

/// The type of one of `count` parts.
fn part_type(kind: Type, count: usize) -> Lowered<Type> {
    match (kind.bits(), count) {
        (16, 2) => Ok(Type::B8),
        (32, 2) | (64, 4) => Ok(Type::B16),
        (32, 4) => Ok(Type::B8),
        (64, 2) => Ok(Type::B32),
        _ => Err(format!("a vector of {count} parts of a .{} value", format!("{kind:?}").to_lowercase())),
    }
}

/// `mov.b32 {a, b}, c`
fn unpack(case: &mut Case, kind: Type, parts: &[Operand], source: &Operand) -> Lowered<Op> {
    let part = part_type(kind, parts.len())?;
    let mut targets = vec![];
    for operand in parts {
        targets.push(case.register(operand, part.bits())?);
    }
    let a = case.value(source, kind)?;
    if a.bits != kind.bits() || targets.iter().any(|target| target.bits != part.bits()) {
        return Err("the widths of the registers do not fit".to_string());
    }
    Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| {
        for lane in lanes(mask) {
            let value = get(registers, a, lane);
            for (index, target) in targets.iter().enumerate() {
                set(registers, *target, lane, value >> (index as u32 * target.bits));
            }
        }
    })))
}

/// `mov.b32 c, {a, b}`
fn pack(case: &mut Case, kind: Type, parts: &[Operand]) -> Lowered<Op> {
    let part = part_type(kind, parts.len())?;
    let mut sources = vec![];
    for operand in parts {
        sources.push(case.value(operand, part)?);
    }
    let d = case.register(case.operand(0)?, kind.bits())?;
    if d.bits != kind.bits() || sources.iter().any(|source| source.bits != part.bits()) {
        return Err("the widths of the registers do not fit".to_string());
    }
    Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| {
        for lane in lanes(mask) {
            let mut value = 0;
            for (index, source) in sources.iter().enumerate() {
                value |= get(registers, *source, lane) << (index as u32 * part.bits());
            }
            set(registers, d, lane, value);
        }
    })))
}

/// `cvta{.to}.space.size`: between the addresses of a space and generic ones.
fn cvta(case: &mut Case) -> Lowered<Op> {
    let to = case.take("to");
    let space = case.choose(Space::named).ok_or("the state space is missing")?;
    let kind = case.kind()?;
    case.finish(2)?;
    if kind != Type::U64 {
        return Err(no_type(kind));
    }
    let window = match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        Space::Global | Space::Const => 0,
        _ => return Err(format!("cvta of {space} memory is not supported")),
    };
    let (d, a) = (case.target(0, kind)?, case.source(1, kind)?);
    Ok(Op::Lanes(if to {
        map1(d, a, move |a: u64| a.wrapping_sub(window))
    } else {
        map1(d, a, move |a: u64| a.wrapping_add(window))
    }))
}

/// `isspacep.space p, a`
fn isspacep(case: &mut Case) -> Lowered<Op> {
    let space = case.choose(Space::named).ok_or("the state space is missing")?;
    case.finish(2)?;
    if !matches!(space, Space::Shared | Space::Local | Space::Global | Space::Param) {
        return Err(format!("isspacep of {space} memory is not supported"));
    }
    let (d, a) = (case.predicate(case.operand(0)?)?, case.source(1, Type::U64)?);
    let inside = move |a: u64| address::generic(a).0 == space;
    Ok(Op::Lanes(predicate(d, move |registers| bits_where(registers.get(a), inside))))
}
