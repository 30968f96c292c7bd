//! Whether hints are right: what a hint on a planted bug names, and whether there is one.

use crate::check::Hint;
use crate::error::Result;
use crate::mutants::{Mutant, catalogue};
use crate::trace::Trace;
use crate::values::Values;

/// What became of the hint on one planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hinted {
    /// There is none.
    Silent,
    /// It says what the error looks like, and names nothing.
    Looks,
    /// The planted bug is among those that it names.
    Right,
    /// It names one that has the same numbers on this case, in every stage that the dump holds, but not the planted one.
    Same,
    /// It names others.
    Wrong,
}

impl Hinted {
    /// What became of `hint` on a dump of `planted`. `exact` gives the dump of a mutant in f64.
    ///
    /// # Errors
    /// If a mutant cannot be run.
    pub fn of(hint: Option<&Hint>, planted: &Mutant, exact: impl Fn(&Mutant) -> Result<Trace>) -> Result<Self> {
        let Some(Hint { says, names }) = hint else { return Ok(Hinted::Silent) };
        if names.is_empty() {
            return Ok(if says.is_empty() { Hinted::Silent } else { Hinted::Looks });
        }
        if names.contains(&planted.id) {
            return Ok(Hinted::Right);
        }
        let own = exact(planted)?;
        for named in catalogue().filter(|mutant| names.contains(&mutant.id)) {
            if same(&own, &exact(named)?) {
                return Ok(Hinted::Same);
            }
        }
        Ok(Hinted::Wrong)
    }
}

/// Values that differ by less than this part of the largest are the same: fp32 rounds by more.
const SAME: f64 = 1.0 / (1 << 22) as f64;

/// Whether two dumps have the same numbers.
fn same(a: &Trace, b: &Trace) -> bool {
    let alike = |a: &Values, b: &Values| match (a, b) {
        (Values::Real(_, a), Values::Real(_, b)) if a.shape() == b.shape() => {
            let largest = a.iter().filter(|x| x.is_finite()).fold(0.0_f64, |largest, x| largest.max(x.abs()));
            a.iter().zip(b).all(|(x, y)| x == y || (x - y).abs() <= SAME * largest || (x.is_nan() && y.is_nan()))
        }
        (a, b) => a == b,
    };
    a.iter().all(|(name, a)| b.get(name).is_some_and(|b| alike(a, b)))
}

/// The hints on the failures of one kind of dump in one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HintScore {
    /// Structural mutants that were found.
    pub failures: usize,
    /// Those on which there is a hint.
    pub given: usize,
    /// Those whose hint names mutants.
    pub naming: usize,
    /// Those whose hint names the planted one.
    pub right: usize,
    /// Those whose hint names another with the same numbers instead.
    pub same: usize,
}

impl HintScore {
    /// One more.
    pub fn add(&mut self, hinted: Hinted) {
        let count = |yes| usize::from(yes);
        self.failures += 1;
        self.given += count(hinted != Hinted::Silent);
        self.naming += count(matches!(hinted, Hinted::Right | Hinted::Same | Hinted::Wrong));
        self.right += count(hinted == Hinted::Right);
        self.same += count(hinted == Hinted::Same);
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: HintScore) -> Self {
        HintScore {
            failures: self.failures + other.failures,
            given: self.given + other.given,
            naming: self.naming + other.naming,
            right: self.right + other.right,
            same: self.same + other.same,
        }
    }

    /// Whether hints are good enough: of those that name mutants 95 in 100 name the planted one, and 60 of 100 failures have
    /// one.
    pub fn good(&self) -> bool {
        (self.right + self.same) * 100 >= self.naming * 95 && self.given * 100 >= self.failures * 60
    }
}
