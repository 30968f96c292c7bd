mod ring;

use dsv2_reference::Dtype;
use dsv2_reference::tap::NoTap;
use ndarray::{Axis, Slice, concatenate, s};

use dsv2_reference::stage::table::LM_HEAD;

use super::plans::{How, PLANS};
use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::golden::GoldenCases;
use crate::precision::Precision;

const CASE: &str = "v2";

fn case() -> Case {
    GoldenCases::embedded().load(CASE).unwrap().case
}

/// The stages of the reference in f32.
fn trace() -> Trace {
    let settings = Settings { precision: Precision::F32, ..Settings::default() };
    Reference.run(&case(), &settings, &mut NoTap).unwrap()
}

/// Two pieces along an axis, not of one length.
fn cut(a: &ArrayD<f64>, axis: usize) -> [ArrayD<f64>; 2] {
    let middle = (a.len_of(Axis(axis)) / 2) as isize;
    [Slice::new(0, Some(middle), 1), Slice::new(middle, None, 1)]
        .map(|slice| a.slice_axis(Axis(axis), slice).to_owned())
}

/// What two ranks hold of a trace.
fn ranks(trace: &Trace, rule: &Rule) -> [Vec<(String, Values)>; 2] {
    let mut ranks = [Vec::new(), Vec::new()];
    for (name, values) in trace.iter() {
        let parts = match (rule.how(name), values) {
            (How::Columns, Values::Real(dtype, a)) => {
                let mut parts = cut(a, a.ndim() - 1);
                if name == LM_HEAD {
                    // a vocabulary that is padded
                    let last = parts[1].ndim() - 1;
                    let mut padding = parts[1].shape().to_vec();
                    padding[last] = 7;
                    let padding = ArrayD::from_elem(padding, 1e9);
                    parts[1] = concatenate(Axis(last), &[parts[1].view(), padding.view()]).unwrap();
                }
                parts.map(|a| Values::Real(*dtype, a))
            }
            (How::Heads, Values::Real(dtype, a)) => cut(a, 1).map(|a| Values::Real(*dtype, a)),
            (How::Sequence, Values::Real(dtype, a)) if a.ndim() == 3 => cut(a, 1).map(|a| Values::Real(*dtype, a)),
            (How::Sum, Values::Real(dtype, a)) => {
                let first =
                    ArrayD::from_shape_fn(a.raw_dim(), |i| if a[&i].to_bits() >> 30 & 1 == 0 { 0.0 } else { a[&i] });
                [first.clone(), a - &first].map(|a| Values::Real(*dtype, a))
            }
            (_, values) => [values.clone(), values.clone()],
        };
        for (rank, part) in ranks.iter_mut().zip(parts) {
            rank.push((name.to_owned(), part));
        }
    }
    ranks
}

fn files(ranks: [Vec<(String, Values)>; 2]) -> Vec<File> {
    ["r0.pt", "r1.pt"].map(str::to_owned).into_iter().zip(ranks.map(|rank| rank.into_iter().collect())).collect()
}

fn checked(rule: &Rule, ranks: [Vec<(String, Values)>; 2]) -> Checked {
    let mut request = Request::new(case(), Trace::default());
    let joined = join(&files(ranks), rule, &request.case).unwrap();
    check_ranks(&mut request, joined).unwrap()
}

fn of<'a>(rank: &'a mut [(String, Values)], name: &str) -> &'a mut ArrayD<f64> {
    match rank.iter_mut().find(|(found, _)| found == name) {
        Some((_, Values::Real(_, a))) => a,
        other => panic!("{name}: {other:?}"),
    }
}

fn first_failure(checked: &Checked) -> &str {
    &checked.verdict.first_failure().expect("it fails").stage
}

