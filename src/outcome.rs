//! What comes of running a case: judged, refused, crashed, not run, or waived.

use std::time::Duration;

use glob::Pattern;
use schemars::JsonSchema;
use serde::Serialize;
use time::Date;

use crate::judge::Verdict;
use crate::precision::Precision;

/// One case, on one backend, in one type.
#[derive(Debug)]
pub struct Item {
    /// The case.
    pub case: String,
    /// The backend.
    pub backend: &'static str,
    /// The type it computed in.
    pub precision: Precision,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

/// What came of an item.
#[derive(Debug)]
pub enum Outcome {
    /// It ran, and was judged.
    Judged(Verdict),
    /// The backend says that it cannot run this here, for this reason. Neither good nor bad.
    NotSupported(String),
    /// It ran, but nothing of it could be compared, for this reason. Neither good nor bad.
    NotJudged(String),
    /// The backend refused a case that it should run.
    Refused(String),
    /// The backend panicked.
    Crashed(String),
    /// It failed, as somebody knows and has written down.
    Waived(Box<Outcome>, Box<Waiver>),
}

/// An outcome in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Every stage is within its budget.
    Pass,
    /// A stage is not, or a case was refused that should run.
    Fail,
    /// The backend cannot run it here, and says so.
    NotSupported,
    /// Nothing could be compared.
    NotJudged,
    /// The backend panicked.
    Crashed,
    /// It fails, and a waiver says why that is accepted for now.
    Waived,
}

impl Outcome {
    /// In a word.
    pub fn conclusion(&self) -> Conclusion {
        match self {
            Outcome::Judged(verdict) if verdict.passes() => Conclusion::Pass,
            Outcome::Judged(_) | Outcome::Refused(_) => Conclusion::Fail,
            Outcome::NotSupported(_) => Conclusion::NotSupported,
            Outcome::NotJudged(_) => Conclusion::NotJudged,
            Outcome::Crashed(_) => Conclusion::Crashed,
            Outcome::Waived(..) => Conclusion::Waived,
        }
    }

    /// Whether it makes the whole fail.
    pub fn fails(&self) -> bool {
        matches!(self.conclusion(), Conclusion::Fail | Conclusion::Crashed)
    }

    /// The verdict on the stages, if there is one.
    pub fn verdict(&self) -> Option<&Verdict> {
        match self {
            Outcome::Judged(verdict) => Some(verdict),
            Outcome::Waived(outcome, _) => outcome.verdict(),
            _ => None,
        }
    }

    /// Why there is no verdict, or why it does not count.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Outcome::Judged(_) => None,
            Outcome::NotSupported(reason)
            | Outcome::NotJudged(reason)
            | Outcome::Refused(reason)
            | Outcome::Crashed(reason) => Some(reason),
            Outcome::Waived(_, waiver) => Some(&waiver.reason),
        }
    }
}

/// A failure that is accepted for now.
#[derive(Clone, Debug)]
pub struct Waiver {
    /// The backend or implementation.
    pub implementation: String,
    /// Which of its cases.
    pub case: Pattern,
    /// Why it is accepted.
    pub reason: String,
    /// Where that is written down.
    pub link: String,
    /// The last day on which it holds.
    pub expires: Date,
}
