use dsv2_metrics::Element;
use dsv2_reference::Dtype;
use ndarray::array;

use super::*;
use crate::budget::{Budgets, FACTORS};
use crate::inputs::{AttentionMask, Inputs, Tokens};
use crate::rows::ComparedRows;

fn trace(stages: &[(&str, Values)]) -> Trace {
    stages.iter().map(|(name, values)| ((*name).to_owned(), values.clone())).collect()
}

fn real(a: ArrayD<f64>) -> Values {
    Values::Real(Dtype::F32, a)
}

fn verdict(candidate: &[(&str, Values)], truth: &[(&str, Values)], noise: f64) -> Verdict {
    verdict_of_rows(candidate, truth, noise, &ComparedRows::default())
}

fn verdict_of_rows(candidate: &[(&str, Values)], truth: &[(&str, Values)], noise: f64, rows: &ComparedRows) -> Verdict {
    let (candidate, truth) = (trace(candidate), trace(truth));
    let noise = truth.iter().map(|(name, _)| (name.to_owned(), Metrics::from_values([noise; 4]))).collect();
    let budgets = Budgets::new(&noise, &truth, rows, FACTORS);
    judge(&candidate, &Truth { trace: &truth, budgets: &budgets, rows }, None, |name| name != "loss")
}

fn dispositions(verdict: &Verdict) -> Vec<Disposition> {
    verdict.stages.iter().map(|stage| stage.disposition).collect()
}

#[test]
fn the_first_wrong_stage_is_the_first_in_forward_order() {
    let good = real(array![[1.0, 2.0]].into_dyn());
    let bad = real(array![[1.0, 2.5]].into_dyn());
    let truth = [("lm_head", good.clone()), ("model.norm", good.clone()), ("model.layers.1", good.clone())];
    let candidate = [("lm_head", bad.clone()), ("model.norm", bad), ("model.layers.1", good)];
    let verdict = verdict(&candidate, &truth, 1e-3);
    assert!(!verdict.passes());
    let first = verdict.first_failure().unwrap();
    assert_eq!((first.stage.as_str(), first.disposition), ("model.norm", Disposition::OverBudget));
    assert_eq!(first.element, Some(Element { index: vec![0, 1], got: 2.5, want: 2.0 }));
    assert_eq!(verdict.compared(), 3);
}

#[test]
fn size_one_axes_do_not_matter_and_others_do() {
    let truth = [("model.norm", real(array![[[1.0], [2.0]]].into_dyn()))];
    let same = [("model.norm", real(array![1.0, 2.0].into_dyn()))];
    assert!(verdict(&same, &truth, 1e-6).passes());
    let longer = [("model.norm", real(array![1.0, 2.0, 3.0].into_dyn()))];
    let verdict = verdict(&longer, &truth, 1e-6);
    assert_eq!(dispositions(&verdict), [Disposition::WrongShape]);
    assert_eq!(verdict.stages[0].note.as_deref(), Some("shape [3] where [1, 2, 1] is expected"));
}

#[test]
fn what_is_missing_is_no_pass() {
    let one = real(array![1.0].into_dyn());
    let truth = [("model.norm", one.clone()), ("loss", one)];
    let verdict = verdict(&[], &truth, 1e-6);
    assert_eq!(dispositions(&verdict), [Disposition::Missing, Disposition::NotHeld]);
    assert!(!verdict.passes());
    assert_eq!(verdict.compared(), 0);
}

#[test]
fn nan_is_never_within_a_budget() {
    let truth = [("model.norm", real(array![[1.0, 2.0]].into_dyn()))];
    let nan = [("model.norm", real(array![[1.0, f64::NAN]].into_dyn()))];
    assert_eq!(dispositions(&verdict(&nan, &truth, 1e9)), [Disposition::NonFinite]);
}

#[test]
fn masked_scores_agree_as_a_set() {
    let name = "model.layers.0.self_attn.attn_scores";
    let truth = [(name, real(array![[[[1.0, f64::NEG_INFINITY]]]].into_dyn()))];
    let lowest = [(name, real(array![[[[1.0, f64::from(f32::MIN)]]]].into_dyn()))];
    assert!(verdict(&lowest, &truth, 1e-6).passes());
    let half = [(name, Values::Real(Dtype::F16, array![[[[1.0, -65504.0]]]].into_dyn()))];
    assert!(verdict(&half, &truth, 1e-6).passes());
    let mild = [(name, real(array![[[[1.0, -1e4]]]].into_dyn()))];
    assert_eq!(dispositions(&verdict(&mild, &truth, 1e-6)), [Disposition::NonFinite]);
}

#[test]
fn experts_are_a_set_and_weights_follow_them() {
    let (experts, weights) = ("model.layers.1.mlp.gate.topk_indices", "model.layers.1.mlp.gate.topk_weights");
    let truth = [(experts, Values::Index(array![[3, 1]].into_dyn())), (weights, real(array![[0.7, 0.2]].into_dyn()))];
    let turned = [(experts, Values::Index(array![[1, 3]].into_dyn())), (weights, real(array![[0.2, 0.7]].into_dyn()))];
    assert!(verdict(&turned, &truth, 1e-6).passes());

    let other = [(experts, Values::Index(array![[3, 2]].into_dyn())), (weights, real(array![[0.7, 0.2]].into_dyn()))];
    let verdict = verdict(&other, &truth, 1e-6);
    assert_eq!(dispositions(&verdict), [Disposition::WrongRouting, Disposition::OverBudget]);
    assert_eq!(verdict.stages[0].note.as_deref(), Some("token 0 goes to experts [2, 3] in place of [1, 3]"));
    assert_eq!(verdict.stages[0].element, Some(Element { index: vec![0, 1], got: 2.0, want: 1.0 }));
    assert_eq!(verdict.stages[1].element.as_ref().unwrap().got, 0.0);
}

#[test]
fn padding_is_not_compared() {
    let mut inputs = Inputs::new(Tokens::InputIds(array![[1, 2]]));
    inputs.attention_mask = Some(AttentionMask::Padding(array![[false, true]]));
    let rows = ComparedRows::of(&inputs);
    let experts = "model.layers.1.mlp.gate.topk_indices";
    let truth = [
        ("model.norm", real(array![[[1.0], [2.0]]].into_dyn())),
        (experts, Values::Index(array![[0], [1]].into_dyn())),
    ];
    let candidate = [
        ("model.norm", real(array![[[f64::NAN], [2.0]]].into_dyn())),
        (experts, Values::Index(array![[5], [1]].into_dyn())),
    ];
    assert!(verdict_of_rows(&candidate, &truth, 1e-6, &rows).passes());

    inputs.attention_mask = Some(AttentionMask::Padding(array![[false, false]]));
    let verdict = verdict_of_rows(&candidate, &truth, 1e-6, &ComparedRows::of(&inputs));
    assert_eq!(dispositions(&verdict), [Disposition::NotCompared, Disposition::NotCompared]);
}
