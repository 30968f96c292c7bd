//! A block: its warps take turns until all threads have exited, or until nobody can go on.

use std::sync::atomic::Ordering;

use super::barrier::State;
use super::launch::Launch;
use super::registers::{LANES, get, lanes as lanes_of};
use super::tell::site;
use super::unknown::Log;
use super::warp::{Fragment, TURN, Warp};
use crate::Error;
use crate::error::Cause;
use crate::lower::control::BARRIERS;
use crate::lower::instruction::Op;
use crate::memory::store::Store;
use crate::memory::undo::Undo;
use crate::observe::{Observer, Sync};

/// The lane that did something wrong, and what.
pub(super) type Failed = (usize, Cause);

/// One block while it runs.
pub(crate) struct Block<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) id: [u32; 3],
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Store,
    pub(crate) barriers: [State; BARRIERS],
    pub(crate) observer: Option<&'a mut dyn Observer>,
    /// Whether it wants to hear of every instruction.
    hears_all: bool,
    /// Whether what is changed in global memory is kept for a second run.
    pub(super) keeps: bool,
    /// Instructions that warps have executed, and the same counted by thread.
    pub(crate) warp_steps: u64,
    pub(crate) thread_steps: u64,
    /// How many more of them this block may execute.
    pub(crate) left: u64,
    /// Reads of global memory that may wait for another block, since something was last written there.
    pub(crate) polls: u32,
    /// How many there were when the turn of the running warp began.
    polls_before: u32,
    /// Whether it did anything in this turn that others could wait for.
    pub(crate) advanced: bool,
    /// What this block, and those before it, did with unwritten bytes.
    pub(crate) log: Log,
    /// What the launch has changed, if its observer may want to see it twice.
    pub(crate) undo: Undo,
}

/// Why a block does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All threads have exited.
    Done,
    /// It seems to wait for other blocks.
    Waits,
}

/// After so many reads that may be a loop that waits for another block, the others get their turn.
const POLLS: u32 = 64;

/// A block that polls now and then gives its turn away after so many instructions at the latest.
const SLICE: u64 = 1 << 20;

impl<'a> Block<'a> {
    /// A block that has not started.
    pub(crate) fn new(launch: &'a Launch<'a>, observer: Option<&'a mut dyn Observer>) -> Self {
        let (warps, shared) = Self::fresh(launch);
        let keeps = launch.words.is_none() && observer.as_ref().is_some_and(|observer| observer.repeats());
        let hears_all = observer.as_ref().is_some_and(|observer| observer.hears_all());
        Self {
            launch,
            id: [0; 3],
            warps,
            shared,
            barriers: [State::EMPTY; BARRIERS],
            observer,
            hears_all,
            keeps,
            warp_steps: 0,
            thread_steps: 0,
            left: 0,
            polls: 0,
            polls_before: 0,
            advanced: false,
            log: Log::new(launch.words.is_some()),
            undo: Undo::default(),
        }
    }

    /// Begins the block at a position of the grid and runs it for a turn.
    pub(crate) fn start(&mut self, id: [u32; 3]) -> Result<Turn, Error> {
        self.id = id;
        self.reset();
        self.left = self.launch.limit;
        if let Some(observer) = &mut self.observer {
            observer.begin(id, self.launch.block.iter().product());
        }
        self.go_on()
    }

