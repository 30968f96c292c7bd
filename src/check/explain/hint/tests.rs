use dsv2_reference::tap::NoTap;
use ndarray::ArrayD;

use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::check::{Request, check};
use crate::golden::GoldenCases;
use crate::mutants::catalogue;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::precision::Precision;
use crate::values::Values;

const F32: Precision = Precision::F32;

fn case(name: &str) -> Case {
    GoldenCases::embedded().load(name).unwrap().case
}

fn hint_of(case: Case, dump: Trace) -> Hint {
    check(&Request { precision: Some(F32), ..Request::new(case, dump) }).unwrap().hint.unwrap_or_default()
}

/// A dump of a wrong program, with those stages whose names end so.
fn planted(case: &Case, id: &str, held: &[&str]) -> Trace {
    let weights = Wide::new(case);
    let mutant = catalogue().find(|mutant| mutant.id == id).unwrap();
    let held = |name: &str| held.iter().any(|end| name.ends_with(end));
    let settings = Settings { precision: F32, stages: Some(&held), ..Settings::default() };
    Reference.run(case, &settings, &mut Planted::new(&mutant.variant, &weights, F32).unwrap()).unwrap()
}

/// A dump of all stages, one of which is spoilt.
fn spoilt(case: &Case, stage: &str, spoil: impl Fn(&ArrayD<f64>) -> ArrayD<f64>) -> Trace {
    let settings = Settings { precision: F32, ..Settings::default() };
    let trace = Reference.run(case, &settings, &mut NoTap).unwrap();
    let spoilt = |(name, values): (&str, &Values)| match values {
        Values::Real(dtype, a) if name == stage => (name.to_owned(), Values::Real(*dtype, spoil(a))),
        values => (name.to_owned(), values.clone()),
    };
    trace.iter().map(spoilt).collect()
}

const SCORES: &str = "model.layers.0.self_attn.attn_scores";

#[test]
fn a_forgotten_factor_is_told_with_the_mutant_that_forgets_it() {
    let case = case("v2-lite");
    let dump = planted(&case, "scale_no_mscale", &[""]);
    let hint = hint_of(case, dump);
    assert_eq!(hint.names, ["scale_no_mscale"]);
    assert_eq!(
        hint.says,
        [
            "every number is 0.6291 times what it should be: 1/mscale²",
            "a known bug computes this: `scale_no_mscale` (YaRN's mscale² is left out of the softmax scale)"
        ]
    );
}

#[test]
fn a_factor_that_no_mutant_has_names_none() {
    for factor in [0.9997, 0.97] {
        let case = case("v2-lite");
        let dump = spoilt(&case, SCORES, |a| a * factor);
        let hint = hint_of(case, dump);
        assert_eq!(hint.names, [""; 0]);
        assert_eq!(hint.says, [format!("every number is {factor} times what it should be")]);
    }
}

#[test]
fn an_error_without_a_pattern_has_no_hint() {
    for stage in [SCORES, "model.layers.1", "model.layers.1.mlp.experts", "lm_head"] {
        let case = case("v2");
        let dump = spoilt(&case, stage, |a| a.mapv(|x| if x.is_finite() { x + 0.1 * (1e3 * x).sin() } else { x }));
        assert_eq!(hint_of(case, dump), Hint::default(), "{stage}");
    }
}

#[test]
fn a_mutant_is_named_wherever_it_is_planted_before_the_stage_that_shows_it() {
    // (case, mutant, what the dump holds)
    for (name, id, held) in [
        ("v2", "scale_no_mscale", &["lm_head"][..]),
        ("v2", "shared_dropped", &["lm_head"]),
        ("v2", "lm_head_tied", &["lm_head"]),
        ("v2", "rope_neg", &["model.layers.0", "model.layers.1", "model.layers.2"]),
        ("v2", "expert_order", &["mlp.experts", "post_attention_layernorm"]),
        ("v2", "no_gamma", &["mlp.experts", "post_attention_layernorm"]),
        ("v2-lite", "kvb_split_swap", &["o_proj"]),
        ("trained-tiny-grouped", "group_top2", &["lm_head"]),
    ] {
        let case = case(name);
        let dump = planted(&case, id, held);
        assert_eq!(hint_of(case, dump).names, [id], "{name} {held:?}");
    }
}

#[test]
fn of_two_bugs_the_first_is_named_for_its_stage() {
    let case = case("v2");
    let wrong = planted(&case, "scale_no_mscale", &[""]);
    let dump = wrong.iter().map(|(name, values)| match values {
        Values::Real(dtype, a) if name == "lm_head" => {
            (name.to_owned(), Values::Real(*dtype, a.mapv(|x| x + 0.1 * (1e3 * x).sin())))
        }
        values => (name.to_owned(), values.clone()),
    });
    let dump = dump.collect();
    let hint = hint_of(case, dump);
    assert_eq!(hint.names, ["scale_no_mscale"]);
    assert!(hint.says[1].starts_with("a known bug computes this stage, but not all of the dump: "), "{hint:?}");
}
