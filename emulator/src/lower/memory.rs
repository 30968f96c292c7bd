//! PTX manual, "Data Movement" (`ld`, `st`, `prefetch`, `cp.async`) and "Parallel Synchronization" (`atom`, `red`, `membar`, `fence`).

use super::case::{Case, Lowered};
use super::control::nothing;
use super::half::format;
use super::instruction::{Atomic, Copy, Load, Op, Store, Update};
use super::integer::is_integer;
use super::shapes::no_type;
use super::slots::Constant;
use crate::Space;
use crate::exec::lanes::map1;
use crate::exec::registers::{Pred, Register};
use crate::numeric::float::{F32Mode, add_f32};
use crate::numeric::half_ops::{self, HalfMode, both2};
use crate::numeric::minmax::{Extreme, ExtremeMode};
use crate::numeric::{Rounding, double};
use crate::parse::ast::Operand;
use crate::parse::literal::Literal;
use crate::parse::types::Type;

/// Lowers an instruction of this chapter; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    let name = case.name;
    Some(match name {
        "ld" | "ldu" => load(case),
        "st" => store(case),
        "atom" | "red" => atomic(case),
        "cp" if case.take("async") => copy(case),
        "membar" | "fence" => fence(case),
        "prefetch" | "prefetchu" | "applypriority" => prefetch(case),
        "createpolicy" => create_policy(case),
        _ => return None,
    })
}

/// Cache operators, eviction priorities and the memory order of one access: they do not change what a thread reads in
/// the order in which the emulator runs threads. With `.L2::cache_hint` one more operand follows, a policy, which is
/// taken off the list: it changes nothing either.
fn hints(case: &mut Case) -> Lowered<()> {
    const HINTS: [&str; 14] =
        ["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "volatile", "relaxed", "acquire", "release", "mmio"];
    let known = |word: &str| {
        HINTS.contains(&word) || word.starts_with("L1::") || word.starts_with("L2::") && word != "L2::cache_hint"
    };
    while case.choose(|word| known(word).then_some(())).is_some() {}
    scope(case);
    if case.take("L2::cache_hint") {
        let last = case.operands.len().checked_sub(1).ok_or("the cache policy is missing")?;
        case.source(last, Type::B64)?;
        case.operands = &case.operands[..last];
    }
    Ok(())
}

/// A block outside of any cluster is a cluster of its own.
fn scope(case: &mut Case) {
    while case.choose(|word| matches!(word, "cta" | "cluster" | "gpu" | "sys").then_some(())).is_some() {}
}

/// The elements of a vector operand, or the operand itself.
fn elements(operand: &Operand, count: usize) -> Lowered<&[Operand]> {
    let parts = match operand {
        Operand::Vector(parts) => parts.as_slice(),
        single => std::slice::from_ref(single),
    };
    if parts.len() != count {
        return Err(format!("{} elements where {count} are expected", parts.len()));
    }
    Ok(parts)
}

/// The modifiers of a load or a store: the space, how many elements, and of which type.
fn access(case: &mut Case) -> Lowered<(Space, usize, Type)> {
    let space = case.choose(Space::named).unwrap_or(Space::Generic);
    hints(case)?;
    let count = case.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
    let kind = case.kind()?;
    if kind == Type::Pred || kind.bytes() as usize * count > 16 {
        return Err(no_type(kind));
    }
    case.finish(2)?;
    Ok((space, count, kind))
}

fn load(case: &mut Case) -> Lowered<Op> {
    const STRONG: [&str; 5] = ["volatile", "relaxed", "acquire", "mmio", "cv"];
    let strong = case.modifiers().iter().any(|word| STRONG.contains(word));
    let (space, count, kind) = access(case)?;
    let mut parts = vec![];
    for operand in elements(case.operand(0)?, count)? {
        parts.push(match operand {
            Operand::Sink => None,
            other => Some(wide_enough(case.register(other, kind.bits())?, kind)?),
        });
    }
    let space = case.home(1, space)?;
    let address = case.address(1, space)?;
    let polls = strong && matches!(space, Space::Global | Space::Generic);
    Ok(Op::Load(Load { space, address, bytes: kind.bytes(), signed: kind.is_signed(), parts, polls }))
}

fn wide_enough(register: Register, kind: Type) -> Lowered<Register> {
    if register.bits < kind.bits() {
        return Err("a register is narrower than the type".to_string());
    }
    Ok(register)
}

fn store(case: &mut Case) -> Lowered<Op> {
    let (space, count, kind) = access(case)?;
    let space = case.home(0, space)?;
    if matches!(space, Space::Const | Space::Param) {
        return Err(format!("{space} memory cannot be written"));
    }
    let address = case.address(0, space)?;
    let mut parts = vec![];
    for operand in elements(case.operand(1)?, count)? {
        parts.push(wide_enough(case.value(operand, kind)?, kind)?);
    }
    Ok(Op::Store(Store { space, address, bytes: kind.bytes(), parts }))
}

/// `atom{.sem}{.scope}{.space}.op{.vec}.type d, [a], b{, c}` and `red`, which has no destination.
fn atomic(case: &mut Case) -> Lowered<Op> {
    let fetches = case.name == "atom";
    let space = case.choose(Space::named).unwrap_or(Space::Generic);
    if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
        return Err(format!("there are no atomics on {space} memory"));
    }
    while case.choose(|word| matches!(word, "relaxed" | "acquire" | "release" | "acq_rel").then_some(())).is_some() {}
    hints(case)?;
    const NAMES: [&str; 10] = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
    let name = case.choose(|word| NAMES.iter().find(|name| **name == word)).ok_or("the operation is missing")?;
    let no_flush = case.take("noftz");
    let count = case.one_of(&[("v2", 2), ("v4", 4), ("v8", 8)]);
    let kind = case.kind()?;
    if format(kind).is_some() && !no_flush {
        return Err("the modifier .noftz is missing".to_string());
    }
    let vector = count.unwrap_or(1);
    let is_float = format(kind).is_some() || kind == Type::F32;
    if count.is_some() && (!is_float || space == Space::Shared || kind.bytes() as usize * vector > 16) {
        return Err("vectors are for floating-point numbers in global memory, 16 bytes at most".to_string());
    }
    let first = usize::from(fetches);
    let swap = *name == "cas";
    if swap && !fetches {
        return Err("red has no .cas".to_string());
    }
    case.finish(first + if swap { 3 } else { 2 })?;
    let update = update(name, kind, count.is_some())?;
    let mut old = vec![None; vector];
    if fetches && *case.operand(0)? != Operand::Sink {
        for (slot, operand) in old.iter_mut().zip(elements(case.operand(0)?, vector)?) {
            *slot = Some(as_wide_as(case.register(operand, kind.bits())?, kind)?);
        }
    }
    let address = case.address(first, space)?;
    let mut parts = vec![];
    for operand in elements(case.operand(first + 1)?, vector)? {
        let b = as_wide_as(case.value(operand, kind)?, kind)?;
        parts.push([b, b]);
    }
    if swap {
        parts[0][1] = Register { slot: case.source(first + 2, kind)?, bits: kind.bits() };
    }
    Ok(Op::Atomic(Atomic { space, address, bytes: kind.bytes(), update, parts, old, reads: true, answer: None }))
}

