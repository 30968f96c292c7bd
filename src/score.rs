//! The mutation score: which mutants the judge catches, where, and by how much; and whom it accuses wrongly. All of that for
//! dumps of every stage, and for those that programs really give ([`dumps`]).

mod by_dump;
pub mod dumps;
mod hints;
mod moved;
pub mod need;
mod on_case;
pub mod report;
mod summary;
mod trials;

pub use by_dump::{DumpScore, Survivor};
pub use hints::{HintScore, Hinted};
pub use moved::Moved;
pub use summary::{BenignScore, InPrecision, MutantScore, Score, Totals};
pub use trials::{Trials, run};

use crate::check::{Checked, Conclusion};
use crate::mutants::benign::Benign;
use crate::mutants::{Class, Mutant};
use crate::precision::Precision;
use dumps::DumpKind;

/// Structural mutants that may survive in a type, and why: none.
pub const ALLOWED: &[(&str, Precision, &str)] = &[];

/// What the judge says of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// That it is wrong.
    Killed,
    /// That it cannot tell.
    Inconclusive,
    /// That it is right.
    Passed,
}

impl Outcome {
    fn of(checked: &Checked) -> Self {
        match checked.conclusion() {
            Conclusion::Pass => Outcome::Passed,
            Conclusion::Fail => Outcome::Killed,
            Conclusion::Inconclusive | Conclusion::NotJudged => Outcome::Inconclusive,
        }
    }
}

/// One mutant on one case in one type, in one kind of dump.
#[derive(Clone, Debug)]
pub struct Kill {
    /// The mutant's index in the trials.
    pub mutant: usize,
    /// The case.
    pub case: String,
    /// The type.
    pub precision: Precision,
    /// The kind of dump.
    pub dump: &'static DumpKind,
    /// What the judge says.
    pub outcome: Outcome,
    /// How far it moves what the dump holds, if it is structural and passes.
    pub moved: Option<Moved>,
    /// What became of the hint, if it is structural and found, and hints were asked for.
    pub hinted: Option<Hinted>,
    /// The kinds of stage at which the mutant changed something, the first one first.
    pub planted: Vec<&'static str>,
    /// The kind of the first stage that failed, if one did.
    pub named: Option<&'static str>,
    /// How many times its budget the error is there (infinite, if it is no matter of size).
    pub ratio: f64,
    /// Whether a stage failed when only outputs were shown.
    pub seen_at_outputs: bool,
}

impl Kill {
    /// Whether the first stage that failed is of the right kind: where the mutant begins. One that only rounds too much is
    /// no more wrong there than elsewhere, and any kind of stage will do at which it rounds too much.
    pub fn right_stage(&self, class: Class) -> bool {
        self.right(class, |named, planted| named == planted)
    }

    /// Whether it is in the right module at least.
    pub fn right_module(&self, class: Class) -> bool {
        self.right(class, |named, planted| module(named) == module(planted))
    }

    fn right(&self, class: Class, same: impl Fn(&str, &str) -> bool) -> bool {
        let begins = if class == Class::Precision { self.planted.len() } else { 1 };
        self.named.is_some_and(|named| self.planted.iter().take(begins).any(|planted| same(named, planted)))
    }
}

/// One benign variant on one case in one type.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The variant's index in the trials.
    pub benign: usize,
    /// The case.
    pub case: String,
    /// The type.
    pub precision: Precision,
    /// The kind of dump.
    pub dump: &'static DumpKind,
    /// What the judge says.
    pub outcome: Outcome,
    /// The stage that was flagged, if one was, and why.
    pub flagged: Option<String>,
    /// How much of its budget the worst stage takes.
    pub ratio: f64,
}

/// What is found out about a case.
#[derive(Clone, Debug)]
pub enum Finding {
    /// About a mutant.
    Kill(Kill),
    /// About a benign variant.
    Pass(Pass),
}

/// What is tried.
pub struct Subjects {
    /// The mutants.
    pub mutants: Vec<&'static Mutant>,
    /// The benign variants.
    pub benign: Vec<&'static Benign>,
}

/// The module that a kind of stage belongs to.
pub fn module(kind: &str) -> &'static str {
    let parts = [
        ("rotary_emb", "rotary tables"),
        ("self_attn", "attention"),
        ("past_key_values", "attention"),
        (".mlp.gate.", "router"),
        (".mlp", "feed-forward"),
        ("norm", "norms"),
        ("model.", "residual stream"),
    ];
    parts.iter().find(|(part, _)| kind.contains(part)).map_or("head", |(_, module)| module)
}

/// Whether a mutant must be found in a type: structural ones in each, imprecise ones where there is precision to lose.
pub fn must_die(mutant: &Mutant, precision: Precision) -> bool {
    match mutant.class {
        Class::Structural => !ALLOWED.iter().any(|(id, of, _)| *id == mutant.id && *of == precision),
        Class::Precision => matches!(precision, Precision::F64 | Precision::F32),
        Class::Equivalent => false,
    }
}
