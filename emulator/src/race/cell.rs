//! The history of one byte (or of four that were always accessed together), as short as the question allows: whose
//! accesses could still race with one that is to come?
//!
//! That is the last weak write, since all accesses before it were ordered before it or have been reported, and the
//! reads and strong writes after it, without those that are ordered before a later one of the same sort (C. Flanagan
//! and S. N. Freund, "FastTrack: Efficient and Precise Dynamic Race Detection").

use super::clock::Clock;
use super::order::Reach;
use crate::observe::Kind;

/// The marks of threads of the running block, and of other blocks, that a cell keeps; beyond that it forgets the
/// oldest, and may miss a race.
const NEAR: usize = 64;
const FAR: usize = 4;

/// That some lanes of a warp have accessed a cell.
#[derive(Clone, Copy, Debug)]
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

    /// Whether nothing of what was there before matters after it.
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
}

/// The thread that accesses a cell.
pub(super) struct View<'a> {
    pub(super) block: u32,
    pub(super) thread: usize,
    pub(super) clock: &'a Clock,
}

impl View<'_> {
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
#[derive(Clone, Default)]
pub(super) struct Cell {
    write: Option<Mark>,
    others: Others,
}

/// The reads and strong writes since the last weak write.
#[derive(Clone, Default)]
enum Others {
    #[default]
    None,
    One(Mark),
    Many(Vec<Mark>),
}

impl Others {
    fn as_slice(&self) -> &[Mark] {
        match self {
            Self::None => &[],
            Self::One(mark) => std::slice::from_ref(mark),
            Self::Many(marks) => marks,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Mark] {
        match self {
            Self::None => &mut [],
            Self::One(mark) => std::slice::from_mut(mark),
            Self::Many(marks) => marks,
        }
    }
}

impl Cell {
    /// One lane accesses the byte; `found` gets each earlier access that it races with, reduced to one lane.
    pub(super) fn access(&mut self, new: &Mark, view: &View<'_>, mut found: impl FnMut(Mark)) {
        for old in self.write.iter().chain(self.others.as_slice()) {
            if old.conflicts(new) {
                let unseen = view.unseen(old);
                if unseen != 0 {
                    found(Mark { lanes: unseen & unseen.wrapping_neg(), ..*old });
                }
            }
        }
        if new.is_weak_write() {
            *self = Self { write: Some(*new), others: Others::None };
        } else {
            self.add(new, view);
        }
    }

    /// Whether the history is a weak write and nothing after it.
    pub(super) fn is_one_write(&self) -> bool {
        self.write.is_some() && matches!(self.others, Others::None)
    }

    fn add(&mut self, new: &Mark, view: &View<'_>) {
        for old in self.others.as_mut_slice() {
            if old.is_like(new) && (old.site == new.site || old.lanes & new.lanes != 0) {
                old.lanes |= new.lanes;
                return;
            }
        }
        let is_past = |old: &Mark| old.is_covered_by(new) && view.unseen(old) == 0;
        self.others = match std::mem::take(&mut self.others) {
            Others::None => Others::One(*new),
            Others::One(old) if is_past(&old) => Others::One(*new),
            Others::One(old) => Others::Many(vec![old, *new]),
            Others::Many(mut marks) => {
                marks.retain(|old| !is_past(old));
                forget(&mut marks, FAR, |mark| mark.block != new.block);
                forget(&mut marks, NEAR - 1, |mark| mark.block == new.block);
                marks.push(*new);
                Others::Many(marks)
            }
        };
    }
}

/// Drops the oldest of some marks until at most `most` of them are left.
fn forget(marks: &mut Vec<Mark>, most: usize, which: impl Fn(&Mark) -> bool) {
    let mut surplus = marks.iter().filter(|mark| which(mark)).count().saturating_sub(most);
    marks.retain(|mark| {
        let goes = surplus > 0 && which(mark);
        surplus -= usize::from(goes);
        !goes
    });
}
