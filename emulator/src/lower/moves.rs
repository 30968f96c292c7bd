//! PTX manual, "Data Movement and Conversion Instructions": `mov`, `cvta`, `isspacep`.

use super::case::{Case, Lowered};
use super::instruction::{Op, Register};
use super::shapes::no_type;
use crate::Space;
use crate::exec::lanes::{Lanes, map1};
use crate::exec::registers::{Registers, lanes};
use crate::memory::address::{self, LOCAL, SHARED};
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
            Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| registers.set_predicate(d, bits, mask))))
        }
        _ if kind == Type::Pred => {
            let (d, a) = (case.predicate(case.operand(0)?)?, case.condition(1)?);
            Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| {
                let bits = registers.test(a);
                registers.set_predicate(d, bits, mask);
            })))
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
    let run: Lanes = match (name, kind.bits()) {
        ("%clock", 32) => Box::new(move |registers: &mut Registers, mask| {
            let now = [registers.steps as u32; 32];
            registers.put(d, &now, mask);
        }),
        ("%clock_hi", 32) => Box::new(move |registers: &mut Registers, mask| {
            let now = [(registers.steps >> 32) as u32; 32];
            registers.put(d, &now, mask);
        }),
        ("%clock64" | "%globaltimer", 64) => Box::new(move |registers: &mut Registers, mask| {
            let now = [registers.steps; 32];
            registers.put(d, &now, mask);
        }),
        _ => return Err(format!("{name} with this type is not supported")),
    };
    Ok(Op::Lanes(run))
}

/// The value of one lane of a register, whichever file it is in.
fn read(registers: &Registers, register: Register, lane: usize) -> u64 {
    if register.bits > 32 {
        registers.wide[register.slot as usize][lane]
    } else {
        u64::from(registers.narrow[register.slot as usize][lane])
    }
}

fn write(registers: &mut Registers, register: Register, lane: usize, value: u64) {
    if register.bits > 32 {
        registers.wide[register.slot as usize][lane] = value;
    } else {
        let ones = if register.bits == 32 { u32::MAX } else { (1 << register.bits) - 1 };
        registers.narrow[register.slot as usize][lane] = value as u32 & ones;
    }
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
            let value = read(registers, a, lane);
            for (index, target) in targets.iter().enumerate() {
                write(registers, *target, lane, value >> (index as u32 * target.bits));
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
                value |= read(registers, *source, lane) << (index as u32 * part.bits());
            }
            write(registers, d, lane, value);
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
    if !matches!(space, Space::Shared | Space::Local | Space::Global) {
        return Err(format!("isspacep of {space} memory is not supported"));
    }
    let (d, a) = (case.predicate(case.operand(0)?)?, case.source(1, Type::U64)?);
    Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| {
        let values = registers.get::<u64>(a);
        let bits =
            lanes(mask).fold(0, |bits, lane| bits | u32::from(address::generic(values[lane]).0 == space) << lane);
        registers.set_predicate(d, bits, mask);
    })))
}
