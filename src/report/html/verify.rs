//! The page of a verification: cases against backends, and the heat map of each run below.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::banner;
use super::heat_map::{Detail, heat_map, legend, look};
use crate::outcome::Conclusion;
use crate::report::describe::{compared, conclusion};
use crate::report::model::{PassOrFail, RunReport, VerifyReport};
use crate::report::text::{counts, run_failure};

/// The verdict in a word.
pub fn word(report: &VerifyReport) -> &'static str {
    match report.verdict {
        PassOrFail::Pass => "pass",
        PassOrFail::Fail => "FAIL",
    }
}

pub fn body(report: &VerifyReport) -> Markup {
    let failures: Vec<String> = report.runs.iter().filter_map(run_failure).collect();
    html! {
        (banner(report.verdict == PassOrFail::Pass, word(report), html! { (counts(report)) }))
        @if !failures.is_empty() {
            section {
                h2 { "What fails" }
                ul { @for failure in failures { li { (failure) } } }
            }
        }
        section {
            h2 { "Cases" }
            p.legend { "The number is the largest error of any stage over its budget. It leads to the stages of the run." }
            (overview(report))
        }
        section {
            h2 { "Runs" }
            (legend())
            @for (at, run) in report.runs.iter().enumerate() { (details(at, run)) }
        }
    }
}

/// One row for each case, one column for each backend and type.
fn overview(report: &VerifyReport) -> Markup {
    let mut columns: Vec<(&str, &str)> = Vec::new();
    let mut cases: Vec<&str> = Vec::new();
    let mut cells = BTreeMap::new();
    for (at, run) in report.runs.iter().enumerate() {
        let (case, column) = (run.case.as_str(), (run.backend.as_str(), run.dtype.as_str()));
        if !columns.contains(&column) {
            columns.push(column);
        }
        if !cases.contains(&case) {
            cases.push(case);
        }
        cells.insert((case, column), (at, run));
    }
    html! {
        div.scroll {
            table.map.overview {
                thead { tr { th { "case" } @for (backend, dtype) in &columns { th { (backend) " " (dtype) } } } }
                tbody {
                    @for case in cases {
                        tr {
                            th { (case) }
                            @for column in &columns {
                                @match cells.get(&(case, *column)) {
                                    Some((at, run)) => { (cell(*at, run)) }
                                    None => { td {} }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cell(at: usize, run: &RunReport) -> Markup {
    let (class, text) = summary(run);
    html! { td class=(class) { a href={ "#r" (at) } { (text) } } }
}

/// The class and the words of a run: its conclusion, and how near the worst stage is to its budget.
fn summary(run: &RunReport) -> (String, String) {
    let words = conclusion(run.conclusion);
    match (run.conclusion, run.telling_stage().map(look)) {
        (Conclusion::Pass | Conclusion::Fail, Some((class, text))) => (class, format!("{words} {text}")),
        (Conclusion::Pass, None) => ("b0".to_owned(), words.to_owned()),
        (Conclusion::Fail | Conclusion::Crashed, _) => ("r3".to_owned(), words.to_owned()),
        (Conclusion::NotSupported | Conclusion::NotJudged | Conclusion::Waived, _) => {
            ("none".to_owned(), words.to_owned())
        }
    }
}

/// All stages of a run, folded away unless it fails.
fn details(at: usize, run: &RunReport) -> Markup {
    let (class, text) = summary(run);
    let fails = matches!(run.conclusion, Conclusion::Fail | Conclusion::Crashed);
    html! {
        details open[fails] {
            summary { (run.case) " " (run.backend) " " (run.dtype) " " span class={ "chip " (class) } { (text) } }
            // inside, so that following a link to it opens the section
            p id=(format!("r{at}")) {
                @match (run_failure(run), &run.reason) {
                    (Some(failure), _) => { (failure) }
                    (None, Some(reason)) => { (reason) }
                    (None, None) => {
                        (compared(run.compared)) " compared"
                        @if let Some(stage) = run.telling_stage() { "; nearest to its budget: " code { (stage.stage) } }
                    }
                }
            }
            @if !run.stages.is_empty() { (heat_map(&run.stages, Detail::Short)) }
        }
    }
}
