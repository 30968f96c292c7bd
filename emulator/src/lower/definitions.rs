//! Which instruction gives a register its value. Compilers write almost every register in one place only.

use std::collections::HashMap;

use super::flow::Cell;
use super::instruction::Instruction;
use crate::exec::registers::Register;

/// For each data register, by file and slot, the one instruction that writes it; nothing where there are several.
pub(crate) struct Definitions(HashMap<(bool, u32), Option<usize>>);

impl Definitions {
    pub(super) fn of(code: &[Instruction]) -> Self {
        let mut all = HashMap::new();
        for (pc, instruction) in code.iter().enumerate() {
            for cell in &instruction.flow.writes {
                if let Cell::Data(Register { slot, bits }) = cell {
                    all.entry((*bits > 32, *slot)).and_modify(|only| *only = None).or_insert(Some(pc));
                }
            }
        }
        Self(all)
    }

    /// The one place, if every thread that comes there writes the register.
    pub(crate) fn only(&self, register: Register, code: &[Instruction]) -> Option<usize> {
        let pc = (*self.0.get(&(register.bits > 32, register.slot))?)?;
        code[pc].guard.is_none().then_some(pc)
    }
}
