//! The page of a check: the verdict, the first failure spelled out, the heat map, every stage, and what else there is to know.

use maud::{Markup, html};

use super::heat_map::{Detail, heat_map, legend, look};
use super::{banner, optional};
use crate::check::Conclusion;
use crate::judge::Disposition;
use crate::report::describe::{check_word, compared, disposition, got_and_want, inconclusive, number};
use crate::report::model::{CheckReport, DecidedBy, StageReport};
use crate::report::notes::{Note, causes, remarks};

pub fn body(report: &CheckReport) -> Markup {
    html! {
        (banner(report.verdict == Conclusion::Pass, check_word(report.verdict), html! {
            @match (report.first_failure(), &report.inconclusive) {
                (Some(first), _) => { "first wrong stage: " code { (first.stage) } "; " (compared(report.compared)) " compared" }
                (None, Some(open)) => { (inconclusive(open)) "; " (compared(report.compared)) " compared" }
                (None, None) => { (compared(report.compared)) ", as " (report.dtype) " computes them" }
            }
            "; " (report.not_compared) " stages of the model were not compared"
        }))
        (asked(report))
        @if let Some(first) = report.first_failure() { (failure(report, first)) }
        section {
            h2 { "Where the errors are" }
            (legend())
            (heat_map(&report.stages, Detail::Linked))
        }
        (also(report))
        section {
            h2 { "Every stage of the dump" }
            (table(report))
        }
    }
}

/// What was checked, and how it was taken.
fn asked(report: &CheckReport) -> Markup {
    let files = &report.files;
    let rows = [
        ("candidate", Some(&files.candidate)),
        ("model", Some(&files.model)),
        ("inputs", Some(&files.inputs)),
        ("expected", files.expected.as_ref()),
        ("dialect", Some(&report.dialect)),
        ("computes in", Some(&report.dtype)),
        ("cache", Some(&report.cache)),
    ];
    html! {
        dl.facts {
            @for (name, text) in rows {
                @if let Some(text) = text { div { dt { (name) } dd { code { (text) } } } }
            }
        }
    }
}

/// The first failure: where it is, how large, and what it was judged from.
fn failure(report: &CheckReport, stage: &StageReport) -> Markup {
    html! {
        section.failure {
            h2 { "The first failure" }
            p { code { (stage.stage) } ": " (disposition(stage.disposition).trim_start_matches("FAIL: ")) }
            @if let Some(note) = &stage.note { p { (note) } }
            dl.facts {
                @if let Some(shown) = stage.shown() {
                    div { dt { "measure" } dd { (shown.metric.name()) } }
                    div { dt { "local error" } dd { (optional(shown.local)) } }
                    div { dt { "budget" } dd {
                        (number(shown.budget)) @if stage.decided_by == Some(DecidedBy::Propagated) { " (of the propagated error)" }
                    } }
                    div { dt { "error / budget" } dd { (optional(stage.ratio.map(|ratio| ratio.0))) } }
                    div { dt { "propagated error" } dd { (optional(shown.propagated)) } }
                }
                @if let Some(element) = &stage.element {
                    div { dt { "element " code { (format!("{:?}", element.index)) } } dd {
                        (got_and_want(element))
                    } }
                }
            }
            (judged_from(report))
            (notes(causes(report)))
        }
    }
}

/// Which values of the dump the stage was judged from.
fn judged_from(report: &CheckReport) -> Markup {
    html! {
        @if report.files.expected.is_some() {
            p.aside { "There are no local errors: nothing says what the expected tensors were computed from." }
        } @else {
            p {
                "Computed from: "
                @if report.computed_from.is_empty() { "the inputs and the weights alone" }
                @for (at, name) in report.computed_from.iter().enumerate() {
                    @if at > 0 { ", " } code { (name) }
                }
            }
            p.aside {
                "The local error is against the reference on the candidate's own values of these: it tells where a bug is. "
                "The propagated error is against the reference's own run: it tells what came of it."
            }
        }
    }
}

fn also(report: &CheckReport) -> Markup {
    let remarks = remarks(report);
    html! {
        @if !remarks.is_empty() {
            section { h2 { "Also" } (notes(remarks)) }
        }
    }
}

fn notes(notes: Vec<Note>) -> Markup {
    html! {
        @for note in notes {
            h3 { (note.title) }
            ul { @for line in note.lines { li { (line) } } }
        }
    }
}

/// Every stage that the dump holds, with all that is known of it.
fn table(report: &CheckReport) -> Markup {
    let first = report.first_failing_stage.as_deref();
    html! {
        div.scroll {
            table.stages {
                thead { tr {
                    th { "stage" } th { "verdict" } th { "measure" } th.n { "local error" } th.n { "budget" }
                    th.n { "error / budget" } th.n { "propagated error" } th { "furthest off, or what is wrong" }
                } }
                tbody {
                    @for (at, stage) in report.stages.iter().enumerate().filter(|(_, s)| s.disposition != Disposition::NotHeld) {
                        (row(at, stage, first == Some(&stage.stage)))
                    }
                }
            }
        }
    }
}

fn row(at: usize, stage: &StageReport, first: bool) -> Markup {
    let shown = stage.shown();
    let (class, text) = look(stage);
    html! {
        tr id=(format!("s{at}")) class=[first.then_some("first")] {
            td { code { (stage.stage) } }
            td class=[stage.disposition.fails().then_some("fail")] { (disposition(stage.disposition)) }
            td { @if let Some(shown) = shown { (shown.metric.name()) } }
            td.n { (optional(shown.and_then(|shown| shown.local))) }
            td.n { (optional(shown.map(|shown| shown.budget))) }
            td.n { span class={ "chip " (class) } { (text) } }
            td.n { (optional(shown.and_then(|shown| shown.propagated))) }
            td {
                @match (&stage.note, &stage.element) {
                    (Some(note), _) => { (note) }
                    (None, Some(element)) => {
                        (format!("{:?}", element.index)) " " (got_and_want(element))
                    }
                    (None, None) => {}
                }
            }
        }
    }
}
