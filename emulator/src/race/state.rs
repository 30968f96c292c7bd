//! What the detector keeps of a launch.

use std::collections::{BTreeMap, HashMap};

use super::cell::Mark;
use super::clock::{Gathering, Knowledge};
use super::report::Log;
use super::second::Reads;
use super::shadow::Shadow;
use super::thread::{Last, Location, Thread};
use crate::observe::Rounding;

/// A block under way.
#[derive(Default)]
pub(super) struct Running {
    /// Its number: blocks are counted as they begin.
    pub(super) number: u32,
    /// Its threads, a multiple of 32.
    pub(super) threads: Vec<Thread>,
    /// The last time that was given out in it.
    pub(super) tick: u32,
    pub(super) barriers: BTreeMap<u32, Barrier>,
    pub(super) shared: Memory,
}

/// What was found, by class.
#[derive(Clone, Default)]
pub(super) struct Logs {
    pub(super) races: Log,
    pub(super) equal: Log,
    pub(super) rounded: Log,
    pub(super) unused: Log,
}

/// What one lane does.
pub(super) struct Step<'a> {
    pub(super) mark: &'a Mark,
    /// Of a store: whether it changes nothing, and whether it differs by rounding only from what another lane has stored.
    pub(super) unchanged: bool,
    pub(super) rounding: Option<Rounding<'a>>,
    /// In a second run: the number of the value that it reads.
    pub(super) value: u32,
    /// The thread.
    pub(super) index: usize,
}

/// A named barrier.
#[derive(Default)]
pub(super) struct Barrier {
    /// Those that have arrived in this phase.
    pub(super) arrived: Gathering,
    /// What all knew who made the last phase complete.
    pub(super) complete: Knowledge,
}

/// A memory that threads share.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) shadow: Shadow,
    pub(super) locations: HashMap<u64, Location>,
    pub(super) atomics: HashMap<u64, Last>,
    /// In a second run.
    pub(super) reads: Reads,
}

impl Memory {
    pub(super) fn clear(&mut self) {
        self.shadow.clear();
        self.locations.clear();
        self.atomics.clear();
        self.reads.clear();
    }
}
