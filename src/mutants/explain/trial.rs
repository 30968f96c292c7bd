//! One dump against many programs: what each program makes of the dump's own values, stage by stage.

use dsv2_metrics::Metrics;
use dsv2_reference::stage::Stage;
use indexmap::IndexMap;

use crate::backend::{Backend, Reference, Settings};
use crate::budget::{Budgets, part};
use crate::case::Case;
use crate::judge::routing::elsewhere;
use crate::local::usable;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::mutants::{Mutant, Variant};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::{Values, fit};

/// How many times its budget a stage may be off that a program explains: what comes before the stage in the program may
/// carry more rounding than it does in the reference.
const SLACK: f64 = 2.0;

/// A dump that is held against programs.
pub struct Trials<'a> {
    case: &'a Case,
    candidate: &'a Trace,
    /// What of it can stand in for the model's own values.
    teacher: Trace,
    budgets: &'a Budgets,
    rows: &'a ComparedRows,
    /// Where tokens go that the dump says nothing of, if something is assumed of them.
    choices: &'a Trace,
    weights: Wide<'a>,
}

/// How far the stages of a dump are from what a program computes, in forward order.
#[derive(Clone, Debug, Default)]
pub struct Distances(IndexMap<String, Distance>);

/// How far a stage is from what a program computes.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// Relative error in the Euclidean norm, or the part of the tokens that go to other experts.
    pub error: f64,
    /// The same in units of what the stage may be off, by the measure in which it comes out worst; a choice may not be off.
    pub ratio: f64,
}

impl Distance {
    const NOWHERE: Distance = Distance { error: f64::INFINITY, ratio: f64::INFINITY };

    /// Whether the program computes the stage.
    pub fn fits(&self) -> bool {
        self.ratio <= SLACK
    }

    /// Whether the program computes the stage, and much better than the reference does: where an error is small, a program
    /// that hardly differs from the reference fits by chance.
    pub fn explains(&self, reference: Distance) -> bool {
        self.fits() && self.ratio <= reference.ratio / 2.0
    }
}

impl Distances {
    /// How far a stage is.
    pub fn get(&self, stage: &str) -> Distance {
        self.0.get(stage).copied().unwrap_or(Distance::NOWHERE)
    }

    /// The stages that the program does not compute, in forward order.
    pub fn wrong(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, distance)| !distance.fits()).map(|(stage, _)| stage.as_str())
    }

    /// Whether the program computes all that the dump holds.
    pub fn fit(&self) -> bool {
        self.wrong().next().is_none()
    }

    /// How much is left to explain: by how many orders of magnitude the stages are off, all together.
    pub fn left(&self) -> f64 {
        self.0.values().map(|distance| distance.ratio.clamp(1.0, 1e12).ln()).sum()
    }
}

impl<'a> Trials<'a> {
    /// Of `candidate`, whose stages may be as far off as `budgets` says. `model` holds the model's stages in their shapes.
    pub fn new(
        (case, candidate, model): (&'a Case, &'a Trace, &Trace),
        budgets: &'a Budgets,
        rows: &'a ComparedRows,
        choices: &'a Trace,
    ) -> Self {
        let teacher = usable(candidate, model, &case.config, rows);
        Trials { case, candidate, teacher, budgets, rows, choices, weights: Wide::new(case) }
    }

    /// The model and its inputs.
    pub fn case(&self) -> &'a Case {
        self.case
    }

    /// Whether the dump holds a stage from which others can be computed.
    pub fn held(&self, stage: &str) -> bool {
        self.teacher.get(stage).is_some()
    }

    /// How far the dump is from what the reference computes with these mutants in it.
    pub fn distances(&self, mutants: &[&Mutant]) -> Distances {
        let variants: Vec<&Variant> = mutants.iter().map(|mutant| &mutant.variant).collect();
        let free = self.run(variants.clone(), None);
        if free.fit() || self.choices.is_empty() {
            return free;
        }
        let replayed = self.run(variants, Some(self.choices));
        if replayed.left() < free.left() { replayed } else { free }
    }

    fn run(&self, variants: Vec<&Variant>, replay: Option<&Trace>) -> Distances {
        let held = |name: &str| self.candidate.get(name).is_some();
        let settings = Settings {
            precision: Precision::F64,
            stages: Some(&held),
            teacher: Some(&self.teacher),
            replay,
            ..Settings::default()
        };
        // What cannot be run explains nothing.
        let tap = Planted::all(variants, &self.weights, Precision::F64).map(|tap| tap.taught(&self.teacher));
        let trace = tap.and_then(|mut tap| Reference.run(self.case, &settings, &mut tap)).unwrap_or_default();
        let distance = |(name, want): (&str, &Values)| {
            let of = self.candidate.get(name).map_or(Distance::NOWHERE, |got| self.distance(name, got, want));
            (name.to_owned(), of)
        };
        let mut distances = Distances(trace.iter().map(distance).collect());
        if trace.is_empty() {
            distances.0.extend(self.candidate.iter().map(|(name, _)| (name.to_owned(), Distance::NOWHERE)));
        }
        distances
    }

    fn distance(&self, name: &str, got: &Values, want: &Values) -> Distance {
        if let (Some(got), Some(want)) = (got.index(), want.index()) {
            let rows = Stage::parse(name).and_then(|stage| self.rows.of_stage(&stage, want.shape()));
            let Some(got) = fit(got, want.shape()) else { return Distance::NOWHERE };
            let error = if want.ndim() == 0 { 0.0 } else { elsewhere(&got, want, rows.as_deref()) };
            return Distance { error, ratio: if error == 0.0 { 0.0 } else { f64::INFINITY } };
        }
        let Some(compared) = self.rows.measure(name, got, want) else { return Distance::NOWHERE };
        if compared.nonfinite.is_some() {
            return Distance::NOWHERE;
        }
        let Some(budget) = self.budgets.get(name) else { return Distance { error: 0.0, ratio: 0.0 } };
        Distance { error: compared.metrics.l2, ratio: ratio(compared.metrics, budget) }
    }
}

/// The largest part of its budget that a measure takes; no error takes none of it.
fn ratio(error: Metrics, budget: Metrics) -> f64 {
    // a comparison that is no number is no fit
    error
        .zip(&budget, part)
        .values()
        .into_iter()
        .fold(0.0, |worst, part| if part.is_nan() { f64::INFINITY } else { worst.max(part) })
}
