//! Adding up.

use std::collections::BTreeMap;

use super::by_dump::{DumpScore, by_dump};
use super::dumps::ALL;
use super::{Finding, HintScore, Kill, Pass, Trials, module, must_die};
use crate::mutants::benign::Benign;
use crate::mutants::{Class, Mutant};
use crate::precision::Precision;

/// What became of a mutant in one type, over all cases.
#[derive(Clone, Debug)]
pub struct InPrecision {
    /// The type.
    pub precision: Precision,
    /// On how many cases it was found.
    pub killed: usize,
    /// On how many cases it changed anything.
    pub cases: usize,
    /// The largest ratio of an error to its budget at the stage that was named first, over the cases.
    pub best: f64,
    /// How often the first stage named was of the right kind, of the cases where one was.
    pub right_stage: usize,
    /// How often it was in the right module.
    pub right_module: usize,
    /// On how many cases it was found with nothing but outputs to go by.
    pub seen_at_outputs: usize,
}

/// What became of a mutant.
pub struct MutantScore {
    /// The mutant.
    pub mutant: &'static Mutant,
    /// Type by type; none, if it applies to no case.
    pub in_precision: Vec<InPrecision>,
    /// The stages that were wrongly named first: case, type, stage planted, stage named.
    pub misnamed: Vec<(String, Precision, &'static str, &'static str)>,
}

impl MutantScore {
    /// The types in which it survives though it must not.
    pub fn survives(&self) -> impl Iterator<Item = Precision> {
        let survives = |of: &&InPrecision| of.killed == 0 && must_die(self.mutant, of.precision);
        self.in_precision.iter().filter(survives).map(|of| of.precision)
    }

    /// Whether it should not be seen at the outputs, and is.
    pub fn overreaches(&self) -> bool {
        self.in_precision.iter().any(|of| of.seen_at_outputs > 0)
    }
}

/// What became of a benign variant.
pub struct BenignScore {
    /// The variant.
    pub benign: &'static Benign,
    /// On how many cases and types it ran.
    pub runs: usize,
    /// How much of its budget the worst stage of all takes.
    pub worst: f64,
    /// Where: case and type.
    pub worst_at: String,
    /// The runs that were flagged: case, type, stage.
    pub flagged: Vec<String>,
}

/// The mutation score.
pub struct Score {
    /// The mutants that apply to a case, in the order of the catalogue, as dumps of every stage show them.
    pub mutants: Vec<MutantScore>,
    /// The benign variants, as dumps of every stage show them.
    pub benign: Vec<BenignScore>,
    /// Of each module and type, the mutant that is nearest to survival, with its ratio; structural ones only.
    pub weakest: BTreeMap<(&'static str, String), (&'static str, f64)>,
    /// What came of each kind of dump, type by type.
    pub dumps: Vec<DumpScore>,
}

/// The sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Mutants that have to be found, once for each type.
    pub required: usize,
    /// Those of them that were.
    pub killed: usize,
    /// Runs in which a stage was named.
    pub named: usize,
    /// Those in which it was of the right kind.
    pub right_stage: usize,
    /// Those in which it was in the right module.
    pub right_module: usize,
    /// Equivalent mutants that were flagged at the outputs.
    pub overreaches: usize,
    /// Runs of benign variants.
    pub benign_runs: usize,
    /// Those that were flagged.
    pub false_alarms: usize,
}

impl Totals {
    /// Whether the judge is good enough: all are found, the stage named is right in 95 of 100 runs, the module always, and
    /// nobody is accused wrongly.
    pub fn good(&self) -> bool {
        self.killed == self.required
            && self.right_stage * 100 >= self.named * 95
            && self.right_module == self.named
            && self.overreaches == 0
            && self.false_alarms == 0
    }
}

