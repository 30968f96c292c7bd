//! The mutation score: which mutants the judge catches, where, and by how much; and whom it accuses wrongly.

pub mod report;
mod summary;
mod trials;

pub use summary::{BenignScore, InPrecision, MutantScore, Score, Totals};
pub use trials::{Trials, run};

use crate::mutants::benign::Benign;
use crate::mutants::{Class, Mutant};
use crate::precision::Precision;

/// Structural mutants that may survive in a type, and why: none.
pub const ALLOWED: &[(&str, Precision, &str)] = &[];

/// One mutant on one case in one type.
#[derive(Clone, Debug)]
pub struct Kill {
    /// The mutant's index in the trials.
    pub mutant: usize,
    /// The case.
    pub case: String,
    /// The type.
    pub precision: Precision,
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

/// Whether a stage is an output: of attention, of a layer, of the model.
pub fn is_output(stage: &str) -> bool {
    let inside = ["self_attn.q", "self_attn.k", "attn_scores", "attn_weights", "rotary_emb", "past_key_values"];
    !inside.iter().any(|part| stage.contains(part))
}

/// Whether a mutant must be found in a type: structural ones in each, imprecise ones where there is precision to lose.
pub fn must_die(mutant: &Mutant, precision: Precision) -> bool {
    match mutant.class {
        Class::Structural => !ALLOWED.iter().any(|(id, of, _)| *id == mutant.id && *of == precision),
        Class::Precision => matches!(precision, Precision::F64 | Precision::F32),
        Class::Equivalent => false,
    }
}
