use std::time::Duration;

use dsv2_metrics::Metrics;
use dsv2_reference::Dtype;
use dsv2_reference::model::cache::CacheFormat;
use glob::Pattern;
use ndarray::array;
use time::{Date, Month};

use super::model::{CheckReport, Files, Number, VerifyReport};
use super::*;
use crate::budget::{Budgets, FACTORS};
use crate::check::{AssumedTie, Checked, EndToEnd, Hint, Recognised, Request};
use crate::golden::GoldenCases;
use crate::judge::{LocalTruth, Truth, Verdict, judge};
use crate::mutants::explain::{Change, Explanation};
use crate::outcome::Outcome;
use crate::outcome::Waiver;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

const EXPERTS: &str = "model.layers.1.mlp.gate.topk_indices";

fn trace(norm: f64, experts: [i64; 2]) -> Trace {
    let norm = Values::Real(Dtype::F32, array![[1.0, norm]].into_dyn());
    let experts = Values::Index(array![experts].into_dyn());
    [("model.norm".to_owned(), norm), (EXPERTS.to_owned(), experts)].into_iter().collect()
}

/// Of a candidate against a truth that has 2 and experts 1 and 3, and, if `own` is given, computes that from the
/// candidate's own inputs.
fn verdict(norm: f64, experts: [i64; 2], own: Option<f64>) -> Verdict {
    let rows = ComparedRows::default();
    let expected = trace(2.0, [1, 3]);
    let noise = [("model.norm".to_owned(), Metrics::from_values([1e-6; 4]))].into_iter().collect();
    let budgets = Budgets::new(&noise, &expected, &rows, FACTORS);
    let truth = Truth { trace: &expected, budgets: &budgets, rows: &rows };
    let own = own.map(|own| trace(own, [1, 3]));
    let (exact, none) = (Default::default(), Budgets::default());
    let local =
        own.as_ref().map(|own| LocalTruth { truth: Truth { trace: own, ..truth }, exact: &exact, method: None });
    // as in `check`: where there is a local error, it decides
    let propagated = if local.is_some() { Truth { budgets: &none, ..truth } } else { truth };
    judge(&trace(norm, experts), &propagated, local.as_ref(), |_| true)
}

fn items() -> Vec<Item> {
    let item = |case: &str, precision, outcome| Item {
        case: case.to_owned(),
        backend: "reference",
        precision,
        outcome,
        elapsed: Duration::from_millis(5),
    };
    let waiver = Waiver {
        implementation: "reference".into(),
        case: Pattern::new("wid*").unwrap(),
        reason: "not there yet".into(),
        link: "https://example.org/7".into(),
        expires: Date::from_calendar_date(2027, Month::January, 31).unwrap(),
    };
    let wrong = Outcome::Judged(verdict(2.0, [1, 2], None));
    vec![
        item("small", Precision::F64, Outcome::Judged(verdict(2.000001, [3, 1], None))),
        item("small", Precision::F32, Outcome::Judged(verdict(2.5, [1, 3], None))),
        item("wide", Precision::F64, Outcome::Judged(verdict(f64::NAN, [1, 3], None))),
        item("wide", Precision::F32, Outcome::Waived(Box::new(wrong), Box::new(waiver))),
        item("wide", Precision::Bf16, Outcome::NotSupported("no bf16 here".into())),
        item("wider", Precision::F64, Outcome::Refused("weight `x`: expected a, found b".into())),
        item("wider", Precision::F32, Outcome::Crashed("index out of bounds:\nthe len is 3".into())),
        item("wider", Precision::Bf16, Outcome::NotJudged("no stage could be compared".into())),
    ]
}