impl Score {
    /// Adds up what was found in `trials`.
    pub fn new(trials: &Trials<'_>, findings: &[Finding]) -> Self {
        let (mut kills, mut passes) = (Vec::new(), Vec::new());
        for finding in findings {
            match finding {
                Finding::Kill(kill) if kill.dump.is(&ALL) => kills.push(kill),
                Finding::Pass(pass) if pass.dump.is(&ALL) => passes.push(pass),
                _ => {}
            }
        }
        let scores = trials.subjects.mutants.iter().enumerate().map(|(i, mutant)| mutant_score(mutant, i, &kills));
        let mutants: Vec<_> = scores.filter(|score| !score.in_precision.is_empty()).collect();
        let scores = trials.subjects.benign.iter().enumerate().map(|(i, benign)| benign_score(benign, i, &passes));
        let benign = scores.filter(|score| score.runs > 0).collect();
        let mut weakest = BTreeMap::new();
        for score in mutants.iter().filter(|score| score.mutant.class == Class::Structural) {
            for of in &score.in_precision {
                let key = (module(score.mutant.stage()), of.precision.to_string());
                let least = weakest.entry(key).or_insert((score.mutant.id, of.best));
                if of.best < least.1 {
                    *least = (score.mutant.id, of.best);
                }
            }
        }
        Score { mutants, benign, weakest, dumps: by_dump(trials, findings) }
    }

    /// Whether the judge is good enough, in dumps of every stage and in all others.
    pub fn good(&self) -> bool {
        self.totals().good() && self.dumps.iter().all(DumpScore::good) && self.hints().good()
    }

    /// What became of the hints, over all kinds of dump and types.
    pub fn hints(&self) -> HintScore {
        self.dumps.iter().map(|of| of.hints).fold(HintScore::default(), HintScore::and)
    }

    /// The sums over dumps of every stage.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for score in &self.mutants {
            for of in &score.in_precision {
                let required = must_die(score.mutant, of.precision);
                totals.required += usize::from(required);
                totals.killed += usize::from(required && of.killed > 0);
                totals.named += of.killed;
                totals.right_stage += of.right_stage;
                totals.right_module += of.right_module;
            }
            totals.overreaches += usize::from(score.overreaches());
        }
        totals.benign_runs = self.benign.iter().map(|score| score.runs).sum();
        totals.false_alarms = self.benign.iter().map(|score| score.flagged.len()).sum();
        totals
    }
}

fn mutant_score(mutant: &'static Mutant, place: usize, kills: &[&Kill]) -> MutantScore {
    let own: Vec<&&Kill> = kills.iter().filter(|kill| kill.mutant == place).collect();
    let mut precisions: Vec<Precision> = Vec::new();
    for kill in &own {
        if !precisions.contains(&kill.precision) {
            precisions.push(kill.precision);
        }
    }
    let in_precision = precisions.into_iter().map(|precision| {
        let of: Vec<_> = own.iter().filter(|kill| kill.precision == precision).collect();
        let count = |holds: &dyn Fn(&Kill) -> bool| of.iter().filter(|kill| holds(kill)).count();
        InPrecision {
            precision,
            killed: count(&|kill| kill.named.is_some()),
            cases: of.len(),
            best: of.iter().map(|kill| kill.ratio).fold(0.0, f64::max),
            right_stage: count(&|kill| kill.right_stage(mutant.class)),
            right_module: count(&|kill| kill.right_module(mutant.class)),
            seen_at_outputs: count(&|kill| kill.seen_at_outputs),
        }
    });
    let misnamed = own.iter().filter(|kill| kill.named.is_some() && !kill.right_stage(mutant.class));
    let misnamed = misnamed
        .map(|kill| {
            (
                kill.case.clone(),
                kill.precision,
                kill.planted.first().copied().unwrap_or_default(),
                kill.named.unwrap_or_default(),
            )
        })
        .collect();
    MutantScore { mutant, in_precision: in_precision.collect(), misnamed }
}

fn benign_score(benign: &'static Benign, place: usize, passes: &[&Pass]) -> BenignScore {
    let own: Vec<&&Pass> = passes.iter().filter(|pass| pass.benign == place).collect();
    let at = |pass: &Pass| format!("{} {}", pass.case, pass.precision);
    let worst = own.iter().max_by(|a, b| a.ratio.total_cmp(&b.ratio));
    BenignScore {
        benign,
        runs: own.len(),
        worst: worst.map_or(0.0, |pass| pass.ratio),
        worst_at: worst.map(|pass| at(pass)).unwrap_or_default(),
        flagged: own.iter().filter_map(|pass| Some(format!("{} {}", at(pass), pass.flagged.as_ref()?))).collect(),
    }
}
