//! Rotated queries and keys are in one order everywhere.

use super::*;
use crate::check::align::{ALONE_IN_HALVES, ALONE_IN_PAIRS};

const HALVES: &str = "de-interleaved halves (even numbers first, as in DeepSeek's own code)";

#[test]
fn queries_in_halves_do_not_go_with_keys_in_pairs() {
    for (turned, left) in [("q_pe", "k_pe"), ("self_attn.k_pe", "q_pe"), ("0.k_pe", "self_attn.k_pe")] {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut stages = run(&case("v2"), precision, &mut NoTap);
            ways::ending(&mut stages, turned, ways::halves_of_pairs);
            stages.retain(|name, _| !name.contains("layers.1.") && !name.contains("values.1."));
            let checked = judged(case("v2"), stages.clone(), Some(precision));
            let failed = first_failure(&checked).unwrap_or_default();
            assert!(failed.ends_with(turned), "{turned}, {precision}: {failed}");
            assert!(said(&checked).contains(ALONE_IN_HALVES), "{turned}: {:?}", said(&checked));

            // alone, it may be so
            stages.retain(|name, _| !name.contains("_pe") || name.ends_with(turned));
            if turned != "0.k_pe" {
                let checked = judged(case("v2"), stages, Some(precision));
                assert_eq!(first_failure(&checked), None, "{turned} without {left}, {precision}");
            }
        }
    }
}

/// The dump of a prompt, or of its last two tokens alone.
fn fed(case: Case, step: bool) -> Case {
    let inputs = case.inputs.clone().decoding(2).unwrap();
    let chunks = vec![inputs.past(), 2];
    if step { Case { inputs, chunks, ..case } } else { case }
}

/// What is kept of a dump.
const KEPT: [fn(&str) -> bool; 3] =
    [|_| true, |name| !name.ends_with("q_pe"), |name| !name.contains("self_attn") || name.ends_with("o_proj")];

#[test]
fn keys_cached_in_another_order_than_in_the_other_layers_are_wrong() {
    for (model, step) in [("v2", false), ("v2", true), ("v2-lite", true)] {
        for (precision, kept) in [(Precision::F32, KEPT[0]), (Precision::F32, KEPT[2]), (Precision::Bf16, KEPT[1])] {
            let of = || fed(case(model), step);
            let mut pairs = run(&of(), precision, &mut NoTap);
            pairs.retain(|name, _| kept(name));
            let mut halves = pairs.clone();
            ways::ending(&mut halves, "_pe", ways::halves_of_pairs);
            for (most, other, says) in [(&pairs, &halves, ALONE_IN_HALVES), (&halves, &pairs, ALONE_IN_PAIRS)] {
                let what = format!("{model}, {precision}, a step: {step}, {says}");
                let checked = judged(of(), most.clone(), Some(precision));
                assert_eq!(first_failure(&checked), None, "{what}");

                let cached = "past_key_values.1.k_pe";
                let mut mixed = most.clone();
                mixed.insert(cached.to_owned(), other[cached].clone());
                let request = Request { precision: Some(precision), ..Request::new(of(), mixed.into_iter().collect()) };
                let checked = crate::check::check(&request).unwrap();
                assert_eq!(first_failure(&checked), Some(cached), "{what}");
                assert_eq!(checked.hint.unwrap_or_default().says.first().map(String::as_str), Some(says), "{what}");
            }
        }
    }
}

#[test]
fn expected_stages_do_not_allow_two_orders_either() {
    let mut stages = run(&case("v2"), Precision::F32, &mut NoTap);
    let expected: Stages = stages.clone();
    ways::ending(&mut stages, "1.k_pe", ways::halves_of_pairs);
    let expected = Some(expected.into_iter().collect());
    let checked =
        check_without_hint(&Request { expected, ..Request::new(case("v2"), stages.into_iter().collect()) }).unwrap();
    assert_eq!(first_failure(&checked), Some("past_key_values.1.k_pe"));
}

#[test]
fn what_is_wrong_in_either_order_is_judged_in_that_of_the_others() {
    for model in ["v2", "v2-lite"] {
        for in_halves in [false, true] {
            for wrong in ["past_key_values.1.k_pe", "model.layers.1.self_attn.k_pe", "model.layers.1.self_attn.q_pe"] {
                let mut stages = run(&case(model), Precision::F32, &mut NoTap);
                if in_halves {
                    ways::ending(&mut stages, "_pe", ways::halves_of_pairs);
                }
                // two tokens changed places
                ways::ending(&mut stages, wrong, |a| {
                    let tokens = Axis(a.ndim() - 2);
                    let order = (0..a.len_of(tokens)).map(|at| [0, 2, 1].get(at).copied().unwrap_or(at));
                    a.select(tokens, &order.collect::<Vec<_>>())
                });
                let checked = judged(case(model), stages, None);
                assert_eq!(first_failure(&checked), Some(wrong), "{model}, in halves: {in_halves}");
                let says = if in_halves { BTreeSet::from([HALVES]) } else { BTreeSet::new() };
                assert_eq!(said(&checked), says, "{model}, {wrong}");
            }
        }
    }
}

#[test]
fn a_cache_of_another_shape_says_nothing_of_the_order_of_queries() {
    let of = || fed(case("v2"), true);
    let mut stages = run(&of(), Precision::F32, &mut NoTap);
    ways::ending(&mut stages, "_pe", ways::halves_of_pairs);
    for (_, values) in stages.iter_mut().filter(|(name, _)| name.starts_with("past_key_values")) {
        let Values::Real(_, a) = values else { panic!() };
        *a = a.slice_axis(Axis(1), ndarray::Slice::from(-2..)).to_owned();
    }
    let checked = judged(of(), stages, None);
    assert_eq!(first_failure(&checked), Some("past_key_values.0.compressed_kv"));
}
