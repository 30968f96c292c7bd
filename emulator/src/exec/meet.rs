//! Lanes of a warp that come together: for shuffles, votes, warp barriers, matrix instructions, and before a block's
//! barrier.
//!
//! Lanes may come one after the other (CUDA programming guide, "Independent Thread Scheduling"). They wait, each group
//! with its member mask, until all lanes of the mask that have not exited are there; then the instruction runs once for
//! all of them.

use super::block::Block;
use super::collective;
use super::registers::{FULL, LANES, lanes};
use super::warp::{Fragment, Reason, Wait};
use crate::Error;
use crate::error::Cause;
use crate::lower::control::BARRIERS;
use crate::lower::instruction::{Collective, Members, Op};
use crate::numeric::fragment;
use crate::observe::Sync;

impl Block<'_> {
    /// Lanes come to an instruction for which the lanes of a warp meet; whether all of them can go on at once.
    pub(super) fn meet(&mut self, w: usize, pc: usize, active: u32) -> Result<bool, Error> {
        let masks = match &self.launch.kernel.code[pc].op {
            Op::Warp(Members::Mask(slot), _) => *self.warps[w].registers.get::<u32>(*slot),
            Op::Barrier(barrier) if !barrier.aligned => return self.barrier(w, pc, active, barrier),
            _ => [u32::MAX; LANES],
        };
        let live = self.warps[w].live;
        let mut rest = active;
        while rest != 0 {
            let members = masks[rest.trailing_zeros() as usize];
            let group = lanes(rest).filter(|lane| masks[*lane] == members).fold(0, |set, lane| set | 1 << lane);
            rest &= !group;
            let stranger = group & !members;
            if stranger != 0 {
                let lane = stranger.trailing_zeros();
                return Err(self.fault(w, pc, (lane as usize, Cause::NotMember { lane, members })));
            }
            if group == active && group == members & live {
                return self.perform(w, pc, group);
            }
            self.warps[w].wait(pc, group, Reason::Members(members));
        }
        self.settle(w)?;
        Ok(false)
    }

    /// Lets lanes go whose partners have all come (or have exited).
    fn settle(&mut self, w: usize) -> Result<(), Error> {
        while let Some(first) = self.warps[w].waits.iter().copied().find(|wait| self.is_met(w, wait)) {
            // Lanes may wait for the same partners with `bar.warp.sync` at different places.
            let anywhere = self.is_warp_sync(first.pc);
            let together = |wait: &Wait| {
                wait.reason == first.reason && (wait.pc == first.pc || anywhere && self.is_warp_sync(wait.pc))
            };
            let (go, stay): (Vec<Wait>, Vec<Wait>) = self.warps[w].waits.iter().copied().partition(together);
            self.warps[w].waits = stay;
            for wait in go {
                if self.perform(w, wait.pc, wait.lanes)? {
                    self.warps[w].ready.push(Fragment { pc: wait.pc + 1, lanes: wait.lanes });
                }
            }
        }
        Ok(())
    }

    /// Whether all members that a wait is for have come.
    fn is_met(&self, w: usize, wait: &Wait) -> bool {
        let Reason::Members(members) = wait.reason else { return false };
        let mut here = wait.lanes;
        if self.is_warp_sync(wait.pc) {
            let others = self.warps[w].waits.iter();
            here = others
                .filter(|other| other.reason == wait.reason && self.is_warp_sync(other.pc))
                .fold(0, |set, other| set | other.lanes);
        }
        here == members & self.warps[w].live
    }

    fn is_warp_sync(&self, pc: usize) -> bool {
        matches!(self.launch.kernel.code[pc].op, Op::Warp(_, Collective::Sync))
    }

    /// After threads have exited, others may no longer have to wait for them.
    pub(super) fn settle_after_exit(&mut self, w: usize, pc: usize) -> Result<(), Error> {
        if !self.warps[w].waits.is_empty() {
            self.settle(w)?;
        }
        for id in 0..BARRIERS as u32 {
            self.release_if_complete(w, pc, id);
        }
        Ok(())
    }

    /// Executes a warp-wide instruction whose lanes are all there; whether they can go on.
    fn perform(&mut self, w: usize, pc: usize, mask: u32) -> Result<bool, Error> {
        match &self.launch.kernel.code[pc].op {
            Op::Barrier(barrier) => return self.barrier(w, pc, mask, barrier),
            Op::Warp(_, collective) => {
                self.tell_sync(w, pc, mask, Sync::Warp);
                if self.warps[w].unknown.is_some() {
                    self.follow_collective(w, mask, collective, &self.launch.kernel.code[pc].flow);
                }
                let strangers = match mask {
                    FULL => vec![],
                    _ => collective::strangers(&self.warps[w].registers, mask, collective),
                };
                if let (true, Some((lane, from))) = (self.launch.checked, strangers.first()) {
                    return Err(self.fault(w, pc, (*lane, Cause::Stranger { from: *from })));
                }
                if collective::run(&mut self.warps[w].registers, mask, collective) {
                    self.follow_strangers((w, pc), &strangers);
                    return Ok(true);
                }
                self.whole_warp(w, pc, mask)?;
                match collective {
                    Collective::LoadMatrix { d, address, space, transposed } => {
                        self.load_matrix(w, pc, d, (*address, *space), *transposed)?;
                    }
                    Collective::StoreMatrix { sources, address, space, transposed } => {
                        self.store_matrix(w, pc, sources, (*address, *space), *transposed)?;
                    }
                    Collective::MoveMatrix { d, a } => {
                        self.follow_move_matrix(w, *d, *a);
                        let registers = &mut self.warps[w].registers;
                        let values = *registers.get::<u32>(*a);
                        let rows: [_; 8] = std::array::from_fn(|row| fragment::row_of(&values, row, true));
                        let moved = std::array::from_fn(|lane| rows[lane / 4][lane % 4]);
                        registers.put(*d, &moved, mask);
                    }
                    Collective::MatrixProduct(product) => self.matrix_product(w, product),
                    Collective::LoadTile(placed) => self.load_tile(w, pc, placed)?,
                    Collective::StoreTile(placed) => self.store_tile(w, pc, placed)?,
                    Collective::TileProduct(product) => self.tile_product(w, product),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(true)
    }
}
