//! A launch: the blocks of a grid, spread over threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::block::Block;
use super::host::Log;
use crate::Error;
use crate::lower::Kernel;
use crate::memory::Memory;
use crate::memory::store::Store;
use crate::numeric::mma::Summation;
use crate::observe::{Nobody, Observer};

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
    pub(crate) checked: bool,
    pub(crate) limit: u64,
    pub(crate) summation: Summation,
    /// Where the threads print to.
    pub(crate) printed: &'a Log,
    /// Set by who wants the launch to end.
    pub(crate) interrupted: &'a AtomicBool,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions that warps executed.
    pub warp_instructions: u64,
    /// The same, counted once for every thread that took part.
    pub thread_instructions: u64,
}

impl Launch<'_> {
    fn blocks(&self) -> u64 {
        self.grid.iter().map(|size| u64::from(*size)).product()
    }

    fn position(&self, index: u64) -> [u32; 3] {
        let (x, y) = (u64::from(self.grid[0]), u64::from(self.grid[1]));
        [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
    }

    /// All blocks in order, watched.
    pub(crate) fn run_in_order(&self, observer: &mut impl Observer) -> Result<Report, Error> {
        let mut block = Block::new(self, observer);
        for index in 0..self.blocks() {
            block.run(self.position(index))?;
        }
        Ok(Report { warp_instructions: block.warp_steps, thread_instructions: block.thread_steps })
    }

    /// The blocks on several threads. Of several errors the one of the first block is given, as in order.
    pub(crate) fn run_in_parallel(&self, threads: usize) -> Result<Report, Error> {
        let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let outcome = Mutex::new((Report::default(), None::<(u64, Error)>));
        let work = || {
            let mut nobody = Nobody;
            let mut block = Block::new(self, &mut nobody);
            // Blocks are taken in order, so every block before a failed one has been taken, and will finish.
            let error = loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.blocks() || failed.load(Ordering::Relaxed) {
                    break None;
                }
                if let Err(error) = block.run(self.position(index)) {
                    failed.store(true, Ordering::Relaxed);
                    break Some((index, error));
                }
            };
            let mut outcome = outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            outcome.0.warp_instructions += block.warp_steps;
            outcome.0.thread_instructions += block.thread_steps;
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
        let (report, error) = outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        error.map_or(Ok(report), |(_, error)| Err(error))
    }
}
