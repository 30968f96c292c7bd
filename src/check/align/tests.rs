use dsv2_reference::Dtype;
use dsv2_reference::stage::Layout;
use dsv2_reference::tap::NoTap;

use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::check::{Checked, Request, check};
use crate::golden::GoldenCases;
use crate::precision::Precision;
use crate::trace::Trace;

/// Checks the reference's own trace of a case, rearranged.
fn checked(case: &str, rearrange: impl Fn(&str, ArrayD<f64>) -> (String, ArrayD<f64>)) -> Checked {
    let case = GoldenCases::embedded().load(case).unwrap().case;
    let trace =
        Reference.run(&case, &Settings { precision: Precision::F32, ..Settings::default() }, &mut NoTap).unwrap();
    let moved = |(name, values): (&str, &Values)| match values {
        Values::Real(_, a) => {
            let (name, a) = rearrange(name, a.clone());
            (name, Values::Real(Dtype::F32, a))
        }
        values => (name.to_owned(), values.clone()),
    };
    let candidate = trace.iter().map(moved).collect();
    check(&Request::new(case, candidate)).unwrap()
}

/// What was recognised, and for how many stages.
fn recognised(checked: &Checked) -> Vec<(&str, usize)> {
    let mut layouts: Vec<(&str, usize)> = Vec::new();
    for found in &checked.layouts {
        match layouts.iter_mut().find(|(layout, _)| *layout == found.layout) {
            Some((_, count)) => *count += 1,
            None => layouts.push((&found.layout, 1)),
        }
    }
    layouts
}

fn says(turn: Turn) -> &'static str {
    convention::CONVENTIONS.iter().find(|convention| convention.turn == turn).unwrap().says
}

fn halves_of_pairs(a: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(a.ndim() - 1);
    let (even, odd) = (a.slice_axis(last, Slice::new(0, None, 2)), a.slice_axis(last, Slice::new(1, None, 2)));
    ndarray::concatenate(last, &[even, odd]).unwrap()
}

#[test]
fn de_interleaved_rotary_keys_pass_and_it_is_said() {
    let turned =
        |name: &str, a: ArrayD<f64>| (name.to_owned(), if name.ends_with("_pe") { halves_of_pairs(&a) } else { a });
    let checked = checked("v2", turned);
    assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
    assert_eq!(recognised(&checked), [(says(Turn::Halves), 9)]);
}

#[test]
fn keys_of_another_rotation_are_not_taken_for_another_layout() {
    let turned =
        |name: &str, a: ArrayD<f64>| (name.to_owned(), if name.ends_with("k_pe") { pairs_of_halves(&a) } else { a });
    let checked = checked("v2", turned);
    let first = checked.verdict.first_failure().unwrap();
    assert_eq!(first.stage, "model.layers.0.self_attn.k_pe");
    assert_eq!(recognised(&checked), []);
}

#[test]
fn a_flattened_batch_and_heads_behind_the_tokens_pass() {
    let flat = |name: &str, a: ArrayD<f64>| {
        let stage = Stage::parse(name).unwrap();
        let shape = a.shape().to_vec();
        let a = match (stage.layout, &shape[..]) {
            (Layout::Tokens, &[batch, length, width]) => a.into_shape_with_order(vec![batch * length, width]).unwrap(),
            (Layout::Flat, &[tokens, width]) => a.into_shape_with_order(vec![2, tokens / 2, width]).unwrap(),
            (Layout::Heads, _) => a.permuted_axes(vec![0, 2, 1, 3]).as_standard_layout().into_owned(),
            _ => a,
        };
        (name.to_owned(), a)
    };
    let checked = checked("v2", flat);
    assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
    let layouts: Vec<&str> = recognised(&checked).into_iter().map(|(layout, _)| layout).collect();
    let expected = [
        "the batch flattened, [B·S, ..]",
        says(Turn::HeadsBehind),
        "axes of length 1 more or less",
        "the batch kept apart, [B, S, ..]",
    ];
    assert_eq!(layouts, expected);
}

#[test]
fn a_fused_gate_and_up_projection_is_taken_apart() {
    let case = GoldenCases::embedded().load("v2-lite").unwrap().case;
    let settings = Settings { precision: Precision::F32, ..Settings::default() };
    let trace = Reference.run(&case, &settings, &mut NoTap).unwrap();
    let of = |leaf: &str| trace.get(&format!("model.layers.0.mlp.{leaf}_proj")).unwrap().real().unwrap().clone();
    let fused = ndarray::concatenate(Axis(2), &[of("gate").view(), of("up").view()]).unwrap();
    let dump = |fused: ArrayD<f64>| -> Trace {
        let others = trace.iter().filter(|(name, _)| !name.ends_with("gate_proj") && !name.ends_with("up_proj"));
        let others = others.map(|(name, values)| (name.to_owned(), values.clone()));
        others.chain([("model.layers.0.mlp.gate_up_proj".to_owned(), Values::Real(Dtype::F32, fused))]).collect()
    };
    let request = |candidate| Request::new(GoldenCases::embedded().load("v2-lite").unwrap().case, candidate);
    let good = check(&request(dump(fused.clone()))).unwrap();
    assert!(good.verdict.passes(), "{:?}", good.verdict.first_failure());
    assert_eq!(recognised(&good), [("mlp.gate_proj and mlp.up_proj, fused", 1)]);
    let bad = check(&request(dump(fused * 1.1))).unwrap();
    assert_eq!(bad.verdict.first_failure().unwrap().stage, "model.layers.0.mlp.gate_proj");
}
