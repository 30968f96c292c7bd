//! A launch: the blocks of a grid, spread over threads.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::barrier::State;
use super::block::{Block, Turn};
use super::unknown::Log;
use super::warp::Warp;
use crate::error::{Jam, Stuck};
use crate::lower::Kernel;
use crate::lower::control::BARRIERS;
use crate::memory::Memory;
use crate::memory::store::Store;
use crate::memory::undo::Undo;
use crate::numeric::mma::Summation;
use crate::observe::{Observer, Words};
use crate::{Error, UnwrittenUse};

/// All that is the same for every block.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) memory: &'a Memory,
    pub(crate) params: &'a Store,
    /// The addresses of the module's variables.
    pub(crate) globals: &'a [u64],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_bytes: u32,
    pub(crate) shared_bytes: u64,
    /// Whether reading unwritten bytes stops the launch, or whether they are followed.
    pub(crate) checked: bool,
    pub(crate) follow: bool,
    /// In a second run: the words whose readers are followed.
    pub(crate) words: Option<&'a Words>,
    pub(crate) limit: u64,
    pub(crate) summation: Summation,
    /// What threads print, kept for whoever wants it of a launch that fails.
    pub(crate) printed: &'a Mutex<String>,
    /// Set by who wants the launch to end.
    pub(crate) interrupted: &'a AtomicBool,
    /// The address of what the blocks of a cooperative grid meet at; zero for other grids.
    pub(crate) workspace: u64,
}

/// Host memory for blocks that are under way, and how many there are at most.
const RESIDENT_BYTES: u64 = 2 << 30;
const MOST_RESIDENT: u64 = 4096;

/// When all blocks have polled through so many rounds and nothing has changed, nothing will.
const PATIENCE: u32 = 256;

/// How many blocks of a grid that hangs are described.
const SHOWN: usize = 4;

/// A block that has been put aside.
struct Parked {
    id: [u32; 3],
    warps: Vec<Warp>,
    shared: Store,
    barriers: [State; BARRIERS],
    left: u64,
}

