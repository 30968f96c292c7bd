//! Which bits of a result are unknown, where it depends on its sources bit by bit, or half by half.

use super::Unknown;
use crate::exec::lanes::Lanes;
use crate::exec::registers::{LANES, Registers, get, set};
use crate::lower::flow::{Cell, Flow};

/// Of a result of two halves, the upper one of the first source, the lower one of the second; or each of that half of the
/// only source.
pub(super) fn of_halves(unknown: &Unknown, flow: &Flow) -> Option<Vec<[u64; LANES]>> {
    let &[Cell::Data(target)] = &flow.writes[..] else { return None };
    let lower = (1 << (target.bits / 2)) - 1;
    let sources = |lane: usize| match flow.operands[..] {
        [upper, lower] => Some([get(&unknown.masks, upper, lane), get(&unknown.masks, lower, lane)]),
        [both] => {
            let mask = get(&unknown.masks, both, lane);
            Some([mask >> (both.bits / 2), mask & ((1 << (both.bits / 2)) - 1)])
        }
        _ => None,
    };
    let mut result = [0; LANES];
    for (lane, result) in result.iter_mut().enumerate() {
        let halves = sources(lane)?.map(|mask| if mask == 0 { 0 } else { lower });
        *result = halves[0] << (target.bits / 2) | halves[1];
    }
    Some(vec![result])
}

/// The bits of each result that change when all unknown bits of each source are zeros or ones, in every combination;
/// `None` if there are too many sources.
pub(super) fn by_trial(
    unknown: &Unknown,
    registers: &mut Registers,
    flow: &Flow,
    run: &Lanes,
    active: u32,
) -> Option<Vec<[u64; LANES]>> {
    let mut sources: Vec<Cell> = vec![];
    for cell in &flow.reads {
        if unknown.lanes_of(*cell) & active != 0 && !sources.iter().any(|other| is_same(*other, *cell)) {
            sources.push(*cell);
        }
    }
    if sources.len() > 4 {
        return None;
    }
    let read = |registers: &Registers, cell: Cell| -> [u64; LANES] {
        std::array::from_fn(|lane| match cell {
            Cell::Data(register) => get(registers, register, lane),
            Cell::Predicate(slot) => u64::from(registers.predicates[slot as usize] >> lane & 1),
        })
    };
    let write = |registers: &mut Registers, cell: Cell, values: &[u64; LANES]| match cell {
        Cell::Data(register) => (0..LANES).for_each(|lane| set(registers, register, lane, values[lane])),
        Cell::Predicate(slot) => {
            registers.predicates[slot as usize] =
                (0..LANES).fold(0, |bits, lane| bits | (values[lane] as u32 & 1) << lane);
        }
    };
    let touched: Vec<Cell> = sources.iter().chain(&flow.writes).copied().collect();
    let saved: Vec<[u64; LANES]> = touched.iter().map(|cell| read(registers, *cell)).collect();
    let mut first: Option<Vec<[u64; LANES]>> = None;
    let mut changed = vec![[0; LANES]; flow.writes.len()];
    for combination in 0..1u32 << sources.len() {
        touched.iter().zip(&saved).for_each(|(cell, values)| write(registers, *cell, values));
        for (index, cell) in sources.iter().enumerate() {
            let (masks, values) = (read(&unknown.masks, *cell), saved[index]);
            let ones = if combination >> index & 1 == 1 { u64::MAX } else { 0 };
            let tried = std::array::from_fn(|lane| values[lane] & !masks[lane] | masks[lane] & ones);
            write(registers, *cell, &tried);
        }
        run(registers, active);
        let results: Vec<[u64; LANES]> = flow.writes.iter().map(|cell| read(registers, *cell)).collect();
        let base = first.get_or_insert_with(|| results.clone());
        for ((changed, result), base) in changed.iter_mut().zip(&results).zip(base.iter()) {
            (0..LANES).for_each(|lane| changed[lane] |= result[lane] ^ base[lane]);
        }
    }
    touched.iter().zip(&saved).for_each(|(cell, values)| write(registers, *cell, values));
    Some(changed)
}

fn is_same(a: Cell, b: Cell) -> bool {
    match (a, b) {
        (Cell::Data(a), Cell::Data(b)) => a.slot == b.slot && (a.bits > 32) == (b.bits > 32),
        (Cell::Predicate(a), Cell::Predicate(b)) => a == b,
        _ => false,
    }
}
