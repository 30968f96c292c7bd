//! Chunks and steps, expected stages, and kernels that are fused.

use std::collections::BTreeMap;

use dsv2_reference::round::RoundingTap;
use ndarray::{Axis, Slice};

use super::*;

/// The same case fed in other chunks, or where only the last token is looked at, after a cache.
fn fed_otherwise(request: &Request) -> Vec<(&'static str, Request)> {
    let case = &request.case;
    let length = case.inputs.length();
    if !case.use_cache || case.inputs.labels.is_some() || case.inputs.logits_to_keep.is_some() || length < 4 {
        return Vec::new();
    }
    let with = |case: Case| Request { cache: request.cache, ..Request::new(case, Trace::default()) };
    let chunks = vec![1, length - 3, 2];
    let mut all = vec![("in chunks", with(Case { chunks, ..case.clone() }))];
    for (what, cache_before) in [("a step", false), ("a step, and the cache before it", true)] {
        let Ok(inputs) = case.inputs.clone().decoding(2) else { continue };
        let inputs = crate::inputs::Inputs { cache_before, ..inputs };
        all.push((what, with(Case { inputs, chunks: vec![2, length - 4, 2], ..case.clone() })));
    }
    all
}

#[test]
fn chunks_and_steps_are_judged_to_the_bit_as_if_they_were_read_whole() {
    let mut judged = BTreeMap::<&str, usize>::new();
    for (number, request) in cases().into_iter().step_by(4).enumerate() {
        for (what, mut request) in fed_otherwise(&request) {
            let precision = [Precision::F32, Precision::Bf16][number % 2];
            let mut dump = dumped(&request, precision);
            if number % 3 == 1 {
                dump.retain(|name| !name.contains("topk") && !name.contains("k_pe"));
            }
            if number % 3 == 2 {
                dump = renamed(&dump, |name, values| match values {
                    Values::Real(dtype, a) if name.ends_with("layers.1.mlp") => {
                        (name.to_owned(), Values::Real(*dtype, a * 1.05))
                    }
                    values => (name.to_owned(), values.clone()),
                });
            }
            *judged.entry(what).or_default() += assert_same(&mut request, &dump, what);
        }
    }
    assert!(judged.len() == 3 && judged.values().all(|judged| *judged > 5), "{judged:?}");
}

/// A cached stage with some of its keys times `factor`.
fn with_keys(trace: &Trace, cached: &str, keys: std::ops::Range<usize>, factor: f64) -> Trace {
    renamed(trace, |name, values| match values {
        Values::Real(dtype, a) if name == cached => {
            let mut a = a.clone();
            a.slice_axis_mut(Axis(1), Slice::from(keys.clone())).mapv_inplace(|x| x * factor);
            (name.to_owned(), Values::Real(*dtype, a))
        }
        values => (name.to_owned(), values.clone()),
    })
}

