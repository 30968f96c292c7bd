//! Vector clocks: what a thread knows of the others.
//!
//! A time belongs to one thread and only grows. A clock holds for each other thread the latest time that is known to
//! lie in the past. Most threads of a block learn the same at the same moment, from a barrier, so the lists are shared
//! until somebody learns more.

use std::collections::BTreeMap;
use std::rc::Rc;

/// The times of the threads of one block; what is not there is zero.
pub(super) type Times = Rc<Vec<u32>>;

/// The times of threads of several blocks, by the number of the block.
pub(super) type Blocks = Rc<BTreeMap<u32, Times>>;

/// What is known of the past.
#[derive(Clone, Default)]
pub(super) struct Clock {
    /// The threads of the block that runs.
    pub(super) near: Times,
    /// The threads of other blocks, and only of those from which something was heard.
    pub(super) far: Blocks,
}

impl Clock {
    /// Learns all that another clock knows.
    pub(super) fn join(&mut self, other: &Self) {
        join_times(&mut self.near, &other.near);
        join_blocks(&mut self.far, &other.far);
    }

    /// Learns of a thread of the running block that it has reached a time.
    pub(super) fn set(&mut self, thread: usize, time: u32) {
        let times = Rc::make_mut(&mut self.near);
        if times.len() <= thread {
            times.resize(thread + 1, 0);
        }
        times[thread] = times[thread].max(time);
    }
}

/// The later of both, thread by thread.
#[inline]
pub(super) fn join_times(mine: &mut Times, other: &Times) {
    if Rc::ptr_eq(mine, other) || other.is_empty() {
        return;
    }
    let is_older = |at: usize, time: u32| other.get(at).is_some_and(|later| *later >= time);
    if mine.len() <= other.len() && mine.iter().enumerate().all(|(at, time)| is_older(at, *time)) {
        *mine = Rc::clone(other);
        return;
    }
    let times = Rc::make_mut(mine);
    if times.len() < other.len() {
        times.resize(other.len(), 0);
    }
    times.iter_mut().zip(other.iter()).for_each(|(time, later)| *time = (*time).max(*later));
}

/// The same for several blocks.
#[inline]
pub(super) fn join_blocks(mine: &mut Blocks, other: &Blocks) {
    if Rc::ptr_eq(mine, other) || other.is_empty() {
        return;
    }
    if mine.is_empty() {
        *mine = Rc::clone(other);
        return;
    }
    let mine = Rc::make_mut(mine);
    for (block, times) in other.iter() {
        join_times(mine.entry(*block).or_default(), times);
    }
}

/// What a thread knows, and what of it a fence has made ready for others.
#[derive(Clone, Default)]
pub(super) struct Knowledge {
    pub(super) past: Clock,
    /// What was fenced for the block, and for the device: the next strong write makes it known (PTX manual, "Release
    /// and Acquire Patterns"). Barriers pass it on: each thread fences its own writes, and one of them tells.
    pub(super) fenced: Clock,
    pub(super) fenced_far: Clock,
}

/// What threads learn together. Of those with equal lists the first one pays, and the others share what it has then.
pub(super) struct Lesson<'a> {
    says: &'a Knowledge,
    /// The list of the last thread, before and after.
    last: Option<[Times; 2]>,
}

impl<'a> Lesson<'a> {
    pub(super) fn new(says: &'a Knowledge) -> Self {
        Self { says, last: None }
    }

    /// A thread learns it.
    pub(super) fn teach(&mut self, known: &mut Knowledge) {
        let Knowledge { past, fenced, fenced_far } = self.says;
        match &self.last {
            Some([before, after]) if Rc::ptr_eq(before, &known.past.near) => known.past.near = Rc::clone(after),
            _ => {
                let before = Rc::clone(&known.past.near);
                join_times(&mut known.past.near, &past.near);
                self.last = Some([before, Rc::clone(&known.past.near)]);
            }
        }
        join_blocks(&mut known.past.far, &past.far);
        known.fenced.join(fenced);
        known.fenced_far.join(fenced_far);
    }
}

/// Threads that come together. Those with equal lists cost no more than one step each.
#[derive(Default)]
pub(super) struct Gathering {
    together: Knowledge,
    last: Option<Times>,
}

impl Gathering {
    /// A thread comes.
    pub(super) fn add(&mut self, known: &Knowledge, thread: usize, time: u32) {
        let Knowledge { past, fenced, fenced_far } = known;
        if !self.last.as_ref().is_some_and(|last| Rc::ptr_eq(last, &past.near)) {
            join_times(&mut self.together.past.near, &past.near);
            self.last = Some(Rc::clone(&past.near));
        }
        join_blocks(&mut self.together.past.far, &past.far);
        self.together.past.set(thread, time);
        self.together.fenced.join(fenced);
        self.together.fenced_far.join(fenced_far);
    }

    /// What they know together.
    pub(super) fn finish(self) -> Knowledge {
        self.together
    }
}
