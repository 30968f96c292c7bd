//! The functions that a driver provides (CUDA's "system calls"): `vprintf` and `__assertfail`.

use super::case::{Case, Lowered};
use super::instruction::{Op, System};
use super::slots::{Constant, Name};
use crate::Space;
use crate::parse::ast::Operand;

/// Lowers a call of such a function; `None` if it is none. What is passed lies in the caller's local memory.
pub(super) fn lower(case: &Case) -> Option<Lowered<Op>> {
    let name = case.operands.iter().find_map(|operand| match operand {
        Operand::Name(name) => Some(name.as_str()),
        _ => None,
    });
    let system = match name {
        Some("vprintf") => System::Print,
        Some("__assertfail") => System::Assert,
        _ => return None,
    };
    Some(places(case).and_then(|(results, arguments)| {
        let wanted = if system == System::Print { (1, 2) } else { (0, 5) };
        if (results.len(), arguments.len()) != wanted {
            return Err("the results and parameters are not those of this function".to_string());
        }
        Ok(Op::System { system, result: results.first().copied(), arguments })
    }))
}

/// Where the results and the arguments lie in local memory.
fn places(case: &Case) -> Lowered<(Vec<u64>, Vec<u64>)> {
    let (mut results, mut arguments, mut named) = (vec![], vec![], false);
    for operand in case.operands {
        match operand {
            Operand::Name(_) => named = true,
            Operand::Vector(parts) => {
                let list = if named { &mut arguments } else { &mut results };
                for part in parts {
                    let Operand::Name(name) = part else { return Err(format!("{part} is not a .param variable")) };
                    match case.slots.find(name) {
                        Some(Name::Variable(symbol)) if symbol.space == Space::Local => match symbol.address {
                            Constant::Value(at) => list.push(at),
                            _ => return Err(format!("{name} is not a .param variable")),
                        },
                        _ => return Err(format!("{name} is not a .param variable")),
                    }
                }
            }
            _ => return Err("this form of a call is not supported".to_string()),
        }
    }
    Ok((results, arguments))
}