#[test]
fn the_ranks_of_every_plan_make_a_dump_that_passes_and_it_is_said_how() {
    let trace = trace();
    let told = PLANS.iter().map(|plan| {
        let rule: Rule = plan.name.parse().unwrap();
        let checked = checked(&rule, ranks(&trace, &rule));
        assert!(checked.verdict.passes(), "{}: {:?}", plan.name, checked.verdict.first_failure());
        let mut told: IndexMap<&str, usize> = IndexMap::new();
        for found in &checked.layouts {
            *told.entry(&found.layout).or_default() += 1;
        }
        format!("{}: {told:?}", plan.name)
    });
    insta::assert_snapshot!(told.collect::<Vec<_>>().join("\n"));
}

#[test]
fn ranks_in_another_order_fail_where_it_first_shows() {
    let rule: Rule = "vllm".parse().unwrap();
    let mut ranks = ranks(&trace(), &rule);
    ranks.reverse();
    // the vocabulary is cut in the middle, and padded behind: here it is of no interest
    ranks.iter_mut().for_each(|rank| rank.retain(|(name, _)| name != LM_HEAD));
    assert_eq!(first_failure(&checked(&rule, ranks)), "model.layers.0.self_attn.q_b_proj");
}

#[test]
fn a_partial_sum_that_is_lost_fails_at_its_stage() {
    let rule: Rule = "vllm".parse().unwrap();
    let mut ranks = ranks(&trace(), &rule);
    of(&mut ranks[1], "model.layers.1.mlp.experts").fill(0.0);
    assert_eq!(first_failure(&checked(&rule, ranks)), "model.layers.1.mlp.experts");
}

#[test]
fn sums_that_were_reduced_before_are_whole() {
    let rule: Rule = "vllm".parse().unwrap();
    let trace = trace();
    let mut ranks = ranks(&trace, &rule);
    let name = "model.layers.1.mlp.experts";
    let whole = trace.get(name).unwrap().real().unwrap();
    ranks.iter_mut().for_each(|rank| of(rank, name).assign(whole));
    let checked = checked(&rule, ranks);
    assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
    assert!(checked.layouts.iter().any(|found| found.stage == name && found.layout == "whole on each of 2 ranks"));
}

#[test]
fn a_copy_that_differs_on_one_rank_fails_and_names_the_rank() {
    let rule: Rule = "transformers".parse().unwrap();
    let mut ranks = ranks(&trace(), &rule);
    let name = "model.layers.1.post_attention_layernorm";
    of(&mut ranks[1], name).slice_mut(s![0, 1, ..]).mapv_inplace(|x| x * 1.5);
    let checked = checked(&rule, ranks);
    assert_eq!(first_failure(&checked), name);
    assert!(checked.layouts.iter().any(|found| found.stage == name && found.layout == "the copy of rank 1"));
}

#[test]
fn a_copy_that_is_wrong_on_one_rank_is_told_beside_an_earlier_failure() {
    let rule: Rule = "transformers".parse().unwrap();
    let mut ranks = ranks(&trace(), &rule);
    let (first, second) = ("model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm");
    for rank in &mut ranks {
        of(rank, first).mapv_inplace(|x| x * 1.5);
    }
    of(&mut ranks[1], second).slice_mut(s![0, 1, ..]).mapv_inplace(|x| x * 1.5);
    let checked = checked(&rule, ranks);
    assert_eq!(first_failure(&checked), first);
    let copy = checked.verdict.stages.iter().find(|stage| stage.stage == second).unwrap();
    assert_eq!((copy.disposition, copy.note.as_deref()), (Disposition::OverBudget, Some("the copy of rank 1")));
}

#[test]
fn copies_that_differ_by_rounding_pass_and_it_is_said() {
    let rule: Rule = "transformers".parse().unwrap();
    let mut ranks = ranks(&trace(), &rule);
    let name = "model.layers.1.post_attention_layernorm";
    let x = &mut of(&mut ranks[1], name)[[0, 1, 2]];
    *x = f64::from((*x as f32).next_up());
    let checked = checked(&rule, ranks);
    assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
    assert!(checked.layouts.iter().any(|found| found.stage == name && found.layout.contains("judged, too")));
}

