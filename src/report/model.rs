//! The one form of a report: what JSON holds, and what the tables, JUnit and HTML are made from.
//!
//! A new field needs a line in a struct here and one where the struct is filled (below, in `make`). The schema follows by
//! itself.

mod make;

pub use make::Shown;

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use crate::check::{self, Inconclusive};
use crate::judge::Disposition;
use crate::outcome::Conclusion;

/// What `dsv2` says of an implementation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Report {
    /// Of a dump of its stages (`dsv2 check`).
    Check(Box<CheckReport>),
    /// Of a backend on the golden cases (`dsv2 verify`).
    Verify(VerifyReport),
}

/// A verification in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PassOrFail {
    /// It conforms.
    Pass,
    /// It does not.
    Fail,
}

/// What came of checking a dump.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CheckReport {
    /// What the check comes to.
    pub verdict: check::Conclusion,
    /// Why the dump cannot be decided, if it cannot, and the tensors to add to it.
    pub inconclusive: Option<Inconclusive>,
    /// The first stage in forward order that fails, if one does: where to look for the bug.
    pub first_failing_stage: Option<String>,
    /// What is wrong with it, in one line.
    pub failure: Option<String>,
    /// The stages of the dump that the first failing stage was judged from.
    pub computed_from: Vec<String>,
    /// The files that were read.
    pub files: Files,
    /// Whose DeepSeek-V2 is meant.
    pub dialect: String,
    /// What the candidate is taken to compute in.
    pub dtype: String,
    /// How it keeps its cache.
    pub cache: String,
    /// What was compared.
    pub compared: Compared,
    /// How many stages of the model were not.
    pub not_compared: usize,
    /// Every stage of the model, in forward order.
    pub stages: Vec<StageReport>,
    /// Where tokens go to other experts than in the truth because of a near tie, which is no fault.
    pub near_ties: Vec<NearTies>,
    /// What such near ties mean for the end of the computation.
    pub end_to_end: Option<EndToEnd>,
    /// Tensors that came in another layout, and were judged all the same.
    pub layouts: Vec<LayoutReport>,
    /// What is taken for granted of the whole dump, and what of the request has no effect.
    pub assumed: Vec<String>,
    /// How the checkpoint was taken: what of it was not read, and what was taken for what.
    pub checkpoint: Vec<String>,
    /// Tensors of the dump that no stage of the model goes by, and that nobody looked at.
    pub unknown: Vec<String>,
    /// Stages that were judged from further back, because the dump lacks inputs of theirs.
    pub spans: Vec<Span>,
    /// What the first wrong stage looks like, and which mutants compute it.
    pub hint: Option<HintReport>,
    /// What computes what the dump holds, the best first; empty if nothing fits, null if nobody asked (`--explain`).
    pub explanation: Option<Vec<ExplanationReport>>,
    /// Mutants that would not have been caught, because the dump lacks the stages where they show.
    pub uncatchable: Vec<String>,
}

/// How much a verdict rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Compared {
    /// So many stages.
    pub stages: usize,
    /// So many numbers in them.
    pub elements: usize,
}

/// What there is to say of the first wrong stage.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct HintReport {
    /// Sentences, the facts first.
    pub says: Vec<String>,
    /// The mutants that compute what the dump holds; if there are several, no one can tell them apart there.
    pub names: Vec<String>,
}

/// What computes what the dump holds.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ExplanationReport {
    /// The mutant, or the two that it takes.
    pub changes: Vec<ChangeReport>,
    /// How far the dump is from that at the first wrong stage: relative error in the Euclidean norm.
    pub error: Number,
}

/// A mutant.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChangeReport {
    /// Its name.
    pub mutant: String,
    /// What it does.
    pub what: String,
    /// Where an implementation that did so was reported.
    pub report: Option<String>,
}

/// The files of a check, as they were named.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Files {
    /// The checkpoint folder.
    pub model: String,
    /// The inputs.
    pub inputs: String,
    /// The dump.
    pub candidate: String,
    /// What it was held against, if not against the reference.
    pub expected: Option<String>,
}

/// What came of verifying the golden cases.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct VerifyReport {
    /// Whether no run fails.
    pub verdict: PassOrFail,
    /// One for each case, backend and type.
    pub runs: Vec<RunReport>,
}

