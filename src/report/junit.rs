//! Reports for continuous integration: JUnit's XML.
//!
//! | | suite | test case | failure | error | skipped |
//! |---|---|---|---|---|---|
//! | `check` | the check | a stage that the dump holds, and the whole if it is undecided or nothing was compared | it fails | it is undecided; nothing was compared | nothing of it can be compared |
//! | `verify` | a backend in a type | a golden case | it fails | it crashes | not supported, not judged, waived |

use std::time::Duration;

use indexmap::IndexMap;
use quick_junit::{NonSuccessKind, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::describe::{check_word, conclusion, disposition, failure, inconclusive};
use super::model::{CheckReport, Report, RunReport, StageReport, VerifyReport};
use crate::check::Conclusion;
use crate::judge::Disposition;
use crate::outcome::Conclusion as RunConclusion;

/// The text of junit.xml. Characters that XML cannot hold are left out.
///
/// # Errors
/// If the XML cannot be written.
pub fn junit(report: &Report) -> Result<String, SerializeError> {
    let (name, suites) = match report {
        Report::Check(check) => ("dsv2 check", vec![check_suite(check)]),
        Report::Verify(verify) => ("dsv2 verify", verify_suites(verify)),
    };
    let mut junit = quick_junit::Report::new(name);
    junit.add_test_suites(suites);
    junit.to_string()
}

fn check_suite(report: &CheckReport) -> TestSuite {
    let name = format!("check {} {}", report.files.candidate, report.dtype);
    let mut suite = TestSuite::new(name.as_str());
    let held = report.stages.iter().filter(|stage| stage.disposition != Disposition::NotHeld);
    suite.add_test_cases(held.map(|stage| {
        let mut case = TestCase::new(stage.stage.as_str(), stage_status(stage));
        case.set_classname(name.as_str());
        case
    }));
    let undecided = match report.verdict {
        Conclusion::Pass | Conclusion::Fail => None,
        Conclusion::Inconclusive => Some(report.inconclusive.as_ref().map(inconclusive).unwrap_or_default()),
        Conclusion::NotJudged => Some("nothing could be compared".to_owned()),
    };
    suite.add_test_cases(undecided.map(|why| {
        let words = check_word(report.verdict).to_lowercase();
        let mut case = TestCase::new("verdict", non_success(NonSuccessKind::Error, &words, &why));
        case.set_classname(name.as_str());
        case
    }));
    suite
}

fn stage_status(stage: &StageReport) -> TestCaseStatus {
    let words = disposition(stage.disposition);
    if stage.disposition.fails() {
        non_success(NonSuccessKind::Failure, words.trim_start_matches("FAIL: "), &failure(stage))
    } else if stage.disposition == Disposition::Inconclusive {
        non_success(NonSuccessKind::Error, "inconclusive", &failure(stage))
    } else if stage.disposition.compared() {
        TestCaseStatus::success()
    } else {
        skipped(words)
    }
}

fn verify_suites(report: &VerifyReport) -> Vec<TestSuite> {
    let mut suites = IndexMap::<String, TestSuite>::new();
    for run in &report.runs {
        let name = format!("{} {}", run.backend, run.dtype);
        let mut case = TestCase::new(run.case.as_str(), run_status(run));
        case.set_classname(name.as_str());
        case.set_time(Duration::try_from_secs_f64(run.seconds).unwrap_or_default());
        suites.entry(name).or_insert_with_key(|name| TestSuite::new(name.as_str())).add_test_case(case);
    }
    suites.into_values().collect()
}

fn run_status(run: &RunReport) -> TestCaseStatus {
    let words = conclusion(run.conclusion);
    let why = run.failure.as_deref().or(run.reason.as_deref()).unwrap_or(words);
    match (run.conclusion, &run.waiver) {
        (RunConclusion::Pass, _) => TestCaseStatus::success(),
        (RunConclusion::Fail, _) => non_success(NonSuccessKind::Failure, &words.to_lowercase(), why),
        (RunConclusion::Crashed, _) => non_success(NonSuccessKind::Error, &words.to_lowercase(), why),
        (RunConclusion::Waived, Some(waiver)) => {
            skipped(&format!("waived until {}: {} ({}); {why}", waiver.expires, waiver.reason, waiver.link))
        }
        (RunConclusion::NotSupported | RunConclusion::NotJudged | RunConclusion::Waived, _) => {
            skipped(&format!("{words}: {why}"))
        }
    }
}

fn non_success(kind: NonSuccessKind, sort: &str, message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(sort).set_message(message);
    status
}

fn skipped(reason: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(reason);
    status
}