impl Block<'_> {
    /// Puts the block aside, and takes room for another one.
    fn park(&mut self, spare: &mut Vec<Parked>) -> Parked {
        if let Some(observer) = &mut self.observer {
            observer.leave(self.id);
        }
        let room = spare.pop().unwrap_or_else(|| {
            let (warps, shared) = Self::fresh(self.launch);
            Parked { id: [0; 3], warps, shared, barriers: [State::EMPTY; BARRIERS], left: 0 }
        });
        self.exchange(room)
    }

    /// Takes up another block; gives the one that there was.
    fn exchange(&mut self, other: Parked) -> Parked {
        let Parked { id, warps, shared, barriers, left } = other;
        Parked {
            id: std::mem::replace(&mut self.id, id),
            warps: std::mem::replace(&mut self.warps, warps),
            shared: std::mem::replace(&mut self.shared, shared),
            barriers: std::mem::replace(&mut self.barriers, barriers),
            left: std::mem::replace(&mut self.left, left),
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions that warps executed.
    pub warp_instructions: u64,
    /// The same, counted once for every thread that took part.
    pub thread_instructions: u64,
    /// Where bytes that nobody wrote decided something, with [`Unwritten::Follow`](crate::Unwritten::Follow).
    pub unwritten: Vec<UnwrittenUse>,
    /// What threads printed (`printf`), block after block.
    pub printed: String,
}

impl Launch<'_> {
    fn blocks(&self) -> u64 {
        self.grid.iter().map(|size| u64::from(*size)).product()
    }

    fn position(&self, index: u64) -> [u32; 3] {
        let (x, y) = (u64::from(self.grid[0]), u64::from(self.grid[1]));
        [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
    }

    /// How many blocks can be under way at once.
    pub(crate) fn residents(&self) -> u64 {
        let threads: u32 = self.block.iter().product();
        let kernel = self.kernel;
        let warp = kernel.narrow * 128 + kernel.wide * 256 + kernel.local_bytes as usize * 40;
        let block = u64::from(threads.div_ceil(32)) * warp as u64 + self.shared_bytes * 5 / 4;
        (RESIDENT_BYTES / block.max(1)).clamp(1, MOST_RESIDENT)
    }

    /// All blocks in order, watched. A block that seems to wait for others is put aside; those that wait take turns.
    pub(crate) fn run_in_order<'a>(&'a self, observer: Option<&'a mut dyn Observer>) -> Result<Report, Error> {
        let mut block = Block::new(self, observer);
        let ended = self.take_turns(&mut block);
        let printed = block.log.printed();
        self.keep(&printed);
        let report = ended.map(|()| Report {
            warp_instructions: block.warp_steps,
            thread_instructions: block.thread_steps,
            unwritten: block.log.report(self.kernel),
            printed,
        })?;
        let (keeps, undo) = (block.keeps, std::mem::take(&mut block.undo));
        if keeps
            && undo.is_whole()
            && let Some(observer) = block.observer.take()
            && let Some(words) = observer.again()
        {
            self.run_again(observer, &words, undo)?;
        }
        Ok(report)
    }

    /// The same once more, from the memory that there was before; what it leaves is what the first run left.
    fn run_again(&self, observer: &mut dyn Observer, words: &Words, mut undo: Undo) -> Result<(), Error> {
        let printed = Mutex::default();
        let Self { kernel, memory, params, globals, interrupted, .. } = *self;
        let second = Launch {
            kernel,
            memory,
            params,
            globals,
            interrupted,
            // Nothing new can be wrong, and unwritten bytes are not what is looked for.
            checked: false,
            follow: true,
            words: Some(words),
            printed: &printed,
            ..*self
        };
        undo.exchange(self.memory);
        let mut block = Block::new(&second, Some(&mut *observer));
        let ended = second.take_turns(&mut block);
        undo.exchange(self.memory);
        let values = block.log.values.take().unwrap_or_default();
        match &ended {
            Ok(()) => observer.outcome(&|value| values.is_used(value)),
            Err(_) => observer.outcome(&|_| true),
        }
        ended
    }

    fn keep(&self, printed: &str) {
        printed.clone_into(&mut self.printed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    fn take_turns(&self, block: &mut Block<'_>) -> Result<(), Error> {
        let (mut next, mut waiting, mut spare) = (0, VecDeque::<Parked>::new(), vec![]);
        let mut idle = 0;
        while next < self.blocks() || !waiting.is_empty() {
            let mut progress = false;
            for _ in 0..waiting.len() {
                let Some(parked) = waiting.pop_front() else { break };
                spare.push(block.exchange(parked));
                if let Some(observer) = &mut block.observer {
                    observer.resume(block.id);
                }
                let turn = block.go_on()?;
                progress |= block.advanced || turn == Turn::Done;
                if turn == Turn::Waits {
                    waiting.push_back(block.park(&mut spare));
                }
            }
            while next < self.blocks() && (waiting.len() as u64) < self.residents() {
                let turn = block.start(self.position(next))?;
                next += 1;
                progress = true;
                if turn == Turn::Waits {
                    waiting.push_back(block.park(&mut spare));
                }
            }
            idle = if progress { 0 } else { idle + 1 };
            if idle > PATIENCE {
                return Err(self.hang(block, waiting, next));
            }
        }
        Ok(())
    }

    /// The error about a grid in which nobody can go on.
    fn hang(&self, block: &mut Block<'_>, parked: VecDeque<Parked>, begun: u64) -> Error {
        let (id, blocks) = (parked.front().map_or([0; 3], |first| first.id), parked.len());
        let mut waiting = vec![];
        for parked in parked.into_iter().take(SHOWN) {
            block.exchange(parked);
            waiting.extend(block.polling());
        }
        let jam = Jam::Grid { blocks: blocks as u64, not_begun: self.blocks() - begun };
        Error::Stuck(Box::new(Stuck { jam, block: id, waiting }))
    }

    /// The blocks on several threads. Of several errors the one of the first block is given, as in order.
    pub(crate) fn run_in_parallel(&self, threads: usize) -> Result<Report, Error> {
        let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let outcome = Mutex::new((Report::default(), None::<(u64, Error)>, Log::default()));
        let work = || {
            let mut block = Block::new(self, None);
            // Blocks are taken in order, so every block before a failed one has been taken, and will finish.
            let error = loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.blocks() || failed.load(Ordering::Relaxed) {
                    break None;
                }
                if let Err(error) = block.start(self.position(index)) {
                    failed.store(true, Ordering::Relaxed);
                    break Some((index, error));
                }
            };
            let mut outcome = outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            outcome.0.warp_instructions += block.warp_steps;
            outcome.0.thread_instructions += block.thread_steps;
            outcome.2.add(std::mem::take(&mut block.log));
            if let Some(error) = error
                && outcome.1.as_ref().is_none_or(|first| error.0 < first.0)
            {
                outcome.1 = Some(error);
            }
        };
        std::thread::scope(|scope| {
            // This thread is one of them, and does it all where there are no others to be had.
            for _ in 1..threads {
                if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        let (mut report, error, log) = outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        (report.unwritten, report.printed) = (log.report(self.kernel), log.printed());
        self.keep(&report.printed);
        error.map_or(Ok(report), |(_, error)| Err(error))
    }
}
