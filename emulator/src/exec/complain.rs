//! What is said of a block that did something wrong, or cannot go on.

use super::block::{Block, Failed};
use super::registers::LANES;
use super::specials;
use super::warp::Reason;
use crate::Error;
use crate::error::{Cause, Fault, Jam, Stuck, Waiting};

impl Block<'_> {
    /// Turns a cause into an error that says where it happened.
    pub(super) fn fault(&self, warp: usize, pc: usize, (lane, cause): Failed) -> Error {
        let thread = specials::thread(self.launch.block, (warp * LANES + lane) as u32);
        Error::Fault(Box::new(Fault { place: self.launch.kernel.place(pc), block: self.id, thread, cause }))
    }

    pub(super) fn endless(&self) -> Error {
        let running = self.warps.iter().position(|warp| !warp.ready.is_empty()).unwrap_or(0);
        let fragment = self.warps[running].ready.first();
        let (pc, lanes) = fragment.map_or((0, 1), |fragment| (fragment.pc, fragment.lanes));
        let cause = Cause::Endless { steps: self.launch.limit };
        self.fault(running, pc, (lanes.trailing_zeros() as usize % LANES, cause))
    }

    /// Who waits where, once nobody can go on.
    pub(super) fn stuck(&self) -> Error {
        let mut waiting = vec![];
        let mut jam = Jam::Deadlock;
        for (warp, state) in self.warps.iter().enumerate() {
            for wait in &state.waits {
                let reason = match wait.reason {
                    Reason::Members(members) => {
                        jam = Jam::Divergence;
                        format!("lanes {:#010x} to come here too", members & state.live & !wait.lanes)
                    }
                    Reason::Barrier(id) => format!("more threads at barrier {id}"),
                };
                let place = self.launch.kernel.place(wait.pc);
                waiting.push(Waiting { place, block: self.id, warp: warp as u32, lanes: wait.lanes, reason });
            }
        }
        Error::Stuck(Box::new(Stuck { jam, block: self.id, waiting }))
    }

    /// The lanes that wait for another block: those that run.
    pub(crate) fn polling(&self) -> Vec<Waiting> {
        let mut waiting = vec![];
        for (warp, state) in self.warps.iter().enumerate() {
            for fragment in &state.ready {
                let place = self.launch.kernel.place(fragment.pc);
                let reason = "another block to change what it reads".to_string();
                waiting.push(Waiting { place, block: self.id, warp: warp as u32, lanes: fragment.lanes, reason });
            }
        }
        waiting
    }
}
