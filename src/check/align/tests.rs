//! Rearranged dumps: what is said of each, that it passes, and that the same with a bug in it fails where the bug is.

mod rotated;
mod rounded_copies;
mod ways;

use std::collections::BTreeSet;
use std::sync::Arc;

use dsv2_reference::stage::convention::{fused, name, place, value};
use dsv2_reference::stage::{Stage, table};
use dsv2_reference::tap::{NoTap, StageValue};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::splitmix64;
use dsv2_reference::{Dtype, Tensor};
use ndarray::{Array2, ArrayD, Axis, IxDyn};

use crate::backend::{Backend, Reference, Settings};
use crate::case::Case;
use crate::check::{Checked, Request, check_without_hint};
use crate::golden::GoldenCases;
use crate::inputs::{Inputs, Tokens};
use crate::mutants::catalogue;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::AnyTap;
use crate::values::Values;
use ways::{O_PROJ_2, Stages, WAYS, WEIGHTS_2, Way, after_the_sum, permuted, sequence_first};

fn case(name: &str) -> Case {
    GoldenCases::embedded().load(name).unwrap().case
}

/// The reference's own run of a case.
fn run(case: &Case, precision: Precision, tap: &mut dyn AnyTap) -> Stages {
    let trace = Reference.run(case, &Settings { precision, ..Settings::default() }, tap).unwrap();
    trace.iter().map(|(name, values)| (name.to_owned(), values.clone())).collect()
}

/// Makes a stage a tenth too large, and all that follows from it wrong.
struct TooLarge(&'static str);

impl<T: dsv2_reference::Real> dsv2_reference::tap::Tap<T> for TooLarge {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if let (StageValue::Real(mut a), true) = (value, name == self.0) {
            a.mapv_inplace(|x| x * T::from_f64(1.1));
        }
    }
}

fn judged(case: Case, stages: Stages, precision: Option<Precision>) -> Checked {
    let request = Request { precision, ..Request::new(case, stages.into_iter().collect()) };
    check_without_hint(&request).unwrap()
}

/// What is said, each once.
fn said(checked: &Checked) -> BTreeSet<&str> {
    checked.layouts.iter().map(|found| found.layout.as_str()).collect()
}

fn first_failure(checked: &Checked) -> Option<&str> {
    checked.verdict.first_failure().map(|stage| stage.stage.as_str())
}

fn passes_and_fails(way: &Way, precision: Precision) {
    let of = format!("{}, {precision}", way.what);
    let mut right = run(&case(way.case), precision, &mut NoTap);
    (way.turn)(&mut right, &case(way.case));
    let checked = judged(case(way.case), right, Some(precision));
    assert_eq!(first_failure(&checked), None, "{of}: {:?}", checked.verdict.first_failure());
    assert_eq!(said(&checked), way.says.iter().copied().collect(), "{of}");
    for &stage in way.found {
        let mut wrong = run(&case(way.case), precision, &mut TooLarge(stage));
        (way.turn)(&mut wrong, &case(way.case));
        let checked = judged(case(way.case), wrong, Some(precision));
        assert_eq!(first_failure(&checked), Some(stage), "{of}, {stage}: {:?}", checked.verdict.first_failure());
    }
}

#[test]
fn a_rearranged_dump_passes_and_the_same_with_a_bug_fails_where_the_bug_is() {
    for way in WAYS {
        passes_and_fails(way, Precision::F32);
        passes_and_fails(way, Precision::Bf16);
    }
}

#[test]
fn a_factor_or_an_expert_that_is_left_out_is_no_convention() {
    for (id, stage) in [
        ("no_gamma", "model.layers.1.mlp.gate.topk_weights"),
        ("renorm_nogamma", "model.layers.1.mlp.gate.topk_weights"),
        ("renorm", "model.layers.1.mlp.gate.topk_weights"),
        ("shared_dropped", "model.layers.1.mlp"),
        ("shared_gamma", "model.layers.1.mlp.shared_experts"),
        ("drop_last_slot", "model.layers.1.mlp.experts"),
    ] {
        let mutant = catalogue().find(|mutant| mutant.id == id).unwrap();
        for precision in [Precision::F32, Precision::Bf16] {
            let case = case("v2");
            let wrong = {
                let weights = Wide::new(&case);
                run(&case, precision, &mut Planted::new(&mutant.variant, &weights, precision).unwrap())
            };
            let checked = judged(case, wrong, Some(precision));
            assert_eq!(first_failure(&checked), Some(stage), "{id}, {precision}");
            assert_eq!(said(&checked), BTreeSet::new(), "{id}, {precision}");
        }
    }
}

