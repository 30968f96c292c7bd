//! Registers that some path through a kernel reads before it has written them.

use super::flow::Cell;
use super::instruction::{Instruction, Op};
use crate::exec::registers::{CARRY, Register};

/// Words of sets that the search may hold; a kernel with more of them, of a million instructions, is not searched.
const MOST: usize = 1 << 25;

/// Numbers for the registers of the three files.
struct Numbers {
    narrow: usize,
    wide: usize,
    words: usize,
}

impl Numbers {
    fn of(&self, cell: Cell) -> usize {
        match cell {
            Cell::Data(Register { slot, bits }) if bits > 32 => self.narrow + slot as usize,
            Cell::Data(Register { slot, .. }) => slot as usize,
            Cell::Predicate(slot) => self.narrow + self.wide + slot as usize,
        }
    }
}

/// Where a thread may go on.
fn successors(code: &[Instruction], pc: usize) -> Vec<usize> {
    let mut all = match &code[pc].op {
        Op::Branch(target) => vec![*target],
        Op::BranchIndex(_, targets) => targets.clone(),
        Op::Exit | Op::Trap | Op::NoFunction(_) => vec![],
        _ => return vec![pc + 1],
    };
    if code[pc].guard.is_some() {
        all.push(pc + 1);
    }
    all
}

/// What an instruction reads.
fn reads(instruction: &Instruction) -> impl Iterator<Item = Cell> + '_ {
    let guard = instruction.guard.map(|guard| Cell::Predicate(guard.slot));
    instruction.flow.reads.iter().chain(&instruction.flow.addresses).copied().chain(guard)
}

/// Each such register, and the first instruction that may read it too early; `None` if nobody has searched. Files have so
/// many registers.
pub(super) fn unassigned(
    code: &[Instruction],
    narrow: usize,
    wide: usize,
    predicates: usize,
) -> Option<Vec<(Cell, usize)>> {
    let numbers = Numbers { narrow, wide, words: (narrow + wide + predicates).div_ceil(64) };
    // Where paths come from elsewhere: what all of them have written. Nothing is known of those that nobody reaches.
    let mut starts = vec![false; code.len() + 1];
    starts[0] = true;
    for pc in 0..code.len() {
        if matches!(code[pc].op, Op::Branch(_) | Op::BranchIndex(..)) {
            successors(code, pc).into_iter().for_each(|next| starts[next] = true);
        }
    }
    if starts.iter().filter(|start| **start).count() * numbers.words > MOST {
        return None;
    }
    let mut written: Vec<Option<Vec<u64>>> = vec![None; code.len() + 1];
    written[0] = Some(vec![0; numbers.words]);
    let mut open = vec![0];
    while let Some(start) = open.pop() {
        let Some(mut set) = written[start].clone() else { continue };
        let mut pc = start;
        while pc < code.len() {
            write(&code[pc], &numbers, &mut set);
            let next = successors(code, pc);
            if next == [pc + 1] && !starts[pc + 1] {
                pc += 1;
                continue;
            }
            for next in next {
                if join(&mut written[next], &set) {
                    open.push(next);
                }
            }
            break;
        }
    }
    let mut found: Vec<(Cell, usize)> = vec![];
    let mut seen = vec![0; numbers.words];
    let mut set: Option<Vec<u64>> = None;
    for (pc, instruction) in code.iter().enumerate() {
        if starts[pc] {
            set.clone_from(&written[pc]);
        }
        let Some(known) = &mut set else { continue };
        for cell in reads(instruction) {
            let (at, bit) = (numbers.of(cell) / 64, 1u64 << (numbers.of(cell) % 64));
            if (known[at] | seen[at]) & bit == 0 && !matches!(cell, Cell::Predicate(CARRY)) {
                seen[at] |= bit;
                found.push((cell, pc));
            }
        }
        write(instruction, &numbers, known);
        if successors(code, pc) != [pc + 1] {
            set = None;
        }
    }
    Some(found)
}

/// Adds what an instruction writes whenever it is reached.
fn write(instruction: &Instruction, numbers: &Numbers, set: &mut [u64]) {
    if instruction.guard.is_none() {
        for cell in &instruction.flow.writes {
            set[numbers.of(*cell) / 64] |= 1 << (numbers.of(*cell) % 64);
        }
    }
}

/// Another path; whether that takes something away.
fn join(all: &mut Option<Vec<u64>>, path: &[u64]) -> bool {
    let Some(all) = all else {
        *all = Some(path.to_vec());
        return true;
    };
    let mut changed = false;
    for (word, other) in all.iter_mut().zip(path) {
        changed |= *word & !other != 0;
        *word &= other;
    }
    changed
}
