//! What came of a workload: for programs as JSON, for people as a table.

use comfy_table::Cell;
use dsv2_metrics::{Element, Metrics};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::BatchInvariance;
use crate::budget::part;
use crate::judge::Disposition;
use crate::report::model::{ElementReport, Errors};
use crate::table;

/// What came of one workload.
#[derive(Clone, Debug, Serialize)]
pub struct KernelReport {
    /// The operator.
    pub operator: String,
    /// The same with its sizes.
    pub instance: String,
    /// The workload.
    pub workload: String,
    /// `pass`, `fail`, or `not-judged` if the first output was not returned.
    pub verdict: KernelVerdict,
    /// Each output of the contract.
    pub outputs: Vec<OutputVerdict>,
    /// What was returned under names that the contract does not have.
    pub unknown: Vec<String>,
    /// Whether rows that were given alone have the bits that they have among others; `None` if that was not tried.
    pub batch_invariance: Option<BatchInvariance>,
}

/// What is said of a workload as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KernelVerdict {
    /// Every output that was returned is right, the first among them.
    Pass,
    /// An output is wrong.
    Fail,
    /// The first output was not returned.
    NotJudged,
}

/// What is said of one output.
#[derive(Clone, Debug, Serialize)]
pub struct OutputVerdict {
    /// Its name.
    pub output: String,
    /// What became of it.
    pub disposition: Disposition,
    /// Its error.
    #[serde(serialize_with = "metrics")]
    pub error: Option<Metrics>,
    /// What that may be.
    #[serde(serialize_with = "metrics")]
    pub budget: Option<Metrics>,
    /// The element that is furthest off, or the one that decided.
    #[serde(serialize_with = "element")]
    pub worst: Option<Element>,
    /// What is wrong, if no number says it.
    pub note: Option<String>,
}

impl OutputVerdict {
    pub(super) fn new(output: &str, disposition: Disposition) -> Self {
        OutputVerdict { output: output.to_owned(), disposition, error: None, budget: None, worst: None, note: None }
    }

    pub(super) fn noted(output: &str, disposition: Disposition, note: String) -> Self {
        OutputVerdict { note: Some(note), ..Self::new(output, disposition) }
    }

    /// How much of its budget it takes, of the measure that takes most.
    pub fn ratio(&self) -> Option<f64> {
        let (error, budget) = (self.error?.values(), self.budget?.values());
        error.into_iter().zip(budget).map(|(error, budget)| part(error, budget)).reduce(f64::max)
    }
}

impl KernelReport {
    /// A table of several workloads: a line for each output.
    pub fn table(reports: &[KernelReport], styled: bool) -> String {
        let mut lines = table::table(styled, &["workload", "output", "verdict", "of budget", "l2", "may be", "worst"]);
        for report in reports {
            for output in &report.outputs {
                let disposition = serde_json::to_value(output.disposition).ok();
                let word = disposition.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_owned();
                let number = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.1e}"));
                let worst = output.worst.as_ref().map(|at| format!("{:?}: {:.6} for {:.6}", at.index, at.got, at.want));
                lines.add_row(vec![
                    Cell::new(&report.workload),
                    Cell::new(&output.output),
                    table::mark(word, output.disposition.fails(), output.disposition.compared()),
                    Cell::new(output.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"))),
                    Cell::new(number(output.error.map(|error| error.l2))),
                    Cell::new(number(output.budget.map(|budget| budget.l2))),
                    Cell::new(output.note.clone().or(worst).unwrap_or_default()),
                ]);
            }
        }
        let of = |verdict| reports.iter().filter(|report| report.verdict == verdict).count();
        let (pass, fail, not) = (of(KernelVerdict::Pass), of(KernelVerdict::Fail), of(KernelVerdict::NotJudged));
        let unknown: Vec<&str> = reports.iter().flat_map(|report| report.unknown.iter().map(String::as_str)).collect();
        let unknown = if unknown.is_empty() {
            String::new()
        } else {
            format!("\nnot outputs of the contract: {}", dsv2_foreign::list(unknown, 8))
        };
        let invariance = BatchInvariance::summary(reports).map(|line| format!("\n{line}")).unwrap_or_default();
        format!("{lines}\n\n{pass} passed, {fail} failed, {not} not judged{unknown}{invariance}")
    }
}

/// As report.json has errors: JSON has no number that is not finite.
fn metrics<S: Serializer>(metrics: &Option<Metrics>, serializer: S) -> Result<S::Ok, S::Error> {
    metrics.map(Errors::from).serialize(serializer)
}

/// As report.json has elements.
fn element<S: Serializer>(element: &Option<Element>, serializer: S) -> Result<S::Ok, S::Error> {
    element.as_ref().map(ElementReport::from).serialize(serializer)
}