#[test]
fn weights_without_anything_after_them_do_not_show_where_the_factor_is() {
    let mut stages = run(&case("v2-5"), Precision::F32, &mut NoTap);
    after_the_sum(&mut stages, &case("v2-5"));
    stages.retain(|name, _| name.contains(".mlp.gate.") || name.ends_with(".mlp.experts"));
    let checked = judged(case("v2-5"), stages, None);
    assert_eq!(first_failure(&checked), Some("model.layers.1.mlp.gate.topk_weights"));
}

#[test]
fn keys_of_another_rotation_are_not_taken_for_another_layout() {
    let mut stages = run(&case("v2"), Precision::F32, &mut NoTap);
    for (_, values) in stages.iter_mut().filter(|(name, _)| name.ends_with("k_pe")) {
        // pairs where halves would be expected: no program has that
        let Values::Real(_, a) = values else { panic!() };
        let order: Vec<usize> = (0..8).map(|i| if i % 2 == 0 { i / 2 } else { 4 + i / 2 }).collect();
        *a = a.select(Axis(a.ndim() - 1), &order);
    }
    let checked = judged(case("v2"), stages, None);
    assert_eq!(first_failure(&checked), Some("model.layers.0.self_attn.k_pe"));
    assert_eq!(said(&checked), BTreeSet::new());
}

/// The model `v2` on so many sequences of so many tokens.
fn sized(batch: usize, length: usize) -> Case {
    let ids = Array2::from_shape_fn((batch, length), |(b, s)| (7 * b + 3 * s + 1) as i64);
    Case { inputs: Inputs::new(Tokens::InputIds(ids)), chunks: vec![length], ..case("v2") }
}

#[test]
fn shapes_that_do_not_decide_are_decided_by_numbers() {
    let square = || sized(4, 4);
    for precision in [Precision::F32, Precision::Bf16] {
        let as_it_is = judged(square(), run(&square(), precision, &mut NoTap), Some(precision));
        assert_eq!((first_failure(&as_it_is), said(&as_it_is).len()), (None, 0));

        let sequence = "the sequence before the batch, [S, B, ..]";
        let mut turned = run(&square(), precision, &mut NoTap);
        sequence_first(&mut turned, &square());
        let checked = judged(square(), turned.clone(), Some(precision));
        assert_eq!((first_failure(&checked), said(&checked)), (None, BTreeSet::from([sequence])));
        assert_eq!(checked.near_ties, as_it_is.near_ties);

        // one tensor alone is transposed by mistake
        turned.retain(|name, _| name == "lm_head");
        assert_eq!(first_failure(&judged(square(), turned, Some(precision))), Some("lm_head"));

        let mut wrong = run(&square(), precision, &mut TooLarge(O_PROJ_2));
        sequence_first(&mut wrong, &square());
        assert_eq!(first_failure(&judged(square(), wrong, Some(precision))), Some(O_PROJ_2));

        let mut behind = run(&square(), precision, &mut NoTap);
        for (name, values) in &mut behind {
            let Values::Real(_, a) = values else { continue };
            if name.ends_with("q_pe") || name.ends_with("attn_scores") || name.ends_with("attn_weights") {
                *a = permuted(a, &[0, 2, 1, 3]);
            }
        }
        let checked = judged(square(), behind, Some(precision));
        let says = BTreeSet::from(["heads behind the tokens, [B, S, H, ..]"]);
        assert_eq!((first_failure(&checked), said(&checked)), (None, says));
    }
}

