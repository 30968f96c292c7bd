//! The history of one byte (or of four that were always accessed together), as short as the question allows: whose
//! accesses could still race with one that is to come?
//!
//! Those are the last weak write, and the reads and strong writes, without those that are ordered before a later one of
//! the same sort (C. Flanagan and S. N. Freund, "FastTrack: Efficient and Precise Dynamic Race Detection").
//!
//! Trap: where every pair is told, a weak write stands for all that came before it, since whatever races with that races
//! with the write as well. Here two writes may race and do no harm, equal or equal but for rounding, while the reads
//! before them do. So what came before the write stays, and is looked at by those that do not come after the write; and
//! of equal writes that nothing orders all stay.

use super::clock::Clock;
use super::order::Reach;
use super::others::Others;
use super::thread::Last;
use crate::observe::Kind;

/// That some lanes of a warp have accessed a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mark {
    /// The number of the block within the launch.
    pub(super) block: u32,
    /// The time of all these lanes.
    pub(super) time: u32,
    /// The number of the instruction.
    pub(super) site: u32,
    pub(super) lanes: u32,
    /// The warp; the copies of warp w are made by a warp of their own, behind all others.
    pub(super) warp: u16,
    pub(super) kind: Kind,
    pub(super) reach: Reach,
}

impl Mark {
    pub(super) fn writes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Atomic | Kind::CopyWrite)
    }

    /// Whether it may meet no other access.
    pub(super) fn is_weak_write(&self) -> bool {
        self.writes() && self.reach == Reach::Nobody
    }

    /// Whether both must not be unordered.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        let needed = if self.block == other.block { Reach::Block } else { Reach::Device };
        (self.writes() || other.writes()) && self.reach.min(other.reach) < needed
    }

    /// Whether whatever conflicts with this conflicts with `later` too, so that this may be forgotten.
    fn is_covered_by(&self, later: &Self) -> bool {
        (later.writes() || !self.writes()) && later.reach <= self.reach
    }

    fn is_like(&self, other: &Self) -> bool {
        let key = |mark: &Self| (mark.block, mark.time, mark.warp, mark.kind, mark.reach);
        key(self) == key(other)
    }

    /// Whether both may be one mark.
    fn joins(&self, other: &Self) -> bool {
        self.is_like(other) && (self.site == other.site || self.lanes & other.lanes != 0)
    }
}

/// The thread that accesses a cell.
pub(super) struct View<'a> {
    pub(super) block: u32,
    pub(super) thread: usize,
    pub(super) clock: &'a Clock,
    /// Of a store: the last atomic operation there, and how many bytes are stored.
    pub(super) last: Option<(Last, u64)>,
}

impl View<'_> {
    /// A counter is set anew by who has counted last: what the others have counted came before, whatever orders the rest.
    fn has_counted(&self, mark: &Mark) -> bool {
        let is_last = |(last, bytes): (Last, u64)| last.is((self.block, self.thread), bytes, mark);
        mark.kind == Kind::Atomic && self.last.is_some_and(is_last)
    }

    /// The lanes of a mark that are not in this thread's past.
    pub(super) fn unseen(&self, mark: &Mark) -> u32 {
        let same = mark.block == self.block;
        let times = if same { Some(&self.clock.near) } else { self.clock.far.get(&mark.block) };
        let mut unseen = mark.lanes;
        let mut rest = mark.lanes;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let thread = usize::from(mark.warp) * 32 + lane as usize;
            let known = times.and_then(|times| times.get(thread)).is_some_and(|time| *time >= mark.time);
            if known || same && thread == self.thread {
                unseen &= !(1 << lane);
            }
        }
        unseen
    }
}

/// The history of a byte.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Cell {
    /// The last weak write.
    write: Option<Mark>,
    /// The weak write that it has replaced by another value.
    replaced: Option<Mark>,
    /// So many of the others, the first ones, came before the last weak write: whatever comes after that comes after them.
    old: u8,
    /// Whether there are weak writes among the others that came later: equal to the last one, not ordered with it.
    equal: bool,
    /// Whether there are weak writes among the old ones: equal to the replaced one.
    equal_old: bool,
    others: Others,
}