#[test]
fn ranks_that_choose_other_experts_are_wrong_however_near_the_tie() {
    let choice = |experts: [i64; 4]| Values::Index(ArrayD::from_shape_vec(vec![2, 2], experts.to_vec()).unwrap());
    assert_eq!(other_choice(&choice([1, 2, 3, 4]), &choice([2, 1, 3, 4])), None);
    assert_eq!(other_choice(&choice([1, 2, 3, 4]), &choice([2, 1, 3, 5])), Some(1));
    let trace = trace();
    let joined = Joined {
        first: trace.clone(),
        others: Vec::new(),
        elsewhere: vec![("model.layers.1.mlp.gate.topk_indices".to_owned(), "rank 1 does not".to_owned())],
        sums: PartialSums::default(),
    };
    let checked = check_ranks(&mut Request::new(case(), Trace::default()), joined).unwrap();
    let failed = checked.verdict.first_failure().unwrap();
    assert_eq!((failed.disposition, failed.note.as_deref()), (Disposition::WrongRouting, Some("rank 1 does not")));
}

#[test]
fn gate_and_up_of_each_rank_are_taken_apart() {
    let case = GoldenCases::embedded().load("v2-lite").unwrap().case;
    let settings = Settings { precision: Precision::F32, ..Settings::default() };
    let trace = Reference.run(&case, &settings, &mut NoTap).unwrap();
    let real = |leaf: &str| trace.get(&format!("model.layers.0.mlp.{leaf}_proj")).unwrap().real().unwrap().clone();
    let (gate, up) = (cut(&real("gate"), 2), cut(&real("up"), 2));
    let fused = |rank: usize| {
        let fused = concatenate(Axis(2), &[gate[rank].view(), up[rank].view()]).unwrap();
        vec![("model.layers.0.mlp.gate_up_proj".to_owned(), Values::Real(Dtype::F32, fused))]
    };
    let mut request = Request::new(case, Trace::default());
    let right = join(&files([fused(0), fused(1)]), &"vllm".parse().unwrap(), &request.case).unwrap();
    assert!(check_ranks(&mut request, right).unwrap().verdict.passes());
    let swapped = join(&files([fused(1), fused(0)]), &"vllm".parse().unwrap(), &request.case).unwrap();
    assert_eq!(first_failure(&check_ranks(&mut request, swapped).unwrap()), "model.layers.0.mlp.gate_proj");
}

#[test]
fn ranks_that_do_not_make_up_a_tensor_are_refused() {
    let case = case();
    let trace = trace();
    let rule = |text: &str| -> Rule { text.parse().unwrap() };
    let named = |name: &str, a: ArrayD<f64>| vec![(name.to_owned(), Values::Real(Dtype::F32, a))];
    let refused = |text: &str, ranks| join(&files(ranks), &rule(text), &case).unwrap_err().to_string();
    let q = "model.layers.0.self_attn.q_b_proj";
    let scores = "model.layers.0.self_attn.attn_scores";
    let experts = "model.layers.1.mlp.experts";
    let part = |name: &str, axis: usize| named(name, cut(trace.get(name).unwrap().real().unwrap(), axis)[0].clone());
    let wider = named(q, ArrayD::zeros(vec![2, 9, 100]));
    let flat = named(experts, ArrayD::zeros(vec![3]));
    let disjoint = files([part(q, 2), part(scores, 1)]);
    let twice = files([part(q, 2), part(q, 2)]);
    assert_eq!(together(disjoint).unwrap().first.len(), 2);
    insta::assert_snapshot!(
        [
            refused("vllm", [part(q, 2), vec![]]),
            refused("vllm", [part(q, 2), wider]),
            refused("vllm", [part(scores, 1), part(scores, 2)]),
            refused("vllm", [part(experts, 0), flat]),
            together(twice).unwrap_err().to_string(),
        ]
        .join("\n")
    );
}