/// One case, on one backend, in one type.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RunReport {
    /// The golden case.
    pub case: String,
    /// The backend.
    pub backend: String,
    /// What it computed in.
    pub dtype: String,
    /// What came of it, in a word.
    pub conclusion: Conclusion,
    /// Why there is no verdict on its stages, or why the verdict does not count.
    pub reason: Option<String>,
    /// The waiver that accepts the failure.
    pub waiver: Option<WaiverReport>,
    /// The first stage in forward order that fails, if one does.
    pub first_failing_stage: Option<String>,
    /// What is wrong, in one line.
    pub failure: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// What was compared.
    pub compared: Compared,
    /// How many stages of the golden case were not.
    pub not_compared: usize,
    /// Every stage of the golden case, in forward order; none, if it did not run.
    pub stages: Vec<StageReport>,
}

/// What came of one stage.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct StageReport {
    /// Its name: the path of Hugging Face's module.
    pub stage: String,
    /// What became of it.
    pub disposition: Disposition,
    /// Which of its two errors the numbers below speak of.
    pub decided_by: Option<DecidedBy>,
    /// By which measure that error is worst: the first over its budget, or the one that uses most of it.
    pub metric: Option<Metric>,
    /// Which part of its budget it uses at most; above 1 is a failure.
    pub ratio: Option<Number>,
    /// Its own errors: against the reference on the candidate's own inputs of the stage.
    pub local: Option<Errors>,
    /// What these may be; where there are none, what the propagated ones may be.
    pub budget: Option<Errors>,
    /// Its errors against the truth's own run.
    pub propagated: Option<Errors>,
    /// What these may be, if they count.
    pub propagated_budget: Option<Errors>,
    /// The element that is furthest off, or the one that decided.
    pub element: Option<ElementReport>,
    /// What is wrong, if no number says it.
    pub note: Option<String>,
}

/// The two errors of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DecidedBy {
    /// Against the reference on the candidate's own inputs of the stage.
    Local,
    /// Against the truth's own run.
    Propagated,
}

/// A way of measuring an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Relative error in the Euclidean norm.
    L2,
    /// The same of the worst row.
    Row,
    /// The largest error of an element.
    Max,
    /// The error along the truth itself.
    Gain,
}

/// An error in all four ways of measuring, or the budgets for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Errors {
    /// Relative error in the Euclidean norm.
    pub l2: Number,
    /// The same of the worst row.
    pub row: Number,
    /// The largest error of an element, in units of the truth's root mean square.
    pub max: Number,
    /// The error along the truth itself.
    pub gain: Number,
}

/// An element that differs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ElementReport {
    /// Where it is.
    pub index: Vec<usize>,
    /// What the candidate has there.
    pub got: Number,
    /// What the truth has there.
    pub want: Number,
}

/// Near ties in one layer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NearTies {
    /// The choice of experts.
    pub stage: String,
    /// How many tokens go elsewhere.
    pub tokens: usize,
    /// Whether the dump does not hold the choice, and the judge took it to be so because nothing else explains the dump.
    pub assumed: bool,
    /// If it was assumed, which tokens: sequence and place.
    pub at: Vec<[usize; 2]>,
}

/// The error of the last stage, with the candidate's choice of experts and without.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EndToEnd {
    /// The stage.
    pub stage: String,
    /// The relative error if the truth follows the candidate's experts.
    pub replayed: Number,
    /// The relative error if the truth chooses for itself.
    pub free: Number,
}

/// A tensor that came in another layout.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LayoutReport {
    /// The stage, or the name that the dump has for it.
    pub stage: String,
    /// What its layout is.
    pub layout: String,
}

/// A stage that was not judged from its very inputs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Span {
    /// The stage.
    pub stage: String,
    /// The stages before it that the dump lacks, and that the reference computed.
    pub lacking: Vec<String>,
}

/// A failure that is accepted for now.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct WaiverReport {
    /// Why.
    pub reason: String,
    /// Where that is written down.
    pub link: String,
    /// The last day on which it holds.
    pub expires: String,
}

/// A number. JSON has none that is not finite: these are the strings "NaN", "inf" and "-inf".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number(pub f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(&self.0) }
    }
}

impl JsonSchema for Number {
    fn schema_name() -> Cow<'static, str> {
        "Number".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number; one that is not finite is a string.",
            "oneOf": [{ "type": "number" }, { "enum": ["NaN", "inf", "-inf"] }],
        })
    }
}