    /// Runs the block to its end, or until it seems to wait for others.
    pub(crate) fn go_on(&mut self) -> Result<Turn, Error> {
        let may_wait = self.launch.kernel.needs_order;
        let begun = self.warp_steps;
        let end = self.warp_steps.saturating_add(self.left);
        (self.polls, self.advanced) = (0, false);
        let mut polled = false;
        loop {
            // First of all: a grid may have many blocks that are done in one round.
            if self.launch.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { kernel: self.launch.kernel.name.clone() });
            }
            let (mut progress, mut done) = (false, true);
            for warp in 0..self.warps.len() {
                if self.warps[warp].live != 0 {
                    progress |= self.turn(warp)?;
                    done &= self.warps[warp].live == 0;
                }
            }
            if done {
                return Ok(Turn::Done);
            }
            if !progress {
                return Err(self.stuck());
            }
            if self.warp_steps > end {
                return Err(self.endless());
            }
            polled |= self.polls > 0;
            if may_wait && (self.polls >= POLLS || polled && self.warp_steps - begun > SLICE) {
                self.advanced |= self.polls < POLLS;
                self.left = end - self.warp_steps;
                return Ok(Turn::Waits);
            }
        }
    }

    /// Whether the running warp does nothing but wait for another block, as it seems.
    fn only_polls(&self) -> bool {
        self.polls >= self.polls_before.saturating_add(POLLS)
    }

    /// Lets one warp run until it waits, has exited, or has used up its turn. Whether it did anything.
    fn turn(&mut self, warp: usize) -> Result<bool, Error> {
        let mut budget = TURN;
        let mut progress = false;
        self.polls_before = self.polls;
        while let Some((fragment, limit)) = self.warps[warp].pick() {
            progress = true;
            let before = budget;
            self.advance(warp, fragment, limit, &mut budget)?;
            if limit != usize::MAX {
                self.warps[warp].starving += before - budget;
            }
            if budget == 0 || self.only_polls() {
                break;
            }
        }
        if self.warps[warp].unknown.as_ref().is_some_and(|unknown| unknown.is_over()) {
            self.warps[warp].unknown = None;
        }
        self.warp_steps += u64::from(TURN - budget);
        // A warp that is busy with something else will write sooner or later.
        self.advanced |= budget == 0 && self.polls == self.polls_before;
        Ok(progress)
    }

    /// Runs one fragment until it splits, waits, exits, or reaches the program counter `limit`.
    fn advance(&mut self, w: usize, fragment: Fragment, limit: usize, budget: &mut u32) -> Result<(), Error> {
        let code = &self.launch.kernel.code;
        let follow = self.launch.follow;
        let Fragment { mut pc, mut lanes } = fragment;
        let mut steps = 0;
        loop {
            if pc >= limit || *budget == 0 {
                self.warps[w].ready.push(Fragment { pc, lanes });
                break;
            }
            *budget -= 1;
            let instruction = &code[pc];
            let warp = &mut self.warps[w];
            warp.registers.steps += 1;
            let active = instruction.guard.map_or(lanes, |guard| lanes & warp.registers.test(guard));
            steps += u64::from(active.count_ones());
            if self.hears_all
                && let Some(observer) = &mut self.observer
            {
                observer.issue(&site(self.launch, self.id, w, pc, active));
            }
            if follow && warp.unknown.is_some() {
                self.follow(w, pc, lanes, active);
            }
            if active == 0 {
                pc += 1;
                continue;
            }
            let warp = &mut self.warps[w];
            match &instruction.op {
                Op::Lanes(run) => {
                    run(&mut warp.registers, active);
                    pc += 1;
                }
                Op::Branch(target) if active == lanes => pc = *target,
                Op::Branch(target) => {
                    warp.ready.push(Fragment { pc: *target, lanes: active });
                    warp.ready.push(Fragment { pc: pc + 1, lanes: lanes & !active });
                    break;
                }
                Op::BranchIndex(slot, targets) => {
                    let index = *warp.registers.get::<u32>(*slot);
                    if let Some(lane) = lanes_of(active).find(|lane| index[*lane] as usize >= targets.len()) {
                        let cause = Cause::BadIndex { index: index[lane], targets: targets.len() };
                        return Err(self.fault(w, pc, (lane, cause)));
                    }
                    let mut rest = active;
                    while rest != 0 {
                        let which = index[rest.trailing_zeros() as usize];
                        let group = lanes_of(rest).filter(|lane| index[*lane] == which);
                        let group = group.fold(0, |set, lane| set | 1 << lane);
                        warp.ready.push(Fragment { pc: targets[which as usize], lanes: group });
                        rest &= !group;
                    }
                    if lanes != active {
                        warp.ready.push(Fragment { pc: pc + 1, lanes: lanes & !active });
                    }
                    break;
                }
                Op::Exit => {
                    warp.live &= !active;
                    lanes &= !active;
                    self.tell_sync(w, pc, active, Sync::Exit);
                    self.settle_after_exit(w, pc)?;
                    if lanes == 0 {
                        break;
                    }
                    pc += 1;
                }
                Op::Warp(..) | Op::Barrier(_) => {
                    if !self.meet(w, pc, active)? {
                        if lanes != active {
                            self.warps[w].ready.push(Fragment { pc: pc + 1, lanes: lanes & !active });
                        }
                        break;
                    }
                    pc += 1;
                }
                _ => {
                    self.simple(w, pc, active)?;
                    pc += 1;
                    if self.only_polls() {
                        self.warps[w].ready.push(Fragment { pc, lanes });
                        break;
                    }
                }
            }
        }
        self.thread_steps += steps;
        Ok(())
    }

    /// Instructions after which the lanes simply go on.
    fn simple(&mut self, w: usize, pc: usize, active: u32) -> Result<(), Error> {
        match &self.launch.kernel.code[pc].op {
            Op::Load(load) => self.load(w, pc, active, load)?,
            Op::Store(store) => self.store(w, pc, active, store)?,
            Op::Atomic(atomic) => self.atomic(w, pc, active, atomic)?,
            Op::Copy(copy) => self.copy(w, pc, active, copy)?,
            Op::Commit => self.commit(w, pc, active),
            Op::WaitGroups(keep) => self.wait_groups(w, pc, active, *keep),
            Op::CopyArrive { address, space, counted } => {
                self.copies_arrive((w, pc), active, (*address, *space), *counted)?
            }
            Op::Fence => self.tell_sync(w, pc, active, Sync::Fence),
            Op::Trap => return Err(self.fault(w, pc, (active.trailing_zeros() as usize % LANES, Cause::Trap))),
            Op::System { system, result, arguments } => self.system((w, pc), active, *system, *result, arguments)?,
            Op::NoFunction(pointer) => {
                let lane = active.trailing_zeros() as usize % LANES;
                let address = get(&self.warps[w].registers, *pointer, lane);
                return Err(self.fault(w, pc, (lane, Cause::NoFunction { address })));
            }
            Op::Lanes(_) | Op::Branch(_) | Op::BranchIndex(..) | Op::Exit | Op::Warp(..) | Op::Barrier(_) => {}
        }
        Ok(())
    }
}
