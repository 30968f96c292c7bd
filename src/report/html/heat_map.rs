//! A picture of all stages: one row for each kind, in forward order, and one column for each layer.

use std::collections::{BTreeMap, BTreeSet};

use dsv2_reference::stage::Stage;
use maud::{Markup, html};

use crate::judge::Disposition;
use crate::report::describe::{disposition, errors, short_kind};
use crate::report::model::StageReport;

/// How much a cell says beside its number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// It leads to its row in the table of stages.
    Linked,
    /// Only its errors.
    Short,
}

/// Classes of cells, by the part of the budget that is used at most, and what the legend calls them.
const STEPS: [(f64, &str, &str); 7] = [
    (0.1, "b0", "≤ 0.1"),
    (0.5, "b1", "≤ 0.5"),
    (0.8, "b2", "≤ 0.8"),
    (1.0, "b3", "≤ 1"),
    (10.0, "r1", "≤ 10"),
    (1000.0, "r2", "≤ 1000"),
    (f64::INFINITY, "r3", "more, or no number"),
];

const OVER: &str = "r3";
const WITHIN: &str = "b0";

/// The class of a stage's cell and what is written in it.
pub fn look(stage: &StageReport) -> (String, String) {
    let (class, text) = match stage.disposition {
        Disposition::NotHeld => ("none", "·".to_owned()),
        Disposition::NotCompared => ("none", "–".to_owned()),
        Disposition::Missing => (OVER, "gone".to_owned()),
        Disposition::NonFinite => (OVER, "NaN".to_owned()),
        Disposition::WrongShape => (OVER, "shape".to_owned()),
        Disposition::WrongRouting => (OVER, "≠".to_owned()),
        Disposition::Pass if stage.is_exact() => (WITHIN, "=".to_owned()),
        Disposition::OverBudget if stage.is_exact() => (OVER, "≠".to_owned()),
        Disposition::Pass | Disposition::OverBudget | Disposition::Inconclusive => {
            (step(stage.part()), short(stage.part()))
        }
    };
    let hatched = if stage.is_exact() { " exact" } else { "" };
    (format!("{class}{hatched}"), text)
}

fn step(ratio: f64) -> &'static str {
    STEPS.iter().find(|(most, ..)| ratio <= *most).map_or(OVER, |(_, class, _)| class)
}

/// A ratio in at most four characters.
fn short(ratio: f64) -> String {
    match ratio {
        0.0 => "0".to_owned(),
        x if x < 0.01 => "<.01".to_owned(),
        x if x < 0.995 => format!("{x:.2}").trim_start_matches('0').to_owned(),
        x if x < 9.95 => format!("{x:.1}"),
        x if x < 999.5 => format!("{x:.0}"),
        x if x.is_finite() => format!("{x:.0e}"),
        _ => "∞".to_owned(),
    }
}

/// What the colours and signs mean.
pub fn legend() -> Markup {
    let signs = [
        ("b0 exact", "=", "equal, as it must be"),
        ("r3 exact", "≠", "not equal"),
        ("none", "·", "not in the dump"),
        ("none", "–", "cannot be compared"),
    ];
    html! {
        p.legend {
            "Error / budget; the local error, unless it passes and the propagated one uses more of its budget: "
            @for (_, class, words) in STEPS { span class={ "chip " (class) } { (words) } " " }
            @for (class, sign, words) in signs { span class={ "chip " (class) } { (sign) } " " (words) " " }
        }
    }
}

type Row<'a> = (&'static str, BTreeMap<Option<usize>, (usize, &'a StageReport)>);

/// The picture of `stages`, which are in forward order.
pub fn heat_map(stages: &[StageReport], detail: Detail) -> Markup {
    let mut rows = BTreeMap::<(usize, usize), Row<'_>>::new();
    for (at, stage) in stages.iter().enumerate() {
        let Some(place) = Stage::parse(&stage.stage) else { continue };
        let (section, _, index) = place.place();
        rows.entry((section, index)).or_insert((place.kind, BTreeMap::new())).1.insert(place.layer, (at, stage));
    }
    let columns: BTreeSet<Option<usize>> = rows.values().flat_map(|(_, row)| row.keys().copied()).collect();
    let first = stages.iter().position(|stage| stage.disposition.fails());
    html! {
        div.scroll {
            table.map {
                thead { tr {
                    th { "kind of stage, by layer" }
                    @for column in &columns {
                        @match column {
                            Some(layer) => { th { (layer) } }
                            None => { th title="outside the layers" { "once" } }
                        }
                    }
                } }
                tbody {
                    @for (kind, row) in rows.values() {
                        tr {
                            th { (short_kind(kind)) }
                            @for column in &columns {
                                @match row.get(column) {
                                    Some((at, stage)) => { (cell(*at, stage, first == Some(*at), detail)) }
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

fn cell(at: usize, stage: &StageReport, first: bool, detail: Detail) -> Markup {
    let (mut class, text) = look(stage);
    if first {
        class += " first";
    }
    let linked = detail == Detail::Linked && stage.disposition != Disposition::NotHeld;
    html! {
        td class=(class) title=(tooltip(stage, detail)) {
            @if linked { a href={ "#s" (at) } { (text) } } @else { (text) }
        }
    }
}

fn tooltip(stage: &StageReport, detail: Detail) -> String {
    let words = disposition(stage.disposition);
    let what = match (&stage.note, stage.shown()) {
        (Some(note), _) => note.clone(),
        (None, Some(shown)) => errors(stage, &shown),
        (None, None) => words.to_owned(),
    };
    match detail {
        Detail::Linked if what == words => format!("{}: {words}", stage.stage),
        Detail::Linked => format!("{}: {words}; {what}", stage.stage),
        Detail::Short => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_takes_four_characters_at_most() {
        let ratios =
            [0.0, 0.001, 0.0149, 0.42, 0.994, 0.996, 1.0, 1.04, 9.96, 42.4, 999.4, 999.6, 2.6e5, 1e300, f64::INFINITY];
        let written =
            ["0", "<.01", ".01", ".42", ".99", "1.0", "1.0", "1.0", "10", "42", "999", "1e3", "3e5", "1e300", "∞"];
        assert_eq!(ratios.map(short), written);
    }

    #[test]
    fn what_is_over_its_budget_never_looks_as_if_it_were_within() {
        assert_eq!([0.0, 0.1, 0.5, 0.8, 1.0].map(step), ["b0", "b0", "b1", "b2", "b3"]);
        assert_eq!([1.0 + 1e-9, 10.1, 1e9, f64::INFINITY, f64::NAN].map(step), ["r1", "r2", "r3", "r3", "r3"]);
    }
}
