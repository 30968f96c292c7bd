//! The gate: is a newer run worse than an older one, by more than chance?
//!
//! A time is worse if its interval lies beyond the older one's *and* the ratio of the medians exceeds
//!
//! ```text
//! (1 + noise) * max(1, control_new / control_old)
//! ```
//!
//! where noise is the larger of the two runs' own, and the control is the load that never changes: if that has become
//! slower, so has the machine. Counts and bytes are exact, so any step to the worse counts. Between two different machines
//! only these are judged.

use std::fmt;

use crate::{Better, Measurement, Results, Run};

/// Begins the ids of the loads that never change.
pub const CONTROL: &str = "ceilings/";

/// What became of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No difference beyond chance.
    Same,
    /// Better beyond chance.
    Better,
    /// Worse beyond chance.
    Worse,
    /// The older file has it, the newer one not.
    Gone,
    /// The newer file has it, the older one not.
    New,
    /// Timed on another machine, or no better and no worse: not judged.
    NotJudged,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Same => "same",
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Gone => "GONE",
            Verdict::New => "new",
            Verdict::NotJudged => "not judged",
        })
    }
}

/// One measurement of two files.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub id: String,
    /// Of its values.
    pub unit: String,
    /// The older value.
    pub old: Option<f64>,
    /// The newer value.
    pub new: Option<f64>,
    /// How many times worse a value may be and pass: 1 for exact ones.
    pub allowed: f64,
    /// What to think of it.
    pub verdict: Verdict,
}

impl Change {
    /// new / old.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.new? / self.old?)
    }

    /// Whether it must not pass.
    pub fn is_regression(&self) -> bool {
        matches!(self.verdict, Verdict::Worse | Verdict::Gone)
    }
}

/// Every measurement of either file, in the order of the older one, then the new ones. What is gone counts only if a run of
/// the same command and profile is in the newer file: nobody has to repeat everything.
pub fn compare(old: &Results, new: &Results) -> Vec<Change> {
    let mut changes = Vec::new();
    for (run, measurement) in each(old) {
        let found = each(new).find(|(_, other)| other.id == measurement.id);
        if found.is_none() && !new.runs.iter().any(|other| other.command == run.command && other.profile == run.profile)
        {
            continue;
        }
        changes.push(change(measurement, run, found));
    }
    for (_, measurement) in each(new) {
        if !old.measurements().any(|other| other.id == measurement.id) {
            let Measurement { id, unit, value, .. } = measurement.clone();
            changes.push(Change { id, unit, old: None, new: Some(value), allowed: 1.0, verdict: Verdict::New });
        }
    }
    changes
}

fn each(results: &Results) -> impl Iterator<Item = (&Run, &Measurement)> {
    results.runs.iter().flat_map(|run| run.measurements.iter().map(move |measurement| (run, measurement)))
}

fn change(old: &Measurement, old_run: &Run, found: Option<(&Run, &Measurement)>) -> Change {
    let mut change = Change {
        id: old.id.clone(),
        unit: old.unit.clone(),
        old: Some(old.value),
        new: None,
        allowed: 1.0,
        verdict: Verdict::Gone,
    };
    let Some((new_run, new)) = found else { return change };
    change.new = Some(new.value);
    if !(old.exact && new.exact) {
        change.allowed = (1.0 + old_run.noise.max(new_run.noise)) * slowdown(old_run, new_run).max(1.0);
    }
    let judged = old.exact && new.exact || old_run.machine == new_run.machine && !old.id.starts_with(CONTROL);
    change.verdict = match old.better {
        Better::Less if judged => verdict(old, new, change.allowed),
        Better::More if judged => verdict(&turned(old), &turned(new), change.allowed),
        _ => Verdict::NotJudged,
    };
    change
}

/// Where less is better.
fn verdict(old: &Measurement, new: &Measurement, allowed: f64) -> Verdict {
    if new.low > old.high && new.value > old.value * allowed {
        Verdict::Worse
    } else if new.high < old.low && new.value * allowed < old.value {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

/// A rate as a time.
fn turned(rate: &Measurement) -> Measurement {
    Measurement { value: 1.0 / rate.value, low: 1.0 / rate.high, high: 1.0 / rate.low, ..rate.clone() }
}

/// How many times slower the loads that never change have become, at worst; 1 if the files have none in common.
fn slowdown(old: &Run, new: &Run) -> f64 {
    let ratios = old.measurements.iter().filter(|measurement| measurement.id.starts_with(CONTROL)).filter_map(|old| {
        let new = new.measurements.iter().find(|new| new.id == old.id)?;
        Some(if old.better == Better::More { old.value / new.value } else { new.value / old.value })
    });
    ratios.reduce(f64::max).unwrap_or(1.0)
}
