use dsv2_reference::tap::NoTap;
use ndarray::{ArrayD, Axis, Slice, s};

use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::check::{Checked, check};
use crate::golden::GoldenCases;
use crate::mutants::explain::{Question, explain};
use crate::precision::Precision;

/// The logits of a run of a golden case, and the case.
fn logits(name: &str, precision: Precision) -> (Case, ArrayD<f64>, Trace) {
    let case = GoldenCases::embedded().load(name).unwrap().case;
    let trace = Reference.run(&case, &Settings { precision, ..Settings::default() }, &mut NoTap).unwrap();
    let all = trace.get(LM_HEAD).unwrap().real().unwrap().clone();
    (case, all, trace)
}

fn judged(case: Case, logits: ArrayD<f64>, trace: &Trace, precision: Precision) -> Checked {
    let dump = trace.clone().with(LM_HEAD, Values::Real(precision.stored(LM_HEAD), logits));
    let checked = check(&Request { precision: Some(precision), ..Request::new(case, dump) }).unwrap();
    assert!(checked.candidate.get(LM_HEAD).is_some());
    checked
}

/// The last `kept` of each sequence.
fn last(all: &ArrayD<f64>, kept: usize) -> ArrayD<f64> {
    all.slice_axis(Axis(1), Slice::from(all.len_of(Axis(1)) - kept..)).to_owned()
}

fn flattened(a: ArrayD<f64>) -> ArrayD<f64> {
    let vocab = *a.shape().last().unwrap();
    a.to_shape((a.len() / vocab, vocab)).unwrap().into_owned().into_dyn()
}

#[test]
fn logits_of_the_last_tokens_alone_are_found_by_their_shape() {
    for name in ["v2", "left-padding", "chunked-prefill", "decode", "one-expert-per-token"] {
        for precision in [Precision::F32, Precision::Bf16] {
            for kept in [1, 3] {
                for flat in [false, true] {
                    let (case, all, trace) = logits(name, precision);
                    let own = last(&all, kept);
                    let own = if flat { flattened(own) } else { own };
                    let checked = judged(case, own, &trace, precision);
                    let failure = checked.verdict.first_failure();
                    assert!(failure.is_none(), "{name}, {precision}, {kept}: {failure:?}");
                    let says = checked.layouts.iter().find(|found| found.stage == LM_HEAD).map(|found| &*found.layout);
                    let tokens = if kept == 1 { "token" } else { "3 tokens" };
                    let told = format!("the last {tokens} of each sequence alone, [B, {kept}, V]");
                    assert_eq!(says, Some(told.as_str()), "{name}");
                }
            }
        }
    }
}

#[test]
fn a_wrong_row_of_them_fails() {
    for (name, wrong) in [("v2", 0), ("left-padding", 3)] {
        let (case, all, trace) = logits(name, Precision::F32);
        let other = all.slice(s![.., wrong..=wrong, ..]).to_owned();
        let checked = judged(case, other.into_dyn(), &trace, Precision::F32);
        assert_eq!(checked.verdict.first_failure().map(|stage| &*stage.stage), Some(LM_HEAD), "{name}");
    }
}

#[test]
fn behind_padding_the_last_real_token_is_meant() {
    let (case, all, trace) = logits("right-padding", Precision::F32);
    let Some(AttentionMask::Padding(attend)) = &case.inputs.attention_mask else { panic!("a padding mask") };
    let ends: Vec<usize> = attend.outer_iter().map(|row| row.iter().rposition(|real| *real).unwrap()).collect();
    assert!(ends.iter().any(|&end| end + 1 < all.len_of(Axis(1))), "{ends:?}");
    let rows: Vec<_> = ends.iter().enumerate().map(|(b, &end)| all.slice(s![b, end, ..])).collect();
    let own = ndarray::stack(Axis(0), &rows).unwrap().into_dyn();
    let checked = judged(case, own, &trace, Precision::F32);
    assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
}

#[test]
fn rows_that_belong_to_no_sequence_are_of_a_wrong_shape() {
    let (case, all, trace) = logits("v2", Precision::F32);
    assert_eq!(case.inputs.batch(), 2);
    let odd = flattened(last(&all, 2)).slice_axis(Axis(0), Slice::from(..3)).to_owned();
    let checked = judged(case, odd, &trace, Precision::F32);
    assert_eq!(checked.verdict.first_failure().map(|stage| &*stage.stage), Some(LM_HEAD));
}

#[test]
fn expected_logits_of_all_tokens_are_held_against_the_same_rows() {
    let (case, all, trace) = logits("v2", Precision::F32);
    let dump = trace.clone().with(LM_HEAD, Values::Real(Precision::F32.stored(LM_HEAD), last(&all, 1)));
    let right = Request { expected: Some(trace.clone()), ..Request::new(case.clone(), dump) };
    assert!(check(&right).unwrap().verdict.passes());
    let second = all.slice(s![.., 1..=1, ..]).to_owned().into_dyn();
    let dump = trace.clone().with(LM_HEAD, Values::Real(Precision::F32.stored(LM_HEAD), second));
    let wrong = Request { expected: Some(trace), ..Request::new(case, dump) };
    assert!(!check(&wrong).unwrap().verdict.passes());
}

#[test]
fn they_are_explained_too() {
    let case = GoldenCases::embedded().load("trained-tiny-grouped").unwrap().case;
    let weights = crate::mutants::weights::Wide::new(&case);
    let mutant = crate::mutants::catalogue().find(|mutant| mutant.id == "scale_no_mscale").unwrap();
    let settings = Settings { precision: Precision::F32, ..Settings::default() };
    let mut tap = crate::mutants::tap::Planted::new(&mutant.variant, &weights, Precision::F32).unwrap();
    let wrong = Reference.run(&case, &settings, &mut tap).unwrap();
    let own = last(wrong.get(LM_HEAD).unwrap().real().unwrap(), 1);
    let dump = Trace::default().with(LM_HEAD, Values::Real(Precision::F32.stored(LM_HEAD), own));
    let checked = check(&Request::new(case.clone(), dump)).unwrap();
    let found = explain(&Question::new(&checked.case, &checked.candidate, Precision::F32), |_, _, _| {}).unwrap();
    assert!(found.iter().any(|found| found.changes[0].mutant == "scale_no_mscale"), "{found:?}");
}
