//! Filling in a report: from verdicts and outcomes to plain data.

use std::collections::BTreeMap;

use dsv2_metrics::{Element, Metrics};
use dsv2_reference::stage::flow;

use super::{
    ChangeReport, CheckReport, Compared, DecidedBy, ElementReport, EndToEnd, Errors, ExplanationReport, Files,
    HintReport, LayoutReport, Metric, NearTies, Number, PassOrFail, Report, RunReport, Span, StageReport, VerifyReport,
    WaiverReport,
};
use crate::check::{self, AssumedTie, Checked, Hint, Recognised, Request};
use crate::judge::{Disposition, StageVerdict, Verdict};
use crate::mutants::explain::{Change, Explanation};
use crate::outcome::Waiver;
use crate::outcome::{Item, Outcome};
use crate::report::describe;

impl Report {
    /// As JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("plain data, whose keys are all text")
    }
}

impl CheckReport {
    /// Of what was asked and what came of it.
    pub fn new(request: &Request, checked: &Checked, files: Files) -> Self {
        let Checked { verdict, precision, unknown, layouts, assumed, near_ties, end_to_end, spans, .. } = checked;
        let stages: Vec<_> = verdict.stages.iter().map(StageReport::from).collect();
        let first = first_failure(&stages);
        let judged_by_itself = first.filter(|_| request.expected.is_none() && files.expected.is_none());
        let near_ties = near_ties.iter().map(NearTies::from).chain(assumed_ties(&checked.assumed_ties));
        let spans = spans.iter().map(|(stage, lacking)| Span { stage: stage.clone(), lacking: lacking.clone() });
        CheckReport {
            verdict: checked.conclusion(),
            inconclusive: checked.inconclusive.clone(),
            first_failing_stage: first.map(|stage| stage.stage.clone()),
            failure: first.map(describe::failure),
            computed_from: judged_by_itself.map(|stage| computed_from(stage, &stages, request)).unwrap_or_default(),
            files,
            dialect: request.case.dialect.to_string(),
            dtype: precision.to_string(),
            cache: request.cache.to_string(),
            compared: Compared::from(verdict),
            not_compared: not_compared(verdict),
            near_ties: near_ties.collect(),
            end_to_end: end_to_end.as_ref().map(EndToEnd::from),
            layouts: layouts.iter().map(LayoutReport::from).collect(),
            assumed: assumed.clone(),
            checkpoint: request.case.weights.notes(),
            unknown: unknown.clone(),
            spans: spans.collect(),
            hint: checked.hint.as_ref().map(HintReport::from),
            explanation: None,
            uncatchable: checked.uncatchable.iter().map(|mutant| (*mutant).to_owned()).collect(),
            stages,
        }
    }

    /// With what computes what the dump holds, which was asked for.
    #[must_use]
    pub fn explained(self, explanation: &[Explanation]) -> Self {
        let change = |Change { mutant, what, report }: &Change| ChangeReport {
            mutant: (*mutant).to_owned(),
            what: (*what).to_owned(),
            report: report.map(str::to_owned),
        };
        let explanation = explanation.iter().map(|found| ExplanationReport {
            changes: found.changes.iter().map(change).collect(),
            error: Number(found.error),
        });
        CheckReport { explanation: Some(explanation.collect()), ..self }
    }

    /// The stage that fails first.
    pub fn first_failure(&self) -> Option<&StageReport> {
        first_failure(&self.stages)
    }
}

fn not_compared(verdict: &Verdict) -> usize {
    verdict.stages.len() - verdict.compared()
}

fn first_failure(stages: &[StageReport]) -> Option<&StageReport> {
    stages.iter().find(|stage| stage.disposition.fails())
}

/// The near ties that were assumed, stage by stage.
fn assumed_ties(ties: &[AssumedTie]) -> Vec<NearTies> {
    let mut stages = Vec::<NearTies>::new();
    for AssumedTie { stage, sequence, token, .. } in ties {
        if stages.last().is_none_or(|last| last.stage != *stage) {
            stages.push(NearTies { stage: stage.clone(), tokens: 0, assumed: true, at: Vec::new() });
        }
        if let Some(last) = stages.last_mut() {
            last.tokens += 1;
            last.at.push([*sequence, *token]);
        }
    }
    stages
}

/// The stages of the dump that `stage` was judged from, of all `stages` of the model.
fn computed_from(stage: &StageReport, stages: &[StageReport], request: &Request) -> Vec<String> {
    use Disposition::{Missing, NotHeld, WrongShape};
    let all: BTreeMap<&str, Disposition> = stages.iter().map(|s| (s.stage.as_str(), s.disposition)).collect();
    let usable = |name: &str| all.get(name).is_some_and(|held| !matches!(held, NotHeld | Missing | WrongShape));
    let sources = flow::sources(&stage.stage, &request.case.config, |name| all.contains_key(name), usable);
    stages.iter().map(|s| &s.stage).filter(|name| sources.held.contains(*name)).cloned().collect()
}

impl VerifyReport {
    /// Of all runs.
    pub fn new(items: &[Item]) -> Self {
        VerifyReport {
            verdict: if items.iter().any(|item| item.outcome.fails()) { PassOrFail::Fail } else { PassOrFail::Pass },
            runs: items.iter().map(RunReport::from).collect(),
        }
    }
}

impl RunReport {
    /// The stage to show for the whole: where the failure begins, or the one that takes most of its budget.
    pub fn telling_stage(&self) -> Option<&StageReport> {
        let judged = self.stages.iter().filter(|stage| stage.ratio.is_some());
        let worst = judged.max_by(|a, b| a.part().total_cmp(&b.part()));
        first_failure(&self.stages).or(worst)
    }
}

