//! What one thread knows, what it has released, and its asynchronous copies.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::cell::Mark;
use super::clock::{Blocks, Clock, Knowledge, join_blocks, join_times};
use super::order::{Order, Reach};
use crate::observe::Kind;

/// A thread of the running block.
#[derive(Clone, Default)]
pub(super) struct Thread {
    pub(super) known: Knowledge,
    /// Its own time. It moves on whenever the thread releases something, so that what follows is later.
    pub(super) now: u32,
    pub(super) copies: Copies,
    /// What strong reads have brought; it counts from the next fence on.
    heard: Clock,
    heard_far: Blocks,
}

/// The asynchronous copies of a thread. They have a time of their own, as if another thread made them: what happens
/// between the copy and the wait is ordered with neither.
#[derive(Clone, Default)]
pub(super) struct Copies {
    /// The time of the copies that are not committed.
    pub(super) now: u32,
    /// The times of the groups that have not landed.
    groups: VecDeque<u32>,
    /// The times up to which copies will arrive at barriers in shared memory, and where.
    arrivals: VecDeque<(u64, u32)>,
}

impl Copies {
    /// `cp.async.commit_group`
    pub(super) fn commit(&mut self) {
        self.groups.push_back(self.now);
        self.now += 1;
    }

    /// `cp.async.mbarrier.arrive`
    pub(super) fn arrive(&mut self, barrier: u64) {
        self.arrivals.push_back((barrier, self.now));
        self.now += 1;
    }

    /// The time up to which copies have landed that arrive at a barrier.
    pub(super) fn arrived(&mut self, barrier: u64) -> Option<u32> {
        let at = self.arrivals.iter().position(|(place, _)| *place == barrier)?;
        self.arrivals.remove(at).map(|(_, time)| time)
    }

    /// `cp.async.wait_group keep` or `wait_all`: the time up to which all copies have landed.
    pub(super) fn wait(&mut self, keep: Option<u32>) -> Option<u32> {
        let Some(keep) = keep else {
            self.groups.clear();
            self.now += 1;
            return Some(self.now - 1);
        };
        let landed = self.groups.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        self.groups.drain(..landed).next_back()
    }
}

/// What can be learned from the value at an address.
#[derive(Default)]
pub(super) struct Location {
    block: u32,
    /// What threads of this block have released here.
    near: Clock,
    /// What threads of any block have released here for all others.
    far: Blocks,
}

/// The last atomic operation at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) block: u32,
    pub(super) thread: usize,
    pub(super) bytes: u64,
    pub(super) reach: Reach,
}

impl Location {
    /// What a thread of a block has done up to a time can be learned here from now on.
    pub(super) fn add(&mut self, block: u32, thread: usize, time: u32) {
        if self.block != block {
            (self.block, self.near) = (block, Clock::default());
        }
        self.near.set(thread, time);
    }
}

impl Last {
    /// Whether a thread was the last one, for all that conflicts with another atomic operation there. Then it has seen
    /// what that one has left, so that one came first.
    pub(super) fn is(&self, (block, thread): (u32, usize), bytes: u64, other: &Mark) -> bool {
        let needed = if other.block == block { Reach::Block } else { Reach::Device };
        (self.block, self.thread, self.bytes) == (block, thread, bytes) && self.reach.min(other.reach) >= needed
    }
}

impl Thread {
    /// A thread that begins.
    pub(super) fn new() -> Self {
        Self { now: 1, copies: Copies { now: 1, ..Copies::default() }, ..Self::default() }
    }

    /// What lies in the past of all that it will do after its time has moved on.
    fn moment(&self, index: usize) -> Clock {
        let mut past = self.known.past.clone();
        past.set(index, self.now);
        past
    }

    /// `fence` and `membar`; `next` is the time after it.
    pub(super) fn fence(&mut self, (block, index): (u32, usize), order: Order, next: u32) {
        if order.acquires {
            self.learn(block, order.reach);
        }
        if order.releases {
            let moment = self.moment(index);
            if order.reach == Reach::Device {
                self.known.fenced_far.join(&moment);
            }
            self.known.fenced.join(&moment);
            self.now = next;
        }
    }

    /// What was heard is now in the past.
    fn learn(&mut self, block: u32, reach: Reach) {
        let past = &mut self.known.past;
        past.join(&std::mem::take(&mut self.heard));
        if reach == Reach::Device {
            let far = std::mem::take(&mut self.heard_far);
            if let Some(near) = far.get(&block) {
                join_times(&mut past.near, near);
            }
            join_blocks(&mut past.far, &far);
        }
    }

    /// A strong read or an atomic operation sees a value.
    pub(super) fn hear(&mut self, block: u32, order: Order, location: &Location) {
        if location.block == block {
            self.heard.join(&location.near);
        }
        if order.reach == Reach::Device {
            join_blocks(&mut self.heard_far, &location.far);
        }
        if order.acquires {
            self.learn(block, order.reach);
        }
    }

    /// A strong write or an atomic operation leaves a value. An atomic operation passes on what was there before.
    pub(super) fn tell(
        &mut self,
        (block, index): (u32, usize),
        (order, kind): (Order, Kind),
        (locations, address): (&mut HashMap<u64, Location>, u64),
        next: u32,
    ) {
        if kind == Kind::Write {
            locations.remove(&address);
        }
        let now = order.releases.then(|| self.moment(index));
        let near = now.as_ref().unwrap_or(&self.known.fenced);
        // What is fenced for the device is fenced for the block.
        if !near.near.is_empty() {
            let location = locations.entry(address).or_default();
            if location.block != block {
                (location.block, location.near) = (block, Clock::default());
            }
            location.near.join(near);
            let far = now.as_ref().unwrap_or(&self.known.fenced_far);
            if order.reach == Reach::Device && !far.near.is_empty() {
                join_blocks(&mut location.far, &far.far);
                join_times(Rc::make_mut(&mut location.far).entry(block).or_default(), &far.near);
            }
        }
        if order.releases {
            self.now = next;
        }
    }
}
