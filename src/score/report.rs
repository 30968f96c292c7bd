//! What a person or a program gets to read of the mutation score.

use comfy_table::Cell;
use dsv2_foreign::{Foreign, Text};
use dsv2_reference::stage::table::LAYER;
use serde_json::{Value, json};

use super::{BenignScore, DumpScore, HintScore, InPrecision, MutantScore, Score, Survivor};
use crate::precision::Precision;
use crate::table::{align_right, table};

/// One line for each mutant: for each type the number of cases that find it, of those that it applies to, and how many times
/// its budget the error is on the best of them.
pub fn mutants_table(score: &Score, precisions: &[Precision], styled: bool) -> String {
    let mut header = vec!["mutant".to_owned(), "class".to_owned(), "planted at".to_owned()];
    for precision in precisions {
        header.extend([precision.to_string(), "over".to_owned(), "named".to_owned()]);
    }
    let mut table = table(styled, &header.iter().map(String::as_str).collect::<Vec<_>>());
    for column in 3..header.len() {
        align_right(&mut table, column);
    }
    for mutant in &score.mutants {
        let class = format!("{:?}", mutant.mutant.class).to_lowercase();
        let mut row = vec![Cell::new(mutant.mutant.id), Cell::new(class), Cell::new(short(mutant.mutant.stage()))];
        for precision in precisions {
            match mutant.in_precision.iter().find(|of| of.precision == *precision) {
                Some(of) => row.extend([killed(of), ratio(of.best), named(of)].map(Cell::new)),
                None => row.extend(["", "", ""].map(Cell::new)),
            }
        }
        table.add_row(row);
    }
    table.trim_fmt()
}

/// One line for each benign variant: how much of its budget the worst stage takes.
pub fn benign_table(score: &Score, styled: bool) -> String {
    let mut table = table(styled, &["benign variant", "runs", "worst", "where", "flagged"]);
    for column in [1, 2, 4] {
        align_right(&mut table, column);
    }
    for BenignScore { benign, runs, worst, worst_at, flagged } in &score.benign {
        table.add_row([
            benign.id.to_owned(),
            runs.to_string(),
            format!("{worst:.2}"),
            Foreign(worst_at).to_string(),
            flagged.len().to_string(),
        ]);
    }
    table.trim_fmt()
}

/// The module, and the structural mutant in it that is nearest to survival.
pub fn weakest_table(score: &Score, styled: bool) -> String {
    let mut table = table(styled, &["module", "dtype", "nearest to survival", "over"]);
    align_right(&mut table, 3);
    for ((module, precision), (id, best)) in &score.weakest {
        table.add_row([*module, precision, id, &ratio(*best)]);
    }
    table.trim_fmt()
}

/// One line for each kind of dump and type: what became of the structural mutants, and of what is right.
pub fn dumps_table(score: &Score, styled: bool) -> String {
    let header = ["dump", "dtype", "runs", "killed", "inconclusive", "passed", "invisible", "right", "false alarms"];
    let mut table = table(styled, &[&header[..], &["inconclusive right"]].concat());
    for column in 2..=header.len() {
        align_right(&mut table, column);
    }
    for of in &score.dumps {
        table.add_row([
            of.dump.name.to_owned(),
            of.precision.to_string(),
            of.runs.to_string(),
            of.killed.to_string(),
            share(of.inconclusive.len(), of.runs),
            of.passed.len().to_string(),
            of.invisible.len().to_string(),
            of.right.to_string(),
            of.false_alarms.len().to_string(),
            share(of.right_inconclusive, of.right),
        ]);
    }
    table.trim_fmt()
}

/// One line for each kind of dump and type: on how many failures there is a hint, how many of these name mutants, and how
/// many of these the planted one, or one with the same numbers.
pub fn hints_table(score: &Score, styled: bool) -> String {
    let header = ["dump", "dtype", "failures", "with a hint", "naming bugs", "the planted one", "its equal"];
    let mut table = table(styled, &header);
    for column in 2..header.len() {
        align_right(&mut table, column);
    }
    let rows = score.dumps.iter().map(|of| (of.dump.name, of.precision.to_string(), of.hints));
    for (dump, precision, hints) in rows.chain([("together", String::new(), score.hints())]) {
        let HintScore { failures, given, naming, right, same } = hints;
        table.add_row([
            dump.to_owned(),
            precision,
            failures.to_string(),
            share(given, failures),
            naming.to_string(),
            share(right, naming),
            share(same, naming),
        ]);
    }
    table.trim_fmt()
}

/// What is not as it should be, one line each.
pub fn faults(score: &Score) -> Vec<String> {
    let mut faults = Vec::new();
    for mutant in &score.mutants {
        let id = mutant.mutant.id;
        faults
            .extend(mutant.survives().map(|precision| format!("{id} survives in {precision}: {}", mutant.mutant.what)));
        if mutant.overreaches() {
            faults.push(format!("{id} is flagged at the outputs, where it is right: {}", mutant.mutant.what));
        }
        faults.extend(mutant.misnamed.iter().map(|(case, precision, planted, named)| {
            format!("{id} on {case} in {precision}: planted at {planted}, named at {named}")
        }));
    }
    for benign in &score.benign {
        faults.extend(benign.flagged.iter().map(|at| format!("false alarm: {} on {at}", benign.benign.id)));
    }
    faults.extend(score.dumps.iter().flat_map(dump_faults));
    if !score.hints().good() {
        faults.push(
            "hints: fewer than 95 of 100 that name bugs name the planted one, or than 60 failures of 100 have one"
                .to_owned(),
        );
    }
    faults.iter().map(|fault| Text::message(fault).to_string()).collect()
}