#[test]
fn what_an_earlier_chunk_cached_is_not_held_against_itself() {
    let mut judged = BTreeMap::<&str, usize>::new();
    for (number, request) in cases().into_iter().step_by(16).enumerate() {
        for (what, mut request) in fed_otherwise(&request) {
            let length = request.case.inputs.length();
            let precision = [Precision::F32, Precision::Bf16, Precision::F16][number % 3];
            let dump = dumped(&request, precision);
            let mut wrong = vec![(1..length - 2, 100.0), (0..1, 1.2)];
            if !request.case.inputs.cache_before {
                // a copy of a key that the dump holds, if it is one of those that are looked at
                wrong.push((length - 1..length, 1.01));
            }
            // without what was cached, new keys are judged by their noise, which is less than that of those before
            let mut without = dump.clone();
            without.retain(|name| !name.ends_with("attn.k_pe") && !name.ends_with("kv_a_layernorm"));
            for dump in [dump, without] {
                let (stepwise, whole, verdict) = both(&mut request, &dump);
                assert!(stepwise.is_none_or(|stepwise| stepwise == whole), "{what}, {precision}: {whole}");
                assert!(verdict.passes(), "{what}, {precision}: {whole}");
                let wrong = wrong
                    .iter()
                    .filter(|(keys, _)| keys.end < length || dump.get("model.layers.0.self_attn.k_pe").is_some());
                let further = [(length - 1..length, 1.1)];
                for (keys, factor) in wrong.chain(&further[..usize::from(!request.case.inputs.cache_before)]) {
                    for cached in ["past_key_values.0.k_pe", "past_key_values.0.compressed_kv"] {
                        let dump = with_keys(&dump, cached, keys.clone(), *factor);
                        let (stepwise, whole, verdict) = both(&mut request, &dump);
                        let failure = verdict.first_failure().map(|of| of.stage.clone());
                        assert_eq!(failure.as_deref(), Some(cached), "{what}, {precision}: {keys:?} times {factor}");
                        if let Some(stepwise) = stepwise {
                            assert!(stepwise == whole, "{what}, {keys:?}:\n{stepwise}\nread whole:\n{whole}");
                            *judged.entry(what).or_default() += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(judged.len() == 3 && judged.values().all(|judged| *judged > 5), "{judged:?}");
}

#[test]
fn caches_of_different_tokens_are_refused_before_anything_is_run() {
    let request = cases().into_iter().find(|request| fed_otherwise(request).len() == 3).unwrap();
    let [_, after, before] = &fed_otherwise(&request)[..] else { unreachable!("three ways") };
    let cached = "past_key_values.0.k_pe";
    let as_it_was = dumped(&before.1, Precision::F32).get(cached).unwrap().clone();
    let mixed = dumped(&after.1, Precision::F32).with(cached, as_it_was);
    let folder = folder();
    let path = folder.path().join("dump.safetensors");
    mixed.write(&path).unwrap();
    let candidates = Candidates::open(std::slice::from_ref(&path), None, &after.1.case).unwrap();
    let planned = candidates.need(&after.1.case).unwrap_err().to_string();
    let judged = candidates.check(&after.1, true, &mut |_, _, _| ()).err().unwrap().to_string();
    assert!(planned == judged && judged.contains("as `past_key_values.0.k_pe` has"), "{planned}\n{judged}");
}

#[test]
fn a_dump_is_held_against_what_it_should_be_to_the_bit_as_if_both_were_read_whole() {
    let mut judged = BTreeMap::<&str, usize>::new();
    for (number, mut request) in cases().into_iter().step_by(5).enumerate() {
        let [wide, narrow] = [Precision::F32, Precision::Bf16].map(|precision| dumped(&request, precision));
        let wrong = renamed(&narrow, |name, values| match values {
            Values::Real(dtype, a) if name.ends_with("mlp") => (name.to_owned(), Values::Real(*dtype, a * 1.3)),
            values => (name.to_owned(), values.clone()),
        });
        let mut part = wide.clone();
        part.retain(|name| !name.contains("topk") && !name.contains("layers.1.self"));
        let (dump, expected, what) = match number % 4 {
            0 => (narrow, wide, "in two types"),
            1 => (part, narrow, "in part"),
            2 => (renamed(&wide, heads_behind), part, "in another order"),
            _ => (wrong, wide, "wrong"),
        };
        let folder = folder();
        let [of_dump, of_expected] = ["dump", "expected"].map(|name| folder.path().join(format!("{name}.safetensors")));
        dump.write(&of_dump).unwrap();
        expected.write(&of_expected).unwrap();
        let candidates = Candidates::open(std::slice::from_ref(&of_dump), None, &request.case).unwrap();
        let candidates = candidates.against(&of_expected).unwrap();
        let stepwise = candidates.check(&request, true, &mut |_, _, _| ()).unwrap().map(said);
        request.candidate = Trace::read(&of_dump).unwrap();
        request.expected = Some(Trace::read(&of_expected).unwrap());
        let whole = said(check_without_hint(&request).unwrap());
        if let Some(stepwise) = stepwise {
            assert!(stepwise == whole, "{what}:\n{stepwise}\nread whole:\n{whole}");
            *judged.entry(what).or_default() += 1;
        }
    }
    assert!(judged.len() == 4, "{judged:?}");
}

/// What a wider computation comes to if each stage is rounded when it is dumped, but for those of which `kept` is said.
fn rounded_copies(trace: &Trace, kept: impl Fn(&str) -> bool) -> Trace {
    renamed(trace, |name, values| match values {
        Values::Real(_, a) if RoundingTap::rounds(name) && !kept(name) => {
            let rounded = dsv2_reference::Tensor::from_values(Dtype::Bf16, a.shape(), a.iter().copied());
            (name.to_owned(), Values::Real(Dtype::Bf16, rounded.to_array()))
        }
        values => (name.to_owned(), values.clone()),
    })
}

#[test]
fn what_was_computed_from_unrounded_stages_is_judged_to_the_bit_as_if_it_were_read_whole() {
    let (mut judged, mut explained) = (0, 0);
    for mut request in cases().into_iter().step_by(4) {
        let [wide, narrow] = [Precision::F32, Precision::Bf16].map(|precision| dumped(&request, precision));
        // a kernel that keeps its scores: rounded queries and keys lie beside them
        let scores = renamed(&narrow, |name, values| {
            let of_wide = name.ends_with("attn_weights") || name.ends_with("router_logits");
            (name.to_owned(), if of_wide { wide.get(name).unwrap_or(values).clone() } else { values.clone() })
        });
        for dump in [rounded_copies(&wide, |_| false), rounded_copies(&scores, |_| false)] {
            let (stepwise, whole, _) = both(&mut request, &dump);
            let Some(stepwise) = stepwise else { continue };
            assert!(stepwise == whole, "{stepwise}\nread whole:\n{whole}");
            judged += 1;
            explained += usize::from(stepwise.contains("rounded cop"));
        }
    }
    assert!(judged > 5 && explained > 3, "{judged} {explained}");
}
