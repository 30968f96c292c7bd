//! What an instruction reads and writes, apart from memory: what is needed to follow unwritten bytes through registers.

use crate::exec::registers::{Pred, Register};

/// A register of one of the three files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cell {
    Data(Register),
    Predicate(u32),
}

/// How a result depends on sources that are not known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Rule {
    /// One unknown bit makes every bit of the result unknown.
    #[default]
    Any,
    /// A bit of the result depends on one bit of each source at most, for given values of the sources behind the first
    /// so many: moves, logic, shifts, selections. Then what is unknown is found by trying.
    Bitwise(usize),
    /// The result is two numbers in one register: the upper one comes of the first source, the lower one of the second, or each
    /// of that half of the only source.
    Packed,
    /// The result is joined with a predicate by "and" (or by "or"), and known where that decides.
    Gate { by: Pred, and: bool },
}

/// The registers of an instruction. Constants are not among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flow {
    pub(crate) reads: Vec<Cell>,
    pub(crate) writes: Vec<Cell>,
    /// Those that hold addresses.
    pub(crate) addresses: Vec<Cell>,
    pub(crate) rule: Rule,
    /// The data operands in the order of the text, constants too.
    pub(crate) operands: Vec<Register>,
}

/// How many operands of an instruction are moved bit by bit; the others say how. `None` for arithmetic.
pub(super) fn bitwise_operands(opcode: &str) -> Option<usize> {
    let mut words = opcode.split('.');
    Some(match words.next().unwrap_or_default() {
        "mov" | "not" | "brev" | "shl" | "shr" | "bfe" => 1,
        "and" | "or" | "xor" | "shf" | "prmt" | "bfi" | "selp" => 2,
        "lop3" => 3,
        // Between integers, and without .sat.
        "cvt" if words.all(|word| word.starts_with(['u', 's', 'b']) && word != "sat" && word != "satfinite") => 1,
        _ => return None,
    })
}
