//! Constants and special registers, written into their slots when a block begins.

use super::launch::Launch;
use super::registers::{LANES, Registers};
use crate::lower::slots::{Constant, Mask, Special};

/// `%tid` of the thread with this number in a block.
pub(crate) fn thread(block: [u32; 3], index: u32) -> [u32; 3] {
    [index % block[0], index / block[0] % block[1], index / block[0] / block[1]]
}

/// Clears the registers of a warp and fills its constant slots.
pub(crate) fn fill(launch: &Launch, block: [u32; 3], warp: usize, registers: &mut Registers) {
    registers.narrow.fill([0; LANES]);
    registers.wide.fill([0; LANES]);
    registers.predicates.fill(0);
    registers.steps = 0;
    for (wide, slot, constant) in &launch.kernel.constants {
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
