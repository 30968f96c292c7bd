//! The accesses of a byte that are kept beside its last weak write: mostly none or one.

use super::cell::Mark;

/// The marks of threads of the running block, and of other blocks, that a cell keeps; beyond that it forgets the
/// oldest, and may miss a race.
const NEAR: usize = 64;
const FAR: usize = 4;

/// Some marks, the oldest first.
#[derive(Clone, Default)]
pub(super) enum Others {
    #[default]
    None,
    One(Mark),
    Many(Vec<Mark>),
}

impl PartialEq for Others {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Others {
    pub(super) fn as_slice(&self) -> &[Mark] {
        match self {
            Self::None => &[],
            Self::One(mark) => std::slice::from_ref(mark),
            Self::Many(marks) => marks,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Mark] {
        match self {
            Self::None => &mut [],
            Self::One(mark) => std::slice::from_mut(mark),
            Self::Many(marks) => marks,
        }
    }

    /// Keeps those of which `keep` says so. The answer is how many of the first `old` ones are left.
    pub(super) fn retain(&mut self, old: usize, mut keep: impl FnMut(usize, &Mark) -> bool) -> usize {
        let (mut at, mut left) = (0, 0);
        let mut keep = |mark: &Mark| {
            let kept = keep(at, mark);
            left += usize::from(kept && at < old);
            at += 1;
            kept
        };
        match self {
            Self::None => {}
            Self::One(mark) => {
                if !keep(mark) {
                    *self = Self::None;
                }
            }
            Self::Many(marks) => marks.retain(keep),
        }
        left
    }

    /// Adds the newest one. The answer is how many of the first `old` ones are left.
    pub(super) fn push(&mut self, new: Mark, old: usize) -> usize {
        let mut left = old;
        if self.as_slice().len() >= FAR {
            let near = self.as_slice().iter().filter(|mark| mark.block == new.block).count();
            let mut surplus = [(near + 1).saturating_sub(NEAR), (self.as_slice().len() - near).saturating_sub(FAR)];
            if surplus != [0; 2] {
                left = self.retain(old, |_, mark| {
                    let surplus = &mut surplus[usize::from(mark.block != new.block)];
                    let goes = *surplus > 0;
                    *surplus -= usize::from(goes);
                    !goes
                });
            }
        }
        match self {
            Self::None => *self = Self::One(new),
            Self::One(one) => *self = Self::Many(vec![*one, new]),
            Self::Many(marks) => marks.push(new),
        }
        left
    }
}
