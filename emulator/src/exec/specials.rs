//! Constants and special registers, written into their slots when a block begins.

use super::launch::Launch;
use super::registers::{LANES, Register, Registers};
use crate::lower::flow::Cell;
use crate::lower::slots::{Constant, Mask, Special};

/// `%tid` of the thread with this number in a block.
pub(crate) fn thread(block: [u32; 3], index: u32) -> [u32; 3] {
    [index % block[0], index / block[0] % block[1], index / block[0] / block[1]]
}

/// Makes the registers of a warp what a block finds: zero, and the constant slots filled.
///
/// Most of the time it took to begin a small block went into zeros that nobody sees. So of registers on which a block of
/// the same launch has run, those in `seen` are cleared, and its position is written anew; with nothing there, all are.
pub(crate) fn fill(
    launch: &Launch,
    block: [u32; 3],
    warp: usize,
    registers: &mut Registers,
    seen: Option<&[(Cell, usize)]>,
) {
    let again = registers.used && seen.is_some();
    match seen {
        _ if !registers.used => {}
        Some(seen) => seen.iter().for_each(|(cell, _)| clear(registers, *cell)),
        None => {
            registers.narrow.fill([0; LANES]);
            registers.wide.fill([0; LANES]);
        }
    }
    registers.predicates.fill(0);
    (registers.steps, registers.used) = (0, true);
    for (wide, slot, constant) in &launch.kernel.constants {
        if again && !matches!(constant, Constant::Special(Special::Ctaid(_))) {
            continue;
        }
        let values: [u64; LANES] = match constant {
            Constant::Value(value) => [*value; LANES],
            Constant::Dynamic(offset) => [launch.kernel.dynamic_start.wrapping_add_signed(*offset); LANES],
            Constant::Global(index, offset) => {
                [launch.globals.get(*index).copied().unwrap_or(0).wrapping_add_signed(*offset); LANES]
            }
            Constant::Special(special) => {
                std::array::from_fn(|lane| u64::from(value(launch, block, warp, lane, *special)))
            }
        };
        if *wide {
            registers.wide[*slot as usize] = values;
        } else {
            registers.narrow[*slot as usize] = values.map(|value| value as u32);
        }
    }
}

fn clear(registers: &mut Registers, cell: Cell) {
    match cell {
        Cell::Data(Register { slot, bits }) if bits > 32 => *registers.get_mut::<u64>(slot) = [0; LANES],
        Cell::Data(Register { slot, .. }) => *registers.get_mut::<u32>(slot) = [0; LANES],
        Cell::Predicate(_) => {}
    }
}

fn value(launch: &Launch, block: [u32; 3], warp: usize, lane: usize, special: Special) -> u32 {
    let me = 1u32 << lane;
    match special {
        Special::Tid(axis) => thread(launch.block, (warp * LANES + lane) as u32)[axis],
        Special::Ntid(axis) => launch.block[axis],
        Special::Ctaid(axis) => block[axis],
        Special::Nctaid(axis) => launch.grid[axis],
        Special::LaneId => lane as u32,
        Special::WarpId => warp as u32,
        Special::WarpCount => launch.block.iter().product::<u32>().div_ceil(LANES as u32),
        Special::LaneMask(Mask::Equal) => me,
        Special::LaneMask(Mask::Less) => me - 1,
        Special::LaneMask(Mask::LessEqual) => me | (me - 1),
        Special::LaneMask(Mask::GreaterEqual) => !(me - 1),
        Special::LaneMask(Mask::Greater) => !(me | (me - 1)),
        Special::DynamicShared => launch.dynamic_bytes,
        Special::Zero => 0,
        Special::GridWorkspace { upper: true } => (launch.workspace >> 32) as u32,
        Special::GridWorkspace { upper: false } => launch.workspace as u32,
        Special::One => 1,
        Special::TotalShared => launch.shared_bytes as u32,
    }
}