impl Cell {
    /// One lane accesses the byte; `found` gets each earlier access that it races with, reduced to one lane. `unchanged`
    /// says of a store that it leaves what is there.
    pub(super) fn access(&mut self, new: &Mark, unchanged: bool, view: &View<'_>, mut found: impl FnMut(Mark)) {
        let mut tell = |old: &Mark, unseen: u32| found(Mark { lanes: unseen & unseen.wrapping_neg(), ..*old });
        if view.last.is_some() {
            self.forget_counted(view);
        }
        let (mut behind, mut joins) = (true, false);
        if let Some(write) = &self.write {
            let unseen = view.unseen(write);
            behind = unseen == 0;
            // Stores of one instruction may differ by rounding, or the race is told.
            let is_like = unchanged || (write.site, write.block) == (new.site, new.block);
            joins = !behind && is_like && new.is_weak_write();
            if self.equal {
                behind = self.meet_equal(write, unseen, new, unchanged || joins, view, &mut tell);
            } else if !behind {
                tell(write, unseen);
            }
        }
        let mut settled = behind;
        let first = if behind { usize::from(self.old) } else { 0 };
        for old in &self.others.as_slice()[first..] {
            if old.conflicts(new) && !(self.equal && old.is_weak_write()) {
                let unseen = view.unseen(old);
                if unseen != 0 {
                    settled = false;
                    tell(old, unseen);
                }
            }
        }
        match () {
            () if !new.is_weak_write() => self.add(new, behind, view),
            () if joins || unchanged && !settled => self.write_the_same(new, joins, view),
            () => self.write(new, unchanged),
        }
    }

    /// A counter is set anew by who has counted last: what others have counted came before, whatever orders the rest.
    #[cold]
    fn forget_counted(&mut self, view: &View<'_>) {
        for mark in self.others.as_mut_slice().iter_mut().filter(|mark| view.has_counted(mark)) {
            mark.lanes &= !view.unseen(mark);
        }
        self.old = self.others.retain(usize::from(self.old), |_, mark| mark.lanes != 0) as u8;
    }

    /// Tells which of several equal writes an access races with; the answer is whether it comes after all of them.
    #[cold]
    fn meet_equal(
        &self,
        last: &Mark,
        unseen: u32,
        new: &Mark,
        is_equal: bool,
        view: &View<'_>,
        tell: &mut impl FnMut(&Mark, u32),
    ) -> bool {
        let (old, later) = self.others.as_slice().split_at(usize::from(self.old));
        let with_unseen = |mark: &'_ Mark| (*mark, view.unseen(mark));
        let equal: Vec<_> = later.iter().filter(|mark| mark.is_weak_write()).map(with_unseen).collect();
        let told: Vec<_> = match () {
            () if new.writes() => equal.iter().filter(|_| !is_equal).copied().chain([(*last, unseen)]).collect(),
            // A read that comes after one of them gets the value that all of them have left, if nobody stored another.
            () if unseen == 0 || equal.iter().any(|(mark, unseen)| *unseen != mark.lanes) => {
                let replaced = old.iter().filter(|mark| mark.is_weak_write()).chain(&self.replaced);
                replaced.map(with_unseen).collect()
            }
            () => vec![(*last, unseen)],
        };
        told.iter().filter(|(_, unseen)| *unseen != 0).for_each(|(mark, unseen)| tell(mark, *unseen));
        unseen == 0 && equal.iter().all(|(_, unseen)| *unseen == 0)
    }

    /// A weak write that comes after all that was there, or races with it, which is told.
    fn write(&mut self, new: &Mark, unchanged: bool) {
        if unchanged {
            // All equal ones came before.
            if self.equal {
                let old = usize::from(self.old);
                self.others.retain(old, |at, mark| at < old || !mark.is_weak_write());
            }
            self.write = Some(*new);
        } else {
            if self.equal_old {
                let old = usize::from(self.old);
                self.others.retain(old, |at, mark| at >= old || !mark.is_weak_write());
            }
            self.equal_old = self.equal;
            self.replaced = self.write.replace(*new);
        }
        self.equal = false;
        self.old = self.others.as_slice().len() as u8;
    }

    /// A weak write leaves what is there, or all but what was rounded: it stands for none of those that it does not come
    /// after.
    #[cold]
    fn write_the_same(&mut self, new: &Mark, joins: bool, view: &View<'_>) {
        let mut old = usize::from(self.old);
        if self.equal {
            old = self.others.retain(old, |at, mark| at < old || !mark.is_weak_write() || view.unseen(mark) != 0);
        }
        if let Some(write) = self.write.replace(*new)
            && joins
        {
            match self.others.as_mut_slice()[old..].iter_mut().find(|mark| mark.joins(&write)) {
                Some(mark) => mark.lanes |= write.lanes,
                None => old = self.others.push(write, old),
            }
        }
        self.old = old as u8;
        self.equal = self.others.as_slice()[old..].iter().any(Mark::is_weak_write);
    }

    /// A read or a strong write; `behind` says that it comes after the last weak writes.
    fn add(&mut self, new: &Mark, behind: bool, view: &View<'_>) {
        let old = usize::from(self.old);
        if let Some(mark) = self.others.as_mut_slice()[old..].iter_mut().find(|mark| mark.joins(new)) {
            mark.lanes |= new.lanes;
            return;
        }
        let left = self.others.retain(old, |at, mark| {
            let is_past = || if at < old { behind } else { view.unseen(mark) == 0 };
            !(mark.is_covered_by(new) && is_past())
        });
        self.old = self.others.push(*new, left) as u8;
    }
}
