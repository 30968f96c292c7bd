//! PTX manual, "Control Flow Instructions", "Parallel Synchronization" (`bar`, `barrier`) and "Miscellaneous".

use super::case::{Case, Lowered};
use super::instruction::{Action, Barrier, Collective, Op};
use super::slots::Name;
use super::warp::members;
use crate::parse::ast::Operand;
use crate::parse::literal::Literal;
use crate::parse::types::Type;

/// How many named barriers a block has.
pub(crate) const BARRIERS: usize = 16;

/// Lowers an instruction of this kind; `None` if it is none.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    Some(match case.name {
        "bra" => branch(case),
        "brx" => branch_index(case),
        // A kernel is nobody's callee: returning from it ends the thread.
        "ret" | "exit" => {
            case.take("uni");
            case.finish(0).map(|()| Op::Exit)
        }
        "trap" => case.finish(0).map(|()| Op::Trap),
        "bar" | "barrier" => barrier(case),
        // Time does not pass here, so nobody sleeps; a thread that waits for another is overtaken anyway.
        "nanosleep" => nanosleep(case),
        // The launch that depends on this one begins when this one has ended, which is allowed and the latest moment.
        "griddepcontrol" => {
            let known = case.take("launch_dependents") || case.take("wait");
            case.finish(0).and_then(|()| if known { Ok(nothing()) } else { Err("the action is missing".to_string()) })
        }
        "pmevent" => {
            case.modifiers().is_empty().then(nothing).ok_or_else(|| "pmevent has no modifiers here".to_string())
        }
        // Calls of functions with a body never come here.
        "call" => super::system::lower(case)
            .unwrap_or_else(|| Err("only calls of functions whose body is in the module are supported".to_string())),
        _ => return None,
    })
}

fn branch(case: &mut Case) -> Lowered<Op> {
    case.take("uni");
    case.finish(1)?;
    let Operand::Name(label) = case.operand(0)? else {
        return Err("the target of a branch must be a label".to_string());
    };
    match case.slots.find(label) {
        Some(Name::Label(target)) => Ok(Op::Branch(target)),
        _ => Err(format!("there is no label {label}")),
    }
}

fn nanosleep(case: &mut Case) -> Lowered<Op> {
    if case.kind()? != Type::U32 {
        return Err("nanosleep takes .u32".to_string());
    }
    case.finish(1)?;
    case.source(0, Type::U32)?;
    Ok(nothing())
}

/// An instruction that has no effect which a thread could see.
pub(super) fn nothing() -> Op {
    Op::Lanes(Box::new(|_, _| {}))
}

/// `brx.idx{.uni} index, list`
fn branch_index(case: &mut Case) -> Lowered<Op> {
    case.kind_is("idx")?;
    case.take("uni");
    case.finish(2)?;
    let index = case.source(0, Type::U32)?;
    let Operand::Name(list) = case.operand(1)? else {
        return Err("the second operand must be the label of a .branchtargets".to_string());
    };
    let Some(Name::Targets(labels)) = case.slots.find(list) else {
        return Err(format!("there is no .branchtargets {list}"));
    };
    let targets: Option<Vec<usize>> = labels
        .iter()
        .map(|label| match case.slots.find(label) {
            Some(Name::Label(target)) => Some(target),
            _ => None,
        })
        .collect();
    targets
        .map(|targets| Op::BranchIndex(index, targets))
        .ok_or_else(|| format!("{list} names a label that is not there"))
}

/// `bar{.cta}.sync a{, b}`, `.arrive a, b`, `.red.op d, a{, b}, p`, and `bar.warp.sync mask`
fn barrier(case: &mut Case) -> Lowered<Op> {
    if case.take("warp") {
        case.kind_is("sync")?;
        case.finish(1)?;
        return Ok(Op::Warp(members(case, 0)?, Collective::Sync));
    }
    // `bar` is short for `barrier.cta ... .aligned`.
    let aligned = case.name == "bar" || case.take("aligned");
    case.take("cta");
    let count = case.operands.len();
    if let Some(action) = case.one_of(&[("sync", Action::Sync), ("arrive", Action::Arrive)]) {
        case.finish(if matches!(action, Action::Arrive) { 2 } else { count.clamp(1, 2) })?;
        let threads = if count == 2 { Some(case.source(1, Type::U32)?) } else { None };
        return Ok(Op::Barrier(Barrier { id: number(case, 0)?, threads, aligned, action }));
    }
    case.kind_is("red")?;
    let name = ["popc", "and", "or"].into_iter().find(|name| case.take(name)).ok_or("the operation is missing")?;
    let kind = case.kind()?;
    case.finish(count.clamp(3, 4))?;
    let id = number(case, 1)?;
    let threads = if count == 4 { Some(case.source(2, Type::U32)?) } else { None };
    let p = case.condition(count - 1)?;
    let action = match (name, kind) {
        ("popc", Type::U32) => Action::Count { d: case.target(0, kind)?, p },
        ("and", Type::Pred) => Action::And { d: case.predicate(case.operand(0)?)?, p },
        ("or", Type::Pred) => Action::Or { d: case.predicate(case.operand(0)?)?, p },
        _ => return Err("popc gives .u32, and and or give .pred".to_string()),
    };
    Ok(Op::Barrier(Barrier { id, threads, aligned, action }))
}

/// The slot with the number of a barrier.
fn number(case: &mut Case, index: usize) -> Lowered<u32> {
    match case.operand(index)? {
        Operand::Literal(Literal::Int(id)) if !(0..BARRIERS as i64).contains(id) => {
            Err(format!("barriers have the numbers 0 to {}", BARRIERS - 1))
        }
        _ => case.source(index, Type::U32),
    }
}