/// A check that has something to say of everything.
fn check(norm: f64, own: Option<f64>) -> CheckReport {
    let golden = GoldenCases::embedded().load("one-token").unwrap();
    let cache = CacheFormat::Plain;
    let request = Request { cache, ..Request::new(golden.case, Trace::default()) };
    let layer = |leaf: &str| format!("model.layers.0.{leaf}");
    let flattened = |stage: String| Recognised { stage, layout: "the batch flattened, [B·S, ..]".into() };
    let names = ["model.norm", EXPERTS, "lm_head", "loss"];
    let checked = Checked {
        inconclusive: None,
        verdict: verdict(norm, [1, 3], own).with_not_held(names.into_iter()),
        precision: Precision::Bf16,
        unknown: vec!["vision\u{1b}[2J".into()],
        layouts: ["self_attn.q_proj", "mlp", "input_layernorm", "self_attn.o_proj"].map(layer).map(flattened).into(),
        assumed: Vec::new(),
        near_ties: vec![(EXPERTS.into(), 2)],
        assumed_ties: vec![AssumedTie {
            stage: EXPERTS.into(),
            sequence: 1,
            token: 3,
            experts: vec![2, 3],
            strain: 0.5,
        }],
        end_to_end: Some(EndToEnd { stage: "model.norm".into(), replayed: 0.003, free: 0.12 }),
        spans: vec![(
            layer("self_attn.attn_output"),
            ["self_attn.attn_scores", "self_attn.attn_weights"].map(layer).into(),
        )],
        hint: (norm == 2.5).then(|| Hint { says: vec!["the first token is right".into()], names: vec!["no_rope_q"] }),
        uncatchable: vec!["mask_off_by_one"],
        candidate: Trace::default(),
        case: request.case.clone(),
    };
    let files = Files { model: "M".into(), inputs: "I".into(), candidate: "C".into(), expected: None };
    CheckReport::new(&request, &checked, files)
}

#[test]
fn what_a_person_reads_of_a_verification() {
    insta::assert_snapshot!(verify_text(&VerifyReport::new(&items()), Duration::from_millis(1234), false));
}

#[test]
fn what_a_person_reads_of_a_check() {
    let texts = [check(2.5, Some(2.4)), check(2.1, Some(2.1000001)), check(f64::INFINITY, None)];
    insta::assert_snapshot!(texts.map(|report| check_text(&report, false)).join("\n\n=====\n\n"));
}

#[test]
fn an_explanation_that_was_asked_for_is_never_silent() {
    let explained = |explanation: &[Explanation]| check_text(&check(2.5, Some(2.4)).explained(explanation), false);
    let nothing = "explanation: no known bug, and no pair of them that was tried, computes all of this dump";
    assert!(explained(&[]).lines().any(|line| line == nothing));
    assert!(!check_text(&check(2.5, Some(2.4)), false).contains("explanation"));
    let change = |mutant, what, report| Change { mutant, what, report };
    let two = vec![change("no_gamma", "A factor is left out.", None), change("renorm", "A sum is 1.", Some("a/b#1"))];
    let found = Explanation { changes: two, stage: "model.norm".into(), error: 0.0, unexplained: 1.0 };
    let said = "the dump is what this known bug computes: \
                no_gamma (A factor is left out) together with renorm (A sum is 1; a/b#1), off by 0";
    assert!(explained(&[found]).lines().any(|line| line == said));
}

#[test]
fn what_a_program_reads() {
    let mut report = Report::Verify(VerifyReport::new(&items())).json();
    report["runs"].as_array_mut().unwrap().retain(|run| run["case"] == "wide" && run["dtype"] != "bf16");
    let check = Report::Check(Box::new(check(2.5, Some(2.4)))).json();
    insta::assert_snapshot!(format!("{report:#}\n{check:#}"));
}

#[test]
fn what_continuous_integration_reads() {
    let reports = [Report::Verify(VerifyReport::new(&items())), Report::Check(Box::new(check(2.5, Some(2.4))))];
    insta::assert_snapshot!(reports.map(|report| junit(&report).unwrap()).join("\n"));
}

#[test]
fn a_number_that_is_not_finite_is_a_word() {
    let numbers = [1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(Number);
    assert_eq!(serde_json::to_string(&numbers).unwrap(), r#"[1.5,"NaN","inf","-inf"]"#);
}

#[test]
fn the_two_sides_of_an_element_are_told_apart() {
    let sides = |got, want| {
        let element = model::ElementReport { index: vec![0], got: Number(got), want: Number(want) };
        describe::got_and_want(&element)
    };
    assert_eq!(sides(1.5, f64::NEG_INFINITY), "got 1.500000, want -inf");
    assert_eq!(sides(0.1234567, 0.1234571), "got 0.123456700, want 0.123457100");
    assert_eq!(sides(1e-20, 2e-20), "got 1e-20, want 2e-20");
}