#[test]
fn rows_that_nobody_may_read_may_hold_anything() {
    for name in ["left-padding", "right-padding", "decode-left-padding", "middle-padding"] {
        for precision in [Precision::F32, Precision::Bf16] {
            for garbage in [f64::NAN, f64::INFINITY, 1e30] {
                let rows = ComparedRows::of(&case(name).inputs);
                let mut stages = run(&case(name), precision, &mut NoTap);
                for (name, values) in &mut stages {
                    let stage = Stage::parse(name).unwrap();
                    let Some(read) = rows.of_stage(&stage, values.shape()) else { continue };
                    let last = Axis(values.shape().len() - 1);
                    match values {
                        Values::Real(_, a) => {
                            let unread = a.lanes_mut(last).into_iter().zip(read).filter(|(_, read)| !read);
                            unread.for_each(|(mut row, _)| row.fill(garbage));
                        }
                        Values::Index(a) => {
                            let unread = a.lanes_mut(last).into_iter().zip(read).filter(|(_, read)| !read);
                            unread.for_each(|(mut row, _)| row.fill(-1));
                        }
                        Values::Bool(_) => {}
                    }
                }
                let checked = judged(case(name), stages.clone(), Some(precision));
                let of = format!("{name}, {precision}, {garbage}: {:?}", checked.verdict.first_failure());
                assert_eq!(first_failure(&checked), None, "{of}");

                let norm = "model.layers.1.self_attn.kv_a_layernorm";
                let Values::Real(_, a) = &mut stages[norm] else { panic!() };
                let read = rows.of_stage(&Stage::parse(norm).unwrap(), a.shape()).unwrap();
                let at = read.iter().position(|read| *read).unwrap();
                a.lanes_mut(Axis(2)).into_iter().nth(at).unwrap()[0] = f64::NAN;
                assert_eq!(first_failure(&judged(case(name), stages, Some(precision))), Some(norm), "{of}");
            }
        }
    }
}

/// The same numbers, stored as F32.
fn saved_as_f32(stages: &mut Stages) {
    for values in stages.values_mut() {
        if let Values::Real(dtype, _) = values {
            *dtype = Dtype::F32;
        }
    }
}

#[test]
fn a_narrow_run_that_was_saved_as_f32_is_judged_as_what_it_is_and_it_is_said() {
    for precision in [Precision::Bf16, Precision::F16] {
        for name in ["v2", "trained-tiny-grouped", "left-padding"] {
            let mut stages = run(&case(name), precision, &mut NoTap);
            saved_as_f32(&mut stages);
            let checked = judged(case(name), stages.clone(), None);
            assert_eq!((first_failure(&checked), checked.precision), (None, precision), "{name}");
            assert!(checked.assumed[0].starts_with(&format!("judged as {precision}: ")), "{:?}", checked.assumed);
            // and not if somebody knows better
            let checked = judged(case(name), stages, Some(Precision::F32));
            assert!(first_failure(&checked).is_some() && checked.assumed.is_empty());
        }
    }
    let mut wrong = run(&case("v2"), Precision::Bf16, &mut TooLarge(O_PROJ_2));
    saved_as_f32(&mut wrong);
    assert_eq!(first_failure(&judged(case("v2"), wrong, None)), Some(O_PROJ_2));
    for name in ["v2", "one-token", "all-dense", "trained-tiny-greedy"] {
        let checked = judged(case(name), run(&case(name), Precision::F32, &mut NoTap), None);
        assert_eq!((checked.precision, checked.assumed.len()), (Precision::F32, 0), "{name}");
    }
}

#[test]
fn a_copy_of_what_the_dump_itself_holds_is_right_in_either_rounding() {
    let cached = "past_key_values.1.compressed_kv";
    let mut stages = run(&case("v2"), Precision::Bf16, &mut NoTap);
    // latents and keys that were not rounded
    let wide = run(&case("v2"), Precision::F32, &mut NoTap);
    for (name, values) in &mut stages {
        if ["kv_a_layernorm", "k_pe", "compressed_kv"].iter().any(|end| name.ends_with(end)) {
            *values = wide[name].clone();
        }
    }
    // taken from this run's own projections, so that the dump is one run's
    let of_run = |stages: &Stages| judged(case("v2"), stages.clone(), Some(Precision::Bf16));
    let fails = |checked: &Checked| checked.verdict.stages.iter().any(|s| s.stage == cached && s.disposition.fails());
    assert!(!fails(&of_run(&stages)));
    let Values::Real(_, a) = &mut stages[cached] else { panic!() };
    let first = a.first_mut().unwrap();
    *first = f64::from((*first as f32).next_up());
    assert!(fails(&of_run(&stages)));
    // the copy may be rounded, too
    let Values::Real(dtype, a) = &mut stages[cached] else { panic!() };
    *a = Tensor::from_values(Dtype::Bf16, a.shape(), wide[cached].real().unwrap().iter().copied()).to_array();
    *dtype = Dtype::Bf16;
    assert!(!fails(&of_run(&stages)));
}

/// Weights that bf16 does not have; of some tensors, as a program has them that rounds those on load.
struct Inexact(Arc<dyn WeightSource + Send + Sync>, fn(&str) -> bool);