fn dump_faults(score: &DumpScore) -> Vec<String> {
    let DumpScore { dump, precision, runs, inconclusive, .. } = score;
    let of = format!("{} in {precision}", dump.name);
    let passed = score.passed.iter().map(|Survivor { mutant, case, moved }| {
        let over = ratio(moved.unwrap_or_default().budgets);
        format!("{of}: {mutant} on {case} passes, though it is {over} times over what is right")
    });
    let mut faults: Vec<String> = passed.collect();
    faults.extend(score.false_alarms.iter().map(|who| format!("{of}: false alarm: {who}")));
    if inconclusive.len() * 10 > *runs {
        faults.push(format!("{of}: {} of {runs} runs are inconclusive, more than a tenth", inconclusive.len()));
    }
    faults
}

/// The sums, in two lines.
pub fn totals(score: &Score) -> String {
    let t = score.totals();
    let part = |of: usize, all: usize| format!("{of} of {all}");
    format!(
        "{} mutants; found {} that must be, once for each type; named the right stage in {} runs, the right module in {}\n\
         {} benign variants, {} runs: {} false alarms",
        score.mutants.len(),
        part(t.killed, t.required),
        part(t.right_stage, t.named),
        part(t.right_module, t.named),
        score.benign.len(),
        t.benign_runs,
        t.false_alarms,
    )
}

/// All of it for a program.
pub fn json(score: &Score) -> Value {
    let in_precision = |of: &InPrecision| {
        json!({
            "dtype": of.precision.to_string(), "killed": of.killed, "cases": of.cases, "ratio": finite(of.best),
            "right_stage": of.right_stage, "right_module": of.right_module, "seen_at_outputs": of.seen_at_outputs,
        })
    };
    let mutant = |score: &MutantScore| {
        json!({
            "id": score.mutant.id, "class": score.mutant.class, "stage": score.mutant.stage(), "what": score.mutant.what,
            "report": score.mutant.report, "runs": score.in_precision.iter().map(in_precision).collect::<Vec<_>>(),
            "survives": score.survives().map(|precision| precision.to_string()).collect::<Vec<_>>(),
        })
    };
    let benign = |score: &BenignScore| {
        json!({
            "id": score.benign.id, "what": score.benign.what, "runs": score.runs, "ratio": finite(score.worst),
            "flagged": score.flagged,
        })
    };
    let survivor = |of: &Survivor| {
        let moved = of.moved.map(|moved| json!({"budgets": finite(moved.budgets), "noises": finite(moved.noises)}));
        json!({"mutant": of.mutant, "case": of.case, "moved": moved})
    };
    let survivors = |of: &[Survivor]| of.iter().map(survivor).collect::<Vec<_>>();
    let dump = |of: &DumpScore| {
        json!({
            "dump": of.dump.name, "what": of.dump.what, "dtype": of.precision.to_string(), "runs": of.runs,
            "killed": of.killed, "inconclusive": survivors(&of.inconclusive), "passed": survivors(&of.passed),
            "invisible": survivors(&of.invisible), "within_budget": of.within_budget(), "right": of.right,
            "hints": of.hints, "false_alarms": of.false_alarms, "right_inconclusive": of.right_inconclusive, "good": of.good(),
        })
    };
    json!({
        "schema": "dsv2-mutants/1",
        "totals": score.totals(),
        "good": score.good(),
        "dumps": score.dumps.iter().map(dump).collect::<Vec<_>>(),
        "mutants": score.mutants.iter().map(mutant).collect::<Vec<_>>(),
        "benign": score.benign.iter().map(benign).collect::<Vec<_>>(),
    })
}

/// The kind of a stage, without what every stage of a layer has in front.
pub fn short(kind: &str) -> &str {
    let below = kind.strip_prefix(LAYER).and_then(|rest| rest.strip_prefix('.'));
    below.map_or(kind, |below| below.strip_prefix("self_attn.").unwrap_or(below))
}

fn share(part: usize, all: usize) -> String {
    if part == 0 { "0".to_owned() } else { format!("{part} ({:.1} %)", 100.0 * part as f64 / all as f64) }
}

fn killed(of: &InPrecision) -> String {
    format!("{}/{}", of.killed, of.cases)
}

fn named(of: &InPrecision) -> String {
    format!("{}/{}", of.right_stage, of.killed)
}

fn ratio(x: f64) -> String {
    match x {
        x if x.is_infinite() => "∞".to_owned(),
        x if x < 100.0 => format!("{x:.1}"),
        x => format!("{x:.0e}"),
    }
}

/// JSON has no infinity.
fn finite(x: f64) -> Value {
    if x.is_finite() { x.into() } else { "infinite".into() }
}
