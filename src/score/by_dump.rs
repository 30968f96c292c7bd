//! Adding up, kind of dump by kind of dump.

use super::dumps::{ALL, DumpKind};
use super::{Finding, HintScore, Kill, Moved, Outcome, Subjects, Trials};
use crate::mutants::Class;
use crate::precision::Precision;

/// What came of one kind of dump in one type.
#[derive(Clone, Debug)]
pub struct DumpScore {
    /// The kind of dump.
    pub dump: &'static DumpKind,
    /// The type.
    pub precision: Precision,
    /// How often a structural mutant that changed something was asked about.
    pub runs: usize,
    /// How often it was found.
    pub killed: usize,
    /// The runs in which the judge could not tell.
    pub inconclusive: Vec<Survivor>,
    /// Those that passed although they moved what the dump holds by more than a right implementation may differ.
    pub passed: Vec<Survivor>,
    /// Those that passed, and did not move it so far.
    pub invisible: Vec<Survivor>,
    /// What became of the hints on those that were found, if they were asked for.
    pub hints: HintScore,
    /// How often a dump of a right implementation was asked about.
    pub right: usize,
    /// Those that were flagged: who, on which case, at which stage.
    pub false_alarms: Vec<String>,
    /// How often the judge could not tell.
    pub right_inconclusive: usize,
}

/// A structural mutant that was not found.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// Its name.
    pub mutant: &'static str,
    /// The case.
    pub case: String,
    /// How far it moves what the dump holds, if it passed.
    pub moved: Option<Moved>,
}

impl DumpScore {
    /// How many of those that passed unseen moved what the dump holds further than a plain implementation errs, in the
    /// Euclidean norm.
    pub fn within_budget(&self) -> usize {
        self.invisible.iter().filter(|of| of.moved.is_some_and(|moved| moved.noises > 1.0)).count()
    }

    /// Whether the judge is good enough in this kind of dump: nothing wrong passes that shows, it can tell in 90 of 100 runs,
    /// and nobody is accused wrongly.
    pub fn good(&self) -> bool {
        self.passed.is_empty() && self.inconclusive.len() * 10 <= self.runs && self.false_alarms.is_empty()
    }
}

/// One for each kind of dump and type.
pub fn by_dump(trials: &Trials<'_>, findings: &[Finding]) -> Vec<DumpScore> {
    let all = trials.dumps.iter().flat_map(|dump| trials.precisions.iter().map(move |precision| (*dump, *precision)));
    all.map(|(dump, precision)| {
        let mut score = DumpScore::new(dump, precision);
        findings.iter().for_each(|finding| score.add(&trials.subjects, finding));
        score
    })
    .collect()
}

impl DumpScore {
    fn new(dump: &'static DumpKind, precision: Precision) -> Self {
        DumpScore {
            dump,
            precision,
            runs: 0,
            killed: 0,
            inconclusive: Vec::new(),
            passed: Vec::new(),
            invisible: Vec::new(),
            hints: HintScore::default(),
            right: 0,
            false_alarms: Vec::new(),
            right_inconclusive: 0,
        }
    }

    fn add(&mut self, subjects: &Subjects, finding: &Finding) {
        let own = |dump: &DumpKind, precision| dump.is(self.dump) && precision == self.precision;
        match finding {
            Finding::Kill(kill) if own(kill.dump, kill.precision) => {
                let mutant = subjects.mutants[kill.mutant];
                match mutant.class {
                    Class::Structural => self.add_wrong(mutant.id, kill),
                    // such a dump holds only what it has right
                    Class::Equivalent if !self.dump.is(&ALL) => {
                        self.add_right(mutant.id, &kill.case, kill.outcome, kill.named);
                    }
                    Class::Equivalent | Class::Precision => {}
                }
            }
            Finding::Pass(pass) if own(pass.dump, pass.precision) => {
                let benign = subjects.benign[pass.benign].id;
                self.add_right(benign, &pass.case, pass.outcome, pass.flagged.as_deref());
            }
            _ => {}
        }
    }

    fn add_wrong(&mut self, mutant: &'static str, kill: &Kill) {
        self.runs += 1;
        kill.hinted.into_iter().for_each(|hinted| self.hints.add(hinted));
        let seen = kill.moved.is_some_and(|moved| moved.budgets > 1.0);
        let survivors = match kill.outcome {
            Outcome::Killed => {
                self.killed += 1;
                return;
            }
            Outcome::Inconclusive => &mut self.inconclusive,
            Outcome::Passed if seen => &mut self.passed,
            Outcome::Passed => &mut self.invisible,
        };
        survivors.push(Survivor { mutant, case: kill.case.clone(), moved: kill.moved });
    }

    fn add_right(&mut self, who: &str, case: &str, outcome: Outcome, at: Option<&str>) {
        self.right += 1;
        match outcome {
            Outcome::Killed => self.false_alarms.push(format!("{who} on {case}: {}", at.unwrap_or_default())),
            Outcome::Inconclusive => self.right_inconclusive += 1,
            Outcome::Passed => {}
        }
    }
}
