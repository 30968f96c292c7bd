//! The file of results.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use dsv2_foreign::Text;
use dsv2_reference::file::{self, unfinished::Unfinished};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest file of results that is read, in bytes; that of all benchmarks has half a million.
pub const LONGEST: u64 = 32 << 20;

/// The only version of the file so far.
const FORMAT: u32 = 1;

/// How large the numbers of a plot may be: what is finer or farther is no measurement, and dividing an axis of such numbers
/// never ends.
pub(crate) const PLOTTED: RangeInclusive<f64> = 1e-30..=1e30;

/// What one or several programs measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    format: u32,
    /// One for each program that ran.
    pub runs: Vec<Run>,
}

/// What one program measured, in one go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The command that makes it again.
    pub command: String,
    /// Of this project; a `+` at its end says that files had been changed.
    pub commit: String,
    /// When it began: RFC 3339, UTC.
    pub date: String,
    /// `full` or `quick`.
    pub profile: String,
    /// On what.
    pub machine: Machine,
    /// How long it took.
    pub seconds: f64,
    /// What took part, in which version and with which settings.
    pub versions: BTreeMap<String, String>,
    /// How far a load that never changes strayed in the course of the run: the range of its times / their median. `cargo
    /// bench` leaves out the largest and the least time: one disturbed time must not make the gate lenient.
    pub noise: f64,
    /// All numbers that a later run may be compared with.
    pub measurements: Vec<Measurement>,
    /// For the report.
    pub tables: Vec<Table>,
    /// For the report.
    pub plots: Vec<Plot>,
    /// What could not be measured here.
    pub not_run: Vec<NotRun>,
}

/// What a program ran on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// How many threads were used.
    pub threads: usize,
    /// Memory, in 10^9 bytes.
    pub memory_gb: f64,
    /// The GPU's name, if one was used.
    pub gpu: Option<String>,
}

/// One number, or the median of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// What was measured, such as `decode/mid/absorbed/context=512/batch=1`; the same in every run.
    pub id: String,
    /// Of the value: `s`, `B`, `B/s`, ...; empty for a count or a ratio.
    pub unit: String,
    /// Which way is better.
    pub better: Better,
    /// The median.
    pub value: f64,
    /// An interval that holds the median.
    pub low: f64,
    /// Its other end.
    pub high: f64,
    /// Of how many.
    pub samples: usize,
    /// Whether it is a count that is the same in each run, so that any change is one of the program.
    pub exact: bool,
}

/// Which values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Smaller ones: times, bytes.
    Less,
    /// Larger ones: rates.
    More,
    /// It says something about the run and is not compared: a number of distinct experts.
    Neither,
}

/// A table of the report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Which part of the report it belongs to.
    pub section: String,
    /// What it shows.
    pub title: String,
    /// Heads of columns.
    pub columns: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
    /// What a reader must know to read it.
    pub notes: Vec<String>,
}

/// A plot of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plot {
    /// Which part of the report it belongs to.
    pub section: String,
    /// What it shows.
    pub title: String,
    /// The name of its file, without `.svg`.
    pub file: String,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// Lines.
    pub series: Vec<Series>,
}

/// An axis of a plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// What it counts, with its unit.
    pub label: String,
    /// Whether equal steps are equal ratios.
    pub log: bool,
}

/// A line of a plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Whose it is.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// Something that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotRun {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
}

impl Measurement {
    /// A count, or bytes: the same in each run.
    pub fn exact(id: impl Into<String>, unit: &str, better: Better, value: f64) -> Self {
        Measurement { exact: true, ..Measurement::sampled(id, unit, better, [value; 3], 1) }
    }

    /// The median of some samples, between the ends of an interval that holds it.
    pub fn sampled(
        id: impl Into<String>,
        unit: &str,
        better: Better,
        [low, value, high]: [f64; 3],
        samples: usize,
    ) -> Self {
        Measurement { id: id.into(), unit: unit.into(), better, value, low, high, samples, exact: false }
    }
}

impl Results {
    /// Of some runs.
    pub fn new(runs: Vec<Run>) -> Self {
        Results { format: FORMAT, runs }
    }

    /// Reads a file, and refuses what no program of ours would write.
    ///
    /// # Errors
    /// If it cannot be read, is not one of results, holds a number that is none, or two measurements of the same id.
    pub fn read(path: &Path) -> Result<Self> {
        let text = file::read_text(path, LONGEST)?;
        let wrong = |expected: &str, found: String| Error::from(dsv2_reference::Error::file(path, expected, found));
        let results: Results =
            serde_json::from_str(&text).map_err(|error| wrong("results of benchmarks", error.to_string()))?;
        if results.format != FORMAT {
            return Err(wrong("format 1", results.format.to_string()));
        }
        let mut ids = BTreeSet::new();
        for measurement in results.measurements() {
            let Measurement { id, value, low, high, .. } = measurement;
            if !(low <= value && value <= high && *low >= 0.0 && high.is_finite()) {
                return Err(wrong(&format!("0 <= low <= value <= high of {id}"), format!("{low}, {value}, {high}")));
            }
            if !ids.insert(id) {
                return Err(wrong("each measurement once", format!("{id} twice")));
            }
        }
        if let Some(run) = results.runs.iter().find(|run| !(run.noise >= 0.0 && run.noise.is_finite())) {
            return Err(wrong("a noise of 0 or more", run.noise.to_string()));
        }
        for table in results.runs.iter().flat_map(|run| &run.tables) {
            if let Some(row) = table.rows.iter().find(|row| row.len() != table.columns.len()) {
                let expected = format!("{} cells in each row of {:?}", table.columns.len(), table.title);
                return Err(wrong(&expected, row.len().to_string()));
            }
        }
        for plot in results.runs.iter().flat_map(|run| &run.plots) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            if plot.file.is_empty() || !plot.file.chars().all(plain) {
                return Err(wrong("a plot's file named by letters, digits, - and _", format!("{:?}", plot.file)));
            }
            let values = plot.series.iter().flat_map(|series| &series.points).flat_map(|&(x, y)| [x, y]);
            if let Some(value) = values.into_iter().find(|value| *value != 0.0 && !PLOTTED.contains(&value.abs())) {
                let ends = format!("{:e} to {:e}", PLOTTED.start(), PLOTTED.end());
                return Err(wrong(
                    &format!("points of 0 or of the size of {ends} in {:?}", plot.title),
                    format!("{value:e}"),
                ));
            }
        }
        Ok(results)
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let new = Unfinished::beside(path)?;
        fs::write(new.path(), self.json().as_str()).map_err(Error::io(path, "write"))?;
        Ok(new.finish()?)
    }

    /// The content of the file.
    pub(crate) fn json(&self) -> Text {
        let text = serde_json::to_string_pretty(self).expect("numbers and texts");
        Text::json(&(text + "\n"))
    }

    /// Of all runs.
    pub fn measurements(&self) -> impl Iterator<Item = &Measurement> {
        self.runs.iter().flat_map(|run| &run.measurements)
    }
}
