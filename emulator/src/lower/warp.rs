//! Warp-wide instructions: `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`.

use super::case::{Case, Lowered};
use super::instruction::{Collective, Members, Op, Shuffle, Vote};
use super::shapes::no_type;
use crate::exec::registers::{Register, Registers};
use crate::parse::ast::Operand;
use crate::parse::types::Type;

/// Lowers an instruction of this kind; `None` if it is none.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    Some(match case.name {
        "shfl" => shuffle(case),
        "vote" => vote(case),
        "match" => matching(case),
        "redux" => reduce(case),
        "activemask" => active(case),
        "elect" => elect(case),
        _ => return None,
    })
}

pub(super) fn sync(case: &mut Case) -> Lowered<()> {
    if case.take("sync") {
        return Ok(());
    }
    Err("only the .sync form exists since sm_70".to_string())
}

/// The member mask, operand `index`.
pub(crate) fn members(case: &mut Case, index: usize) -> Lowered<Members> {
    Ok(Members::Mask(case.source(index, Type::B32)?))
}

/// `shfl.sync.mode.b32 d{|p}, a, b, c, membermask`
fn shuffle(case: &mut Case) -> Lowered<Op> {
    sync(case)?;
    let mode = case.one_of(&[
        ("up", Shuffle::Up),
        ("down", Shuffle::Down),
        ("bfly", Shuffle::Butterfly),
        ("idx", Shuffle::Index),
    ]);
    let mode = mode.ok_or("the mode is missing")?;
    let kind = b32(case)?;
    case.finish(5)?;
    let (d, valid) = match case.operand(0)? {
        Operand::Pair(d, p) => {
            let register = case.register(&named(d), 32)?;
            (register, Some(case.predicate(&named(p))?))
        }
        single => (case.register(single, 32)?, None),
    };
    let d = exactly(d, kind)?;
    let (a, lane, clamp) = (case.source(1, kind)?, case.source(2, kind)?, case.source(3, kind)?);
    Ok(Op::Warp(members(case, 4)?, Collective::Shuffle { mode, d, valid, a, lane, clamp }))
}

/// One side of `d|p`.
pub(super) fn named(name: &str) -> Operand {
    if name == "_" { Operand::Sink } else { Operand::Name(name.to_string()) }
}

pub(super) fn exactly(register: Register, kind: Type) -> Lowered<u32> {
    if register.bits == kind.bits() { Ok(register.slot) } else { Err("a register has the wrong width".to_string()) }
}

fn b32(case: &mut Case) -> Lowered<Type> {
    let kind = case.kind()?;
    if kind == Type::B32 { Ok(kind) } else { Err(no_type(kind)) }
}

/// `vote.sync.mode.pred d, p, membermask` and `vote.sync.ballot.b32`
fn vote(case: &mut Case) -> Lowered<Op> {
    sync(case)?;
    let mode = case.one_of(&[("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uniform), ("ballot", Vote::Ballot)]);
    let mode = mode.ok_or("the mode is missing")?;
    let kind = case.kind()?;
    case.finish(3)?;
    let d = match (mode, kind) {
        (Vote::Ballot, Type::B32) => case.target(0, kind)?,
        (Vote::All | Vote::Any | Vote::Uniform, Type::Pred) => case.predicate(case.operand(0)?)?,
        _ => return Err(no_type(kind)),
    };
    let source = case.condition(1)?;
    Ok(Op::Warp(members(case, 2)?, Collective::Vote { mode, d, source }))
}

/// `match.any.sync.type d, a, membermask` and `match.all.sync.type d{|p}, a, membermask`
fn matching(case: &mut Case) -> Lowered<Op> {
    let all = match (case.take("all"), case.take("any")) {
        (true, false) => true,
        (false, true) => false,
        _ => return Err("one of .any and .all is missing".to_string()),
    };
    sync(case)?;
    let kind = case.kind()?;
    case.finish(3)?;
    if !matches!(kind, Type::B32 | Type::B64) {
        return Err(no_type(kind));
    }
    let a = Register { slot: case.source(1, kind)?, bits: kind.bits() };
    let collective = match case.operand(0)? {
        Operand::Pair(d, p) if all => {
            let d = exactly(case.register(&named(d), 32)?, Type::B32)?;
            Collective::MatchAll { d, same: Some(case.predicate(&named(p))?), a }
        }
        _ if all => Collective::MatchAll { d: case.target(0, Type::B32)?, same: None, a },
        _ => Collective::MatchAny { d: case.target(0, Type::B32)?, a },
    };
    Ok(Op::Warp(members(case, 2)?, collective))
}

/// `redux.sync.op.type d, a, membermask`
fn reduce(case: &mut Case) -> Lowered<Op> {
    sync(case)?;
    const NAMES: [&str; 6] = ["add", "min", "max", "and", "or", "xor"];
    let name = case.choose(|word| NAMES.iter().find(|name| **name == word)).ok_or("the operation is missing")?;
    let kind = case.kind()?;
    case.finish(3)?;
    let combine: fn(u32, u32) -> u32 = match (*name, kind) {
        ("add", Type::U32 | Type::S32) => u32::wrapping_add,
        ("min", Type::U32) => Ord::min,
        ("max", Type::U32) => Ord::max,
        ("min", Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
        ("max", Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
        ("and", Type::B32) => |a, b| a & b,
        ("or", Type::B32) => |a, b| a | b,
        ("xor", Type::B32) => |a, b| a ^ b,
        _ => return Err(no_type(kind)),
    };
    let (d, a) = (case.target(0, kind)?, case.source(1, kind)?);
    Ok(Op::Warp(members(case, 2)?, Collective::Reduce { d, a, combine }))
}

/// `activemask.b32 d`: the lanes that happen to run together now.
fn active(case: &mut Case) -> Lowered<Op> {
    let kind = b32(case)?;
    case.finish(1)?;
    let d = case.target(0, kind)?;
    Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| registers.put(d, &[mask; 32], mask))))
}

/// `elect.sync d|p, membermask`
fn elect(case: &mut Case) -> Lowered<Op> {
    sync(case)?;
    case.finish(2)?;
    let Operand::Pair(d, p) = case.operand(0)? else { return Err("the destination must be d|p".to_string()) };
    let d = exactly(case.register(&named(d), 32)?, Type::B32)?;
    let chosen = case.predicate(&named(p))?;
    Ok(Op::Warp(members(case, 1)?, Collective::Elect { d, chosen }))
}
