//! A block: its warps take turns until all threads have exited, or until nobody can go on.

use std::sync::atomic::Ordering;

use super::async_copy::Copies;
use super::barrier::State;
use super::launch::Launch;
use super::registers::{LANES, Registers};
use super::specials;
use super::warp::{Fragment, Reason, TURN, Warp};
use crate::Error;
use crate::error::{Cause, Fault, Jam, Stuck, Waiting};
use crate::lower::control::BARRIERS;
use crate::lower::instruction::Op;
use crate::memory::store::Store;
use crate::observe::{Access, Observer, Site, Sync};

/// The lane that did something wrong, and what.
pub(super) type Failed = (usize, Cause);

/// One block while it runs.
pub(crate) struct Block<'a, O> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) id: [u32; 3],
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Store,
    pub(crate) barriers: [State; BARRIERS],
    pub(crate) observer: &'a mut O,
    /// Instructions that warps have executed, and the same counted by thread.
    pub(crate) warp_steps: u64,
    pub(crate) thread_steps: u64,
}

impl<'a, O: Observer> Block<'a, O> {
    /// A block that has not started.
    pub(crate) fn new(launch: &'a Launch<'a>, observer: &'a mut O) -> Self {
        let threads: u32 = launch.block.iter().product();
        let kernel = launch.kernel;
        let warps = (0..threads.div_ceil(LANES as u32)).map(|_| Warp {
            registers: Registers::new(kernel.narrow, kernel.wide, kernel.predicates),
            ready: vec![],
            waits: vec![],
            live: 0,
            local: Store::new(kernel.local_bytes.next_multiple_of(16) * LANES as u64, false),
            copies: Copies::default(),
            starving: 0,
        });
        let warps = warps.collect();
        let shared = Store::new(launch.shared_bytes, false);
        let barriers = [State::EMPTY; BARRIERS];
        Self { launch, id: [0; 3], warps, shared, barriers, observer, warp_steps: 0, thread_steps: 0 }
    }

    /// Runs the block at a position of the grid from its beginning to its end.
    pub(crate) fn run(&mut self, id: [u32; 3]) -> Result<(), Error> {
        self.id = id;
        self.reset();
        let limit = self.warp_steps.saturating_add(self.launch.limit);
        self.observer.begin(id, self.launch.block.iter().product());
        loop {
            let (mut progress, mut done) = (false, true);
            for warp in 0..self.warps.len() {
                if self.warps[warp].live != 0 {
                    progress |= self.turn(warp)?;
                    done &= self.warps[warp].live == 0;
                }
            }
            if done {
                return Ok(());
            }
            if !progress {
                return Err(self.stuck());
            }
            if self.launch.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { kernel: self.launch.kernel.name.clone() });
            }
            if self.warp_steps > limit {
                return Err(self.endless());
            }
        }
    }

    fn reset(&mut self) {
        self.shared.reset();
        self.barriers = [State::EMPTY; BARRIERS];
        let threads: u32 = self.launch.block.iter().product();
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let first = (index * LANES) as u32;
            let count = (threads - first).min(LANES as u32);
            warp.live = if count == 32 { u32::MAX } else { (1 << count) - 1 };
            warp.ready = vec![Fragment { pc: 0, lanes: warp.live }];
            warp.waits.clear();
            warp.local.reset();
            warp.copies = Copies::default();
            warp.starving = 0;
            specials::fill(self.launch, self.id, index, &mut warp.registers);
        }
    }

    /// Lets one warp run until it waits, has exited, or has used up its turn. Whether it did anything.
    fn turn(&mut self, warp: usize) -> Result<bool, Error> {
        let mut budget = TURN;
        let mut progress = false;
        while let Some((fragment, limit)) = self.warps[warp].pick() {
            progress = true;
            let before = budget;
            self.advance(warp, fragment, limit, &mut budget)?;
            if limit != usize::MAX {
                self.warps[warp].starving += before - budget;
            }
            if budget == 0 {
                break;
            }
        }
        self.warp_steps += u64::from(TURN - budget);
        Ok(progress)
    }

    /// Runs one fragment until it splits, waits, exits, or reaches the program counter `limit`.
    fn advance(&mut self, w: usize, fragment: Fragment, limit: usize, budget: &mut u32) -> Result<(), Error> {
        let code = &self.launch.kernel.code;
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
            if O::ACTIVE {
                self.observer.issue(&site(self.launch, self.id, w, pc, active));
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
            Op::Host(host) => self.host(w, pc, active, host)?,
            Op::Fence => self.tell_sync(w, pc, active, Sync::Fence),
            Op::Trap => return Err(self.fault(w, pc, (active.trailing_zeros() as usize % LANES, Cause::Trap))),
            Op::Lanes(_) | Op::Branch(_) | Op::Exit | Op::Warp(..) | Op::Barrier(_) => {}
        }
        Ok(())
    }

    /// Turns a cause into an error that says where it happened.
    pub(super) fn fault(&self, warp: usize, pc: usize, (lane, cause): Failed) -> Error {
        let thread = specials::thread(self.launch.block, (warp * LANES + lane) as u32);
        Error::Fault(Box::new(Fault { place: self.launch.kernel.place(pc), block: self.id, thread, cause }))
    }

    fn endless(&self) -> Error {
        let running = self.warps.iter().position(|warp| !warp.ready.is_empty()).unwrap_or(0);
        let fragment = self.warps[running].ready.first();
        let (pc, lanes) = fragment.map_or((0, 1), |fragment| (fragment.pc, fragment.lanes));
        let cause = Cause::Endless { steps: self.launch.limit };
        self.fault(running, pc, (lanes.trailing_zeros() as usize % LANES, cause))
    }

    /// Who waits where, once nobody can go on.
    fn stuck(&self) -> Error {
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
                waiting.push(Waiting { place, warp: warp as u32, lanes: wait.lanes, reason });
            }
        }
        Error::Stuck(Box::new(Stuck { jam, block: self.id, waiting }))
    }

    pub(super) fn tell_access(&mut self, warp: usize, pc: usize, lanes: u32, access: &Access<'_>) {
        if O::ACTIVE {
            self.observer.access(&site(self.launch, self.id, warp, pc, lanes), access);
        }
    }

    pub(super) fn tell_sync(&mut self, warp: usize, pc: usize, lanes: u32, event: Sync) {
        if O::ACTIVE {
            self.observer.sync(&site(self.launch, self.id, warp, pc, lanes), event);
        }
    }
}

fn site<'a>(launch: &'a Launch<'a>, block: [u32; 3], warp: usize, pc: usize, lanes: u32) -> Site<'a> {
    let instruction = &launch.kernel.code[pc];
    let source = instruction.source.and_then(|(file, line)| {
        let (_, name) = launch.kernel.files.iter().find(|(index, _)| *index == file)?;
        Some((name.as_str(), line))
    });
    Site {
        kernel: &launch.kernel.name,
        opcode: &instruction.opcode,
        line: instruction.line,
        source,
        block,
        warp: warp as u32,
        lanes,
    }
}
