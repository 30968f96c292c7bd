//! Runs of fused kernels: what goes from one step to the next is not rounded, and the dump holds rounded copies of it.

use dsv2_reference::stage::convention::fused::{FUSED, Fused};
use dsv2_reference::stage::table::{ATTN_SCORES, ATTN_WEIGHTS, EMBED_TOKENS, LAYER, O_PROJ, ROUTER_LOGITS};
use dsv2_reference::stage::{forward_order, name};

use super::*;
use crate::local::stored;
use crate::trace::Trace;

const CASE: &str = "trained-tiny-greedy";
const LAYER_1: usize = 1;

/// A dump up to the stage of a line in layer 1, which is computed as the line says, and times `factor`.
fn fused(line: &Fused, precision: Precision, factor: f64) -> Stages {
    let stage = name(line.stage, LAYER_1);
    let mut stages = run(&case(CASE), precision, &mut NoTap);
    stages.retain(|name, _| forward_order(name) <= forward_order(&stage));
    let mut given: Trace = stages.iter().map(|(name, values)| (name.clone(), values.clone())).collect();
    let left_out: Vec<String> = line.unrounded.iter().map(|kind| name(kind, LAYER_1)).collect();
    given.retain(|name| !left_out.iter().any(|left| left == name));
    if line.stream_is_rounded {
        let of = |name: &str| given.get(name).unwrap().real().unwrap().clone();
        let (before, added) = (name(LAYER, 0), name(O_PROJ, LAYER_1));
        let zeros = ArrayD::zeros(of(&added).raw_dim());
        let sum = stored(precision, &before, &(of(&before) + of(&added)));
        given = given.with(&before, sum).with(&added, Values::Real(Dtype::F32, zeros));
    }
    let wanted = |name: &str| name == stage;
    let settings =
        Settings { precision: Precision::F32, stages: Some(&wanted), teacher: Some(&given), ..Settings::default() };
    let wide = Reference.run(&case(CASE), &settings, &mut NoTap).unwrap();
    let values = stored(precision, &stage, &(wide.get(&stage).unwrap().real().unwrap() * factor));
    stages.insert(stage, values);
    stages
}

fn said_of<'a>(checked: &'a Checked, kind: &str) -> Vec<&'a str> {
    let of = kind.rsplit('.').next().unwrap();
    let starts = format!("{of} is computed from what was not yet rounded");
    checked.assumed.iter().map(String::as_str).filter(|says| says.starts_with(&starts)).collect()
}

#[test]
fn what_fused_kernels_compute_is_right_and_a_bug_in_it_is_found() {
    for line in FUSED {
        for precision in [Precision::Bf16, Precision::F16] {
            let of = format!("{} from unrounded {}, {precision}", line.stage, line.says);
            let checked = judged(case(CASE), fused(line, precision, 1.0), Some(precision));
            assert_eq!(first_failure(&checked), None, "{of}: {:?}", checked.verdict.first_failure());
            if line.stage == ROUTER_LOGITS {
                assert!(said_of(&checked, line.stage)[0].contains(line.says), "{of}: {:?}", checked.assumed);
            }
            let wrong = judged(case(CASE), fused(line, precision, 1.05), Some(precision));
            assert_eq!(first_failure(&wrong), Some(name(line.stage, LAYER_1).as_str()), "{of}");
        }
    }
}

#[test]
fn softmax_of_unrounded_scores_needs_the_scores_before_they_were_rounded() {
    let line = FUSED.iter().find(|line| line.stage == ATTN_WEIGHTS && line.unrounded == [ATTN_SCORES]).unwrap();
    let stages = fused(line, Precision::Bf16, 1.0);
    let checked = judged(case(CASE), stages.clone(), Some(Precision::Bf16));
    assert_eq!(said_of(&checked, ATTN_WEIGHTS).len(), 1, "{:?}", checked.assumed);
    // the dump's own scores are held against it, too
    let mut wrong = stages;
    let Values::Real(_, a) = &mut wrong[&name(ATTN_SCORES, LAYER_1)] else { panic!() };
    a.mapv_inplace(|x| 1.05 * x);
    let checked = judged(case(CASE), wrong, Some(Precision::Bf16));
    assert_eq!(first_failure(&checked), Some(name(ATTN_SCORES, LAYER_1).as_str()));
    assert_eq!(said_of(&checked, ATTN_WEIGHTS), [""; 0]);
}

#[test]
fn a_router_in_a_narrow_type_is_no_fused_kernel() {
    let stage = name(ROUTER_LOGITS, LAYER_1);
    let mut stages = run(&case(CASE), Precision::Bf16, &mut NoTap);
    let Values::Real(_, a) = &stages[&stage] else { panic!() };
    let rounded = Tensor::from_values(Dtype::Bf16, a.shape(), a.iter().copied()).to_array();
    stages.insert(stage.clone(), Values::Real(Dtype::F32, rounded));
    let checked = judged(case(CASE), stages, Some(Precision::Bf16));
    assert_eq!(first_failure(&checked), Some(stage.as_str()));
}

#[test]
fn a_run_in_f32_that_was_saved_in_a_narrow_type_is_right() {
    for precision in [Precision::Bf16, Precision::F16] {
        let narrow = |wide: Stages| -> Stages {
            let saved = |(name, values): (String, Values)| match &values {
                Values::Real(_, a) if name != EMBED_TOKENS => (name.clone(), stored(precision, &name, a)),
                _ => (name, values),
            };
            wide.into_iter().map(saved).collect()
        };
        let right = narrow(run(&case(CASE), Precision::F32, &mut NoTap));
        let checked = judged(case(CASE), right, Some(precision));
        assert_eq!(first_failure(&checked), None, "{precision}: {:?}", checked.verdict.first_failure());
        assert!(checked.assumed.iter().any(|says| says.contains("computed in a wider type")), "{:?}", checked.assumed);
        for stage in ["model.layers.1.mlp.gate.router_logits", "model.layers.2.self_attn.attn_weights"] {
            let wrong = narrow(run(&case(CASE), Precision::F32, &mut TooLarge(stage)));
            assert_eq!(first_failure(&judged(case(CASE), wrong, Some(precision))), Some(stage), "{precision}");
        }
    }
}
