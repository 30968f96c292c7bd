//! Named barriers (PTX manual, `bar` and `barrier`).
//!
//! An `.aligned` barrier is for whole warps: its lanes are gathered first, and lanes that never come are a divergent
//! barrier. Without a thread count a barrier waits for every thread of the block that has not exited.

use super::block::Block;
use super::registers::{LANES, lanes};
use super::warp::{Fragment, Reason};
use crate::Error;
use crate::error::Cause;
use crate::lower::control::BARRIERS;
use crate::lower::instruction::{Action, Barrier, Op};
use crate::observe::Sync;

/// The state of one barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// Threads that have arrived; a whole warp counts as 32 where a count is given.
    arrived: u32,
    /// The lanes among them that really exist.
    lanes: u32,
    expected: Option<u32>,
    count: u32,
    and: bool,
    or: bool,
}

impl State {
    pub(crate) const EMPTY: Self = Self { arrived: 0, lanes: 0, expected: None, count: 0, and: true, or: false };
}

impl Block<'_> {
    /// Lanes of a warp come to a barrier; whether they can go on at once.
    pub(super) fn barrier(&mut self, warp: usize, pc: usize, mask: u32, barrier: &Barrier) -> Result<bool, Error> {
        let first = mask.trailing_zeros() as usize % 32;
        let ids = self.warps[warp].registers.get::<u32>(barrier.id);
        let id = ids[first];
        let same = *ids == [id; LANES] || lanes(mask).all(|lane| ids[lane] == id);
        let wrong = |message: String| (first, Cause::BadBarrier { barrier: id, message });
        if !same || id as usize >= BARRIERS {
            let message =
                format!("barriers have the numbers 0 to {}, the same in all lanes that come together", BARRIERS - 1);
            return Err(self.fault(warp, pc, wrong(message)));
        }
        let registers = &self.warps[warp].registers;
        let expected = barrier.threads.map(|slot| registers.get::<u32>(slot)[first]);
        let threads = if barrier.aligned { 32 } else { mask.count_ones() };
        let yes = match barrier.action {
            Action::Arrive | Action::Sync => 0,
            Action::Count { p, .. } | Action::And { p, .. } | Action::Or { p, .. } => registers.test(p) & mask,
        };
        if let Some(count) = expected
            && (count == 0 || count % 32 != 0)
        {
            let message = format!("a thread count of {count} is not a positive multiple of 32");
            return Err(self.fault(warp, pc, wrong(message)));
        }
        let state = &mut self.barriers[id as usize];
        if state.lanes > 0 && state.expected != expected {
            let message = "threads that arrive together give different thread counts".to_string();
            return Err(self.fault(warp, pc, wrong(message)));
        }
        state.expected = expected;
        state.arrived += threads;
        state.lanes += mask.count_ones();
        state.count += yes.count_ones();
        state.and &= yes == mask;
        state.or |= yes != 0;
        if let Some(count) = expected.filter(|count| state.arrived > *count) {
            let message = format!("{} threads have arrived, but only {count} are expected", state.arrived);
            return Err(self.fault(warp, pc, wrong(message)));
        }
        self.tell_sync(warp, pc, mask, Sync::Arrive(id));
        let arrives_only = matches!(barrier.action, Action::Arrive);
        if !arrives_only {
            self.warps[warp].wait(pc, mask, Reason::Barrier(id));
        }
        self.release_if_complete(warp, pc, id);
        Ok(arrives_only)
    }

    /// Lets everybody go if all have come; called again when threads exit.
    pub(super) fn release_if_complete(&mut self, warp: usize, pc: usize, id: u32) {
        let state = self.barriers[id as usize];
        if state.lanes == 0 {
            return;
        }
        let complete = match state.expected {
            Some(count) => state.arrived >= count,
            None => state.lanes >= self.warps.iter().map(|warp| warp.live.count_ones()).sum(),
        };
        if !complete {
            return;
        }
        self.barriers[id as usize] = State::EMPTY;
        self.tell_sync(warp, pc, 0, Sync::Complete(id));
        for index in 0..self.warps.len() {
            let mut at = 0;
            while let Some(wait) = self.warps[index].waits.get(at).copied() {
                if wait.reason != Reason::Barrier(id) {
                    at += 1;
                    continue;
                }
                let warp = &mut self.warps[index];
                warp.waits.remove(at);
                warp.ready.push(Fragment { pc: wait.pc + 1, lanes: wait.lanes });
                self.deliver(index, wait.pc, wait.lanes, state);
                self.tell_sync(index, wait.pc, wait.lanes, Sync::Leave(id));
            }
        }
    }

    /// Writes the result of `bar.red` into the registers of those who waited.
    fn deliver(&mut self, warp: usize, pc: usize, mask: u32, state: State) {
        let Op::Barrier(barrier) = &self.launch.kernel.code[pc].op else { return };
        let registers = &mut self.warps[warp].registers;
        let all = |yes: bool| if yes { mask } else { 0 };
        match barrier.action {
            Action::Arrive | Action::Sync => {}
            Action::Count { d, .. } => lanes(mask).for_each(|lane| registers.narrow[d as usize][lane] = state.count),
            Action::And { d, .. } => registers.set_predicate(d, all(state.and), mask),
            Action::Or { d, .. } => registers.set_predicate(d, all(state.or), mask),
        }
    }
}
