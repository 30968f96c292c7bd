//! PTX manual, "Parallel Synchronization: mbarrier", as far as it came with sm_80: barriers in shared memory that count
//! threads, and threads' asynchronous copies. Transactions, which came with sm_90, are not counted: such instructions are
//! refused.
//!
//! What the 64 bits hold is nobody's business but these instructions'. Here it is the number of the phase, how many
//! arrivals a phase needs, and how many are still missing. An arrival is an atomic operation, and waiting is reading.

use super::case::{Case, Lowered};
use super::instruction::{Answer, Atomic, Op, Update};
use super::slots::Constant;
use crate::Space;
use crate::exec::lanes::map1;
use crate::exec::registers::Register;
use crate::parse::ast::Operand;
use crate::parse::types::Type;

/// The width of a count (PTX manual, "Contents of the mbarrier object").
const COUNT: u32 = 20;
const ONES: u64 = (1 << COUNT) - 1;

fn object(phase: u64, expected: u64, pending: u64) -> u64 {
    phase << (2 * COUNT) | (expected & ONES) << COUNT | pending & ONES
}

fn phase(object: u64) -> u64 {
    object >> (2 * COUNT)
}

/// One more arrival than before is missing in this phase, which the copies of a thread will make.
pub(crate) fn expect_one_more(old: u64) -> u64 {
    object(phase(old), old >> COUNT & ONES, (old & ONES) + 1)
}

/// `count` threads arrive; `drop` of them do not take part in later phases.
pub(crate) fn arrive(old: u64, count: u64, drop: bool) -> u64 {
    let (expected, pending) = (old >> COUNT & ONES, old & ONES);
    let expected = if drop { expected.wrapping_sub(count) } else { expected };
    let left = pending.wrapping_sub(count) & ONES;
    if left == 0 { object(phase(old) + 1, expected, expected) } else { object(phase(old), expected, left) }
}

/// `cp.async.mbarrier.arrive{.noinc}{.shared}.b64 [addr]`
pub(super) fn copies_arrive(case: &mut Case) -> Lowered<Op> {
    case.kind_is("arrive")?;
    let counted = !case.take("noinc");
    let space = case.choose(Space::named).unwrap_or(Space::Generic);
    case.kind_is("b64")?;
    case.finish(1)?;
    if !matches!(space, Space::Shared | Space::Generic) {
        return Err(format!("there are no such barriers in {space} memory"));
    }
    Ok(Op::CopyArrive { address: case.address(0, space)?, space, counted })
}

/// Lowers an instruction of this kind; `None` if it is none.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    if case.name != "mbarrier" {
        return None;
    }
    const NAMES: [&str; 7] = ["init", "inval", "arrive", "arrive_drop", "test_wait", "try_wait", "pending_count"];
    let name = case.choose(|word| NAMES.iter().find(|name| **name == word));
    Some(name.ok_or_else(|| "the action is missing".to_string()).and_then(|name| action(case, name)))
}

fn action(case: &mut Case, name: &str) -> Lowered<Op> {
    while case
        .choose(|word| matches!(word, "release" | "acquire" | "relaxed" | "cta" | "noComplete").then_some(()))
        .is_some()
    {}
    let parity = case.take("parity");
    let space = case.choose(Space::named).unwrap_or(Space::Generic);
    case.kind_is("b64")?;
    if name == "pending_count" {
        case.finish(2)?;
        let (d, state) = (case.target(0, Type::B32)?, case.source(1, Type::B64)?);
        return Ok(Op::Lanes(map1(d, state, |state: u64| (state & ONES) as u32)));
    }
    if !matches!(space, Space::Shared | Space::Generic) {
        return Err(format!("there are no such barriers in {space} memory"));
    }
    let waits = matches!(name, "test_wait" | "try_wait");
    if parity && !waits {
        return Err("the modifier .parity is not supported here".to_string());
    }
    let one = |case: &mut Case| Register { slot: case.slots.constant(false, Constant::Value(1)), bits: 32 };
    let count = case.operands.len();
    let (mut old, mut answer) = (None, None);
    let (at, operand): (usize, Register) = match name {
        "init" => {
            case.finish(2)?;
            (0, Register { slot: case.source(1, Type::U32)?, bits: 32 })
        }
        "inval" => {
            case.finish(1)?;
            (0, one(case))
        }
        "arrive" | "arrive_drop" => {
            case.finish(count.clamp(2, 3))?;
            if *case.operand(0)? != Operand::Sink {
                old = Some(Register { slot: case.target(0, Type::B64)?, bits: 64 });
            }
            let operand = if count == 3 { Register { slot: case.source(2, Type::U32)?, bits: 32 } } else { one(case) };
            (1, operand)
        }
        // A hint for how long to wait changes nothing: waiting may end at any time.
        _ => {
            case.finish(if name == "try_wait" { count.clamp(3, 4) } else { 3 })?;
            if count == 4 {
                case.source(3, Type::U32)?;
            }
            let p = case.predicate(case.operand(0)?)?;
            let kind = if parity { Type::B32 } else { Type::B64 };
            let holds: fn(u64, u64) -> bool = if parity {
                |now, parity| phase(now) & 1 != parity & 1
            } else {
                |now, state| phase(now) != phase(state)
            };
            answer = Some(Answer { p, holds });
            (1, Register { slot: case.source(2, kind)?, bits: kind.bits() })
        }
    };
    let address = case.address(at, space)?;
    let update: Update = match name {
        "init" => Box::new(|_, count, _| object(0, count, count)),
        "inval" => Box::new(|_, _, _| 0),
        "arrive" => Box::new(|old, count, _| arrive(old, count, false)),
        "arrive_drop" => Box::new(|old, count, _| arrive(old, count, true)),
        _ => Box::new(|old, _, _| old),
    };
    let reads = !matches!(name, "init");
    Ok(Op::Atomic(Atomic {
        space,
        address,
        bytes: 8,
        update,
        parts: vec![[operand; 2]],
        old: vec![old],
        reads,
        answer,
    }))
}
