//! What else there is to say of a check: each note is a title and some lines, and is there only if there is a line.

use dsv2_reference::stage::Stage;
use indexmap::IndexMap;

use super::describe::{compared, few, number, short_kind};
use super::model::{ChangeReport, CheckReport, DecidedBy, EndToEnd, ExplanationReport, NearTies, StageReport};
use crate::check::{Conclusion, doubt};
use crate::judge::Disposition;

/// Something to know about a check.
pub struct Note {
    /// What it is about.
    pub title: &'static str,
    /// One line for each thing.
    pub lines: Vec<String>,
}

/// How many names a line holds before it counts.
const NAMES_IN_A_LINE: usize = 3;

/// What the first failure may come from.
pub fn causes(report: &CheckReport) -> Vec<Note> {
    let change = |change: &ChangeReport| {
        let link = change.report.as_ref().map(|link| format!("; {link}")).unwrap_or_default();
        format!("{} ({}{link})", change.mutant, change.what.trim_end_matches('.'))
    };
    let found = |found: &ExplanationReport| {
        let changes: Vec<String> = found.changes.iter().map(change).collect();
        format!("{}, off by {}", changes.join(" together with "), number(found.error.0))
    };
    let found: Option<Vec<String>> = report.explanation.as_ref().map(|all| all.iter().map(found).collect());
    let nothing = found.as_ref().filter(|found| found.is_empty());
    let nothing =
        nothing.map(|_| "no known bug, and no pair of them that was tried, computes all of this dump".to_owned());
    there_are([
        ("hint", report.hint.iter().map(|hint| hint.says.join("; ")).collect()),
        ("the dump is what this known bug computes", found.unwrap_or_default()),
        ("explanation", nothing.into_iter().collect()),
    ])
}

/// Everything else.
pub fn remarks(report: &CheckReport) -> Vec<Note> {
    let spans = report.spans.iter().map(|span| {
        let lacking: Vec<String> = span.lacking.iter().map(|name| leaf(name)).collect();
        format!("{} (without {})", span.stage, few(lacking.iter().map(String::as_str), NAMES_IN_A_LINE))
    });
    let seen = report.near_ties.iter().filter(|near| !near.assumed);
    let near_ties = seen.map(|near| format!("{} ({})", near.stage, near.tokens));
    let assumed = report.near_ties.iter().filter(|near| near.assumed).map(assumed);
    // behind a wrong stage, tokens go elsewhere without any tie
    let elsewhere = match report.verdict {
        Conclusion::Pass => "near ties that fell the other way (tokens; allowed, and followed)",
        _ => "other experts than in the truth's own run (tokens; followed)",
    };
    there_are([
        ("assumed", report.assumed.clone()),
        ("checkpoint", report.checkpoint.clone()),
        ("recognised layouts", layouts(report)),
        ("not looked at (no stage of this model)", report.unknown.clone()),
        ("judged from further back", spans.collect()),
        (elsewhere, near_ties.collect()),
        (
            "near ties assumed to have fallen the other way (sequence and token; the dump lacks the choice)",
            assumed.collect(),
        ),
        ("end to end", report.end_to_end.iter().map(end_to_end).collect()),
        ("compared", vec![compared(report.compared)]),
        ("not judged", not_judged(report)),
        ("resolving power", resolving_power(report)),
        ("known bugs that such a dump cannot show", uncatchable(report)),
    ])
}

fn there_are<const N: usize>(notes: [(&'static str, Vec<String>); N]) -> Vec<Note> {
    let some = notes.into_iter().filter(|(_, lines)| !lines.is_empty());
    some.map(|(title, lines)| Note { title, lines }).collect()
}

/// The last part of a stage's name; a cached tensor has the name of what was put into the cache.
fn leaf(name: &str) -> String {
    let kind = Stage::parse(name).map_or_else(|| name.to_owned(), |stage| short_kind(stage.kind));
    let last = kind.rsplit('.').next().unwrap_or_default();
    if kind.starts_with("past_key_values") { format!("cached {last}") } else { last.to_owned() }
}

/// One line for each layout, with the stages that came in it.
fn layouts(report: &CheckReport) -> Vec<String> {
    let mut stages = IndexMap::<&str, Vec<&str>>::new();
    for found in &report.layouts {
        stages.entry(&found.layout).or_default().push(&found.stage);
    }
    stages.into_iter().map(|(layout, of)| format!("{}: {layout}", few(of.into_iter(), NAMES_IN_A_LINE))).collect()
}

fn end_to_end(EndToEnd { stage, replayed, free }: &EndToEnd) -> String {
    let (replayed, free) = (number(replayed.0), number(free.0));
    format!("{stage} is off by {replayed} if the truth follows these experts, by {free} if it goes its own way")
}

fn assumed(near: &NearTies) -> String {
    let tokens: Vec<String> = near.at.iter().map(|at| format!("{at:?}")).collect();
    format!("{} ({})", near.stage, few(tokens.iter().map(String::as_str), NAMES_IN_A_LINE))
}

/// What a pass says nothing about, if the last stage was judged from far back.
fn resolving_power(report: &CheckReport) -> Vec<String> {
    let tells =
        |stage: &&StageReport| stage.disposition == Disposition::Pass && stage.decided_by == Some(DecidedBy::Local);
    let last = report.stages.iter().rfind(tells);
    let far_back =
        |stage: &str| report.spans.iter().any(|span| span.stage == stage && span.lacking.len() >= doubt::FAR_BACK);
    let told = last.filter(|last| report.verdict == Conclusion::Pass && far_back(&last.stage)).and_then(|last| {
        let budget = number(last.budget?.l2.0);
        Some(format!("differences of less than {budget} (l2) at {} cannot be seen in such a dump", last.stage))
    });
    told.into_iter().collect()
}

fn uncatchable(report: &CheckReport) -> Vec<String> {
    let names = few(report.uncatchable.iter().map(String::as_str), 2 * NAMES_IN_A_LINE);
    if report.uncatchable.is_empty() { Vec::new() } else { vec![names] }
}

fn not_judged(report: &CheckReport) -> Vec<String> {
    let count = |of| report.stages.iter().filter(|stage| stage.disposition == of).count();
    let all = report.stages.len();
    let lines = [
        (count(Disposition::NotHeld), "stages of the model are not in the dump"),
        (count(Disposition::NotCompared), "are, but nothing of them can be compared"),
    ];
    lines.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} of {all} {what}")).collect()
}