fn as_wide_as(register: Register, kind: Type) -> Lowered<Register> {
    if register.bits == kind.bits() { Ok(register) } else { Err("a register has the wrong width".to_string()) }
}

/// The formula of an atomic operation.
fn update(name: &str, kind: Type, vector: bool) -> Lowered<Update> {
    let bits = kind.bits();
    if let (Some((half, packed)), "min" | "max", true) = (format(kind), name, vector) {
        let which = if name == "min" { Extreme::Min } else { Extreme::Max };
        let f = move |a, b| half_ops::extreme(half, which, a, b, ExtremeMode::default());
        return Ok(match packed {
            true => Box::new(move |old, b, _| u64::from(both2(old as u32, b as u32, f))),
            false => Box::new(move |old, b, _| u64::from(f(old as u16, b as u16))),
        });
    }
    let small = bits == 32;
    Ok(match (name, kind) {
        ("exch", _) if bits >= 32 => Box::new(|_, b, _| b),
        ("cas", _) if bits >= 16 => Box::new(|old, b, c| if old == b { c } else { old }),
        ("and", Type::B32 | Type::B64) => Box::new(|old, b, _| old & b),
        ("or", Type::B32 | Type::B64) => Box::new(|old, b, _| old | b),
        ("xor", Type::B32 | Type::B64) => Box::new(|old, b, _| old ^ b),
        ("inc", Type::U32) => Box::new(|old, b, _| if old >= b { 0 } else { old + 1 }),
        ("dec", Type::U32) => Box::new(|old, b, _| if old == 0 || old > b { b } else { old - 1 }),
        ("add", Type::F32) => Box::new(|old, b, _| u64::from(add_f32(old as u32, b as u32, F32Mode::RN))),
        ("add", Type::F64) => Box::new(|old, b, _| double::add_f64(old, b, Rounding::Nearest)),
        ("add", _) if is_integer(kind) && small => Box::new(|old, b, _| u64::from((old as u32).wrapping_add(b as u32))),
        ("add", _) if is_integer(kind) && bits == 64 => Box::new(|old, b, _| old.wrapping_add(b)),
        ("min", Type::S32) => Box::new(|old, b, _| u64::from((old as i32).min(b as i32) as u32)),
        ("max", Type::S32) => Box::new(|old, b, _| u64::from((old as i32).max(b as i32) as u32)),
        ("min", Type::S64) => Box::new(|old, b, _| (old as i64).min(b as i64) as u64),
        ("max", Type::S64) => Box::new(|old, b, _| (old as i64).max(b as i64) as u64),
        ("min", Type::U32 | Type::U64) => Box::new(|old, b, _| old.min(b)),
        ("max", Type::U32 | Type::U64) => Box::new(|old, b, _| old.max(b)),
        ("add", _) => match format(kind) {
            Some((half, true)) => Box::new(move |old, b, _| {
                let mode = HalfMode::default();
                u64::from(both2(old as u32, b as u32, |a, b| half_ops::add(half, a, b, mode)))
            }),
            Some((half, false)) => {
                Box::new(move |old, b, _| u64::from(half_ops::add(half, old as u16, b as u16, HalfMode::default())))
            }
            None => return Err(no_type(kind)),
        },
        _ => return Err(no_type(kind)),
    })
}