impl WeightSource for Inexact {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, dsv2_reference::Error> {
        let exact: ArrayD<f64> = self.0.tensor(name, shape)?.to_array::<f64, IxDyn>();
        let wide = Tensor::from_values(Dtype::F32, shape, exact.iter().map(|x| x * 1.0037));
        let values: ArrayD<f64> = wide.to_array::<f64, IxDyn>();
        Ok(if self.1(name) { Tensor::from_values(Dtype::Bf16, shape, values.iter().copied()) } else { wide })
    }

    fn names(&self) -> Option<Vec<String>> {
        self.0.names()
    }
}

#[test]
fn weights_that_are_not_exact_may_be_rounded_on_load_or_not() {
    let inexact = |rounded: fn(&str) -> bool| {
        let case = case("v2");
        Case { weights: Arc::new(Inexact(case.weights, rounded)), ..case }
    };
    type Rounded = fn(&str) -> bool;
    let none: Rounded = |_| false;
    let ways: [(&str, Rounded, bool); 4] = [
        ("as they are", none, false),
        ("all but the gates", |name| !name.ends_with(".mlp.gate.weight"), false),
        ("the gates", |name| name.ends_with(".mlp.gate.weight"), true),
        ("all", |_| true, true),
    ];
    for (what, rounded, gates) in ways {
        let stages = run(&inexact(rounded), Precision::Bf16, &mut NoTap);
        let checked = judged(inexact(none), stages, Some(Precision::Bf16));
        assert_eq!(first_failure(&checked), None, "{what}: {:?}", checked.verdict.first_failure());
        let told =
            checked.assumed.iter().any(|says| says.contains("rounded to it on load") && says.contains("router_logits"));
        assert_eq!(told, gates, "{what}: {:?}", checked.assumed);

        let wrong = run(&inexact(rounded), Precision::Bf16, &mut TooLarge(WEIGHTS_2));
        assert_eq!(first_failure(&judged(inexact(none), wrong, Some(Precision::Bf16))), Some(WEIGHTS_2), "{what}");
    }
}

#[test]
fn no_shape_makes_it_panic() {
    let lengths = [0, 1, 2, 3, 4, 8, 11, 12, 22, 44];
    let mut seed = 0;
    let mut next = |n: usize| {
        seed += 1;
        (splitmix64(seed) % n as u64) as usize
    };
    // one other name of each kind: a stage that comes twice is refused
    let names = |round: usize| {
        let stages = table::STAGES.iter().map(|row| dsv2_reference::stage::name(row.kind, 1));
        let others = name::OTHER_NAMES.iter().map(|other| other.names[round % other.names.len()]);
        stages.chain(others.map(|other| dsv2_reference::stage::name(other, 0))).collect::<Vec<_>>()
    };
    for round in 0..40 {
        let mut stages = Stages::new();
        for name in names(round) {
            let mut shape: Vec<usize> = (0..next(7)).map(|_| lengths[next(lengths.len())]).collect();
            while shape.iter().product::<usize>() > 1 << 14 {
                shape.pop();
            }
            let values = match next(8) {
                0 => Values::Bool(ArrayD::from_elem(shape, true)),
                1 | 2 => Values::Index(ArrayD::from_elem(shape, 3)),
                3 => Values::Real(Dtype::F32, ArrayD::from_elem(shape, f64::NAN)),
                _ => Values::Real(Dtype::F32, ArrayD::from_elem(shape, 0.5)),
            };
            stages.insert(name, values);
        }
        let case = if round % 2 == 0 { case("v2") } else { case("left-padding") };
        let request = Request::new(case, stages.into_iter().collect());
        assert!(check_without_hint(&request).is_ok_and(|checked| !checked.verdict.passes()));
    }
}

#[test]
fn the_page_names_every_convention() {
    let page = include_str!("../../../docs/judge.md");
    let section = page.split("## Other layouts").nth(1).unwrap().split("\n## ").next().unwrap();
    let says = place::CONVENTIONS.iter().map(|convention| convention.says);
    let says = says.chain(value::CONVENTIONS.iter().map(|convention| convention.says));
    let says = says.chain(name::OTHER_NAMES.iter().map(|other| other.says));
    let says = says.chain(fused::FUSED.iter().map(|line| line.says));
    for says in says {
        assert!(section.contains(says), "docs/judge.md, Other layouts: {says}");
    }
    for wrapper in name::WRAPPERS {
        assert!(section.contains(&format!("`{wrapper}`")), "docs/judge.md, Other layouts: {wrapper}");
    }
}
