use ndarray::array;

use super::*;
use crate::backend::Precision;
use crate::budget::Budgets;
use crate::judge::{Truth, judge};
use crate::metrics::Metrics;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

fn verdict(norm: f64, experts: [i64; 2]) -> Verdict {
    let name = "model.layers.1.mlp.gate.topk_indices";
    let trace = |norm: f64, experts: [i64; 2]| -> Trace {
        let norm = Values::Real(dsv2_reference::Dtype::F32, array![[1.0, norm]].into_dyn());
        let experts = Values::Index(array![experts].into_dyn());
        [("model.norm".to_owned(), norm), (name.to_owned(), experts)].into_iter().collect()
    };
    let rows = ComparedRows::default();
    let expected = trace(2.0, [1, 3]);
    let noise = [("model.norm".to_owned(), Metrics::from_values([1e-6; 4]))].into_iter().collect();
    let budgets = Budgets::new(&noise, &expected, &rows);
    judge(&trace(norm, experts), &Truth { trace: &expected, budgets: &budgets, rows: &rows }, |_| true)
}

fn items() -> Vec<Item> {
    let item = |case: &str, precision, outcome| Item {
        case: case.to_owned(),
        backend: "reference",
        precision,
        outcome,
        elapsed: Duration::from_millis(5),
    };
    vec![
        item("small", Precision::F64, Outcome::Judged(verdict(2.000001, [3, 1]))),
        item("small", Precision::F32, Outcome::Judged(verdict(2.5, [1, 3]))),
        item("wide", Precision::F64, Outcome::Judged(verdict(f64::NAN, [1, 3]))),
        item("wide", Precision::F32, Outcome::Judged(verdict(2.0, [1, 2]))),
        item("wide", Precision::Bf16, Outcome::NotRun("no bf16 here".into())),
        item("wider", Precision::F64, Outcome::Refused("weight `x`: expected a, found b".into())),
    ]
}

#[test]
fn what_a_person_reads() {
    let items = items();
    let failures: Vec<String> = items.iter().filter_map(verify_failure).collect();
    let sum = totals(&items, Duration::from_millis(1234));
    let text = [verify_table(&items, false), failures.join("\n"), sum, check_table(&verdict(2.5, [1, 2]), false)];
    insta::assert_snapshot!(text.join("\n\n"));
}

#[test]
fn what_a_program_reads() {
    let mut report = verify_json(&items());
    report["runs"].as_array_mut().unwrap().retain(|run| run["case"] != "small");
    insta::assert_snapshot!(format!("{report:#}\n{:#}", check_json(&verdict(2.5, [1, 2]))));
}