impl From<&Item> for RunReport {
    fn from(item: &Item) -> Self {
        let Item { case, backend, precision, outcome, elapsed } = item;
        let verdict = outcome.verdict();
        let stages: Vec<_> = verdict.map_or(&[][..], |verdict| &verdict.stages).iter().map(StageReport::from).collect();
        RunReport {
            case: case.clone(),
            backend: (*backend).to_owned(),
            dtype: precision.to_string(),
            conclusion: outcome.conclusion(),
            reason: outcome.reason().map(str::to_owned),
            waiver: waiver(outcome).map(WaiverReport::from),
            first_failing_stage: first_failure(&stages).map(|stage| stage.stage.clone()),
            failure: describe::outcome_failure(outcome, first_failure(&stages)),
            seconds: elapsed.as_secs_f64(),
            compared: verdict.map(Compared::from).unwrap_or_default(),
            not_compared: verdict.map_or(0, not_compared),
            stages,
        }
    }
}

fn waiver(outcome: &Outcome) -> Option<&Waiver> {
    match outcome {
        Outcome::Waived(_, waiver) => Some(waiver),
        _ => None,
    }
}

impl StageReport {
    /// Which part of its budget the stage uses; 0 if that is not known.
    pub fn part(&self) -> f64 {
        self.ratio.map_or(0.0, |ratio| ratio.0)
    }

    /// Whether what is shown of it is equality: it must be bit-identical, or it is a choice and not a number.
    pub fn is_exact(&self) -> bool {
        let none = Errors::from(Metrics::default());
        self.disposition.compared()
            && self.decided_by != Some(DecidedBy::Propagated)
            && self.budget.is_none_or(|budget| budget == none)
    }

    /// The numbers to show: of the measure by which the stage is worst.
    pub fn shown(&self) -> Option<Shown> {
        let metric = self.metric?;
        let of = |errors: Option<Errors>| errors.map(|errors| errors.by(metric));
        let (local, propagated) = (of(self.local), of(self.propagated));
        let budget = match self.decided_by? {
            DecidedBy::Local => of(self.budget)?,
            DecidedBy::Propagated => of(self.propagated_budget)?,
        };
        Some(Shown { metric, local, propagated, budget })
    }
}

/// Numbers of one measure.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// The measure.
    pub metric: Metric,
    /// The local error.
    pub local: Option<f64>,
    /// The propagated error.
    pub propagated: Option<f64>,
    /// The budget of the one that decides.
    pub budget: f64,
}

impl Metric {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Metric::L2 => "l2",
            Metric::Row => "row",
            Metric::Max => "max",
            Metric::Gain => "gain",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Metric::L2, Metric::Row, Metric::Max, Metric::Gain].into_iter().find(|metric| metric.name() == name)
    }
}

impl Errors {
    /// The error by one measure.
    pub fn by(&self, metric: Metric) -> f64 {
        match metric {
            Metric::L2 => self.l2.0,
            Metric::Row => self.row.0,
            Metric::Max => self.max.0,
            Metric::Gain => self.gain.0,
        }
    }
}

impl From<&StageVerdict> for StageReport {
    fn from(verdict: &StageVerdict) -> Self {
        let deciding = verdict.deciding();
        let local = deciding.is_some() && deciding == verdict.local.zip(verdict.budget);
        StageReport {
            stage: verdict.stage.clone(),
            disposition: verdict.disposition,
            decided_by: deciding.map(|_| if local { DecidedBy::Local } else { DecidedBy::Propagated }),
            metric: verdict.worst_metric().and_then(|(metric, ..)| Metric::named(metric)),
            ratio: verdict.ratio().map(Number),
            local: verdict.local.map(Errors::from),
            budget: verdict.budget.or(verdict.propagated_budget).map(Errors::from),
            propagated: verdict.propagated.map(Errors::from),
            propagated_budget: verdict.propagated_budget.map(Errors::from),
            element: verdict.element.as_ref().map(ElementReport::from),
            note: verdict.note.clone(),
        }
    }
}

impl From<Metrics> for Errors {
    fn from(Metrics { l2, row, max, gain }: Metrics) -> Self {
        Errors { l2: Number(l2), row: Number(row), max: Number(max), gain: Number(gain) }
    }
}

impl From<&Verdict> for Compared {
    fn from(verdict: &Verdict) -> Self {
        Compared { stages: verdict.compared(), elements: verdict.elements() }
    }
}

impl From<&Element> for ElementReport {
    fn from(Element { index, got, want }: &Element) -> Self {
        ElementReport { index: index.clone(), got: Number(*got), want: Number(*want) }
    }
}

impl From<&(String, usize)> for NearTies {
    fn from((stage, tokens): &(String, usize)) -> Self {
        NearTies { stage: stage.clone(), tokens: *tokens, assumed: false, at: Vec::new() }
    }
}

impl From<&Hint> for HintReport {
    fn from(Hint { says, names }: &Hint) -> Self {
        HintReport { says: says.clone(), names: names.iter().map(|name| (*name).to_owned()).collect() }
    }
}

impl From<&check::EndToEnd> for EndToEnd {
    fn from(check::EndToEnd { stage, replayed, free }: &check::EndToEnd) -> Self {
        EndToEnd { stage: stage.clone(), replayed: Number(*replayed), free: Number(*free) }
    }
}

impl From<&Recognised> for LayoutReport {
    fn from(Recognised { stage, layout }: &Recognised) -> Self {
        LayoutReport { stage: stage.clone(), layout: layout.clone() }
    }
}

impl From<&Waiver> for WaiverReport {
    fn from(Waiver { reason, link, expires, .. }: &Waiver) -> Self {
        WaiverReport { reason: reason.clone(), link: link.clone(), expires: expires.to_string() }
    }
}