/// `cp.async.{ca,cg}.shared.global [dst], [src], size{, src-size or predicate}`, and the instructions that wait.
fn copy(case: &mut Case) -> Lowered<Op> {
    if case.take("commit_group") {
        case.finish(0)?;
        return Ok(Op::Commit);
    }
    if case.take("wait_all") {
        case.finish(0)?;
        return Ok(Op::WaitGroups(None));
    }
    if case.take("mbarrier") {
        return super::mbarrier::copies_arrive(case);
    }
    if case.take("wait_group") {
        case.finish(1)?;
        let Operand::Literal(Literal::Int(count)) = case.operand(0)? else {
            return Err("the number of groups must be a constant".to_string());
        };
        let count = u32::try_from(*count).map_err(|_| "the number of groups is negative")?;
        return Ok(Op::WaitGroups(Some(count)));
    }
    let through_l2 = match (case.take("ca"), case.take("cg")) {
        (true, false) => false,
        (false, true) => true,
        _ => return Err("one of .ca and .cg is missing".to_string()),
    };
    if case.choose(Space::named) != Some(Space::Shared) || case.choose(Space::named) != Some(Space::Global) {
        return Err("cp.async copies from .global to .shared".to_string());
    }
    hints(case)?;
    let count = case.operands.len();
    case.finish(count.clamp(3, 4))?;
    let (target, source) = (case.address(0, Space::Shared)?, case.address(1, Space::Global)?);
    let Operand::Literal(Literal::Int(bytes)) = *case.operand(2)? else {
        return Err("the size must be a constant".to_string());
    };
    if !(bytes == 16 || !through_l2 && matches!(bytes, 4 | 8)) {
        return Err(format!("a copy of {bytes} bytes; .ca copies 4, 8 or 16, .cg 16"));
    }
    let (mut source_bytes, mut ignore) = (None, None::<Pred>);
    if count == 4 {
        match case.condition(3) {
            Ok(pred) => ignore = Some(pred),
            Err(_) => source_bytes = Some(case.source(3, Type::U32)?),
        }
    }
    Ok(Op::Copy(Copy { target, source, bytes: bytes as u32, source_bytes, ignore }))
}

/// Memory is sequentially consistent here, so a fence changes nothing; observers are told of it.
fn fence(case: &mut Case) -> Lowered<Op> {
    const WORDS: [&str; 9] = ["sc", "acq_rel", "acquire", "release", "cta", "cluster", "gl", "gpu", "sys"];
    while case.choose(|word| WORDS.contains(&word).then_some(())).is_some() {}
    case.finish(0)?;
    Ok(Op::Fence)
}

/// Prefetches and priorities of cache lines have no effect that a thread could see.
fn prefetch(case: &mut Case) -> Lowered<Op> {
    let space = case.choose(Space::named).unwrap_or(Space::Generic);
    let known = |word: &str| word == "L1" || word.starts_with("L2");
    while case.choose(|word| known(word).then_some(())).is_some() {}
    let count = if case.name == "applypriority" { 2 } else { 1 };
    case.finish(count)?;
    case.address(0, space)?;
    Ok(nothing())
}

/// `createpolicy.fractional...` and `createpolicy.range...`: a policy is an opaque number that changes no value.
fn create_policy(case: &mut Case) -> Lowered<Op> {
    let ranged = case.take("range");
    if !ranged && !case.take("fractional") && !case.take("cvt") {
        return Err("one of .fractional, .range and .cvt is missing".to_string());
    }
    case.choose(Space::named);
    while case.choose(|word| (word.starts_with("L2::") || word == "L2").then_some(())).is_some() {}
    case.kind_is("b64")?;
    let count = case.operands.len();
    case.finish(count.clamp(1, 4))?;
    let d = case.target(0, Type::B64)?;
    Ok(Op::Lanes(map1(d, case.slots.constant(true, Constant::Value(0)), |zero: u64| zero)))
}
