use std::collections::BTreeMap;

use dsv2_reference::Dtype;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::tap::NoTap;
use ndarray::{ArrayD, Axis};

use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::case::{Entering, Layers, Part};
use crate::check::check_without_hint;
use crate::check::shards::plans::{How, PLANS};
use crate::golden::GoldenCases;
use crate::mutants::explain::applicable;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::precision::Precision;
use crate::values::Values;

/// All that is said of a dump, but for the dump itself.
fn said(checked: Checked) -> String {
    format!("{:#?}", Checked { candidate: Trace::default(), ..checked })
}

/// What is said of dumps in files, stage by stage.
fn by_stage(request: &Request, files: &[PathBuf]) -> Option<String> {
    let candidates = Candidates::open(files, None, &request.case).unwrap();
    candidates.check(request, false, &mut |_, _, _| ()).unwrap().map(said)
}

/// What both ways say of a dump in a file: stage by stage, and read whole.
fn both(request: &mut Request, trace: &Trace) -> (Option<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump.safetensors");
    trace.write(&path).unwrap();
    let stepwise = by_stage(request, std::slice::from_ref(&path));
    request.candidate = Trace::read(&path).unwrap();
    (stepwise, said(check_without_hint(request).unwrap()))
}

fn assert_same(request: &mut Request, trace: &Trace, what: &str) -> usize {
    let (stepwise, whole) = both(request, trace);
    stepwise.map_or(0, |stepwise| {
        assert!(stepwise == whole, "{what}:\n{stepwise}\nread whole:\n{whole}");
        1
    })
}

fn request(case: &str, cache: CacheFormat) -> Request {
    let case = GoldenCases::embedded().load(case).unwrap().case;
    Request { cache, ..Request::new(case, Trace::default()) }
}

fn dumped(request: &Request, precision: Precision) -> Trace {
    let settings = Settings { precision, cache: request.cache, ..Settings::default() };
    Reference.run(&request.case, &settings, &mut NoTap).unwrap()
}

/// Saved in a wider type than it was computed in.
fn saved_wider(trace: &Trace) -> Trace {
    let wider = |values: &Values| match values {
        Values::Real(_, a) => Values::Real(Dtype::F32, a.clone()),
        other => other.clone(),
    };
    trace.iter().map(|(name, values)| (name.to_owned(), wider(values))).collect()
}

/// The cases that are judged stage by stage, of models that are small.
fn cases() -> Vec<Request> {
    let golden = GoldenCases::embedded();
    let requests = golden.names().iter().map(|name| request(name, CacheFormat::Plain));
    requests.filter(|request| can_judge(request) && request.case.config.parameter_count() < 3_000_000).collect()
}

#[test]
fn a_right_dump_is_judged_to_the_bit_as_if_it_were_read_whole() {
    let mut judged = 0;
    for mut request in cases() {
        for precision in [Precision::F32, Precision::Bf16] {
            let dump = dumped(&request, precision);
            for kept in [|_: &str| true, |name: &str| !name.contains("topk"), |name: &str| name.contains("layers.1")] {
                let mut part = dump.clone();
                part.retain(kept);
                if !part.is_empty() {
                    judged += assert_same(&mut request, &part, &precision.to_string());
                }
            }
        }
    }
    assert!(judged > 40, "{judged}");
}

#[test]
fn a_wrong_dump_is_judged_to_the_bit_as_if_it_were_read_whole() {
    let mut judged = 0;
    for (number, mut request) in cases().into_iter().step_by(5).enumerate() {
        let case = request.case.clone();
        let weights = Wide::new(&case);
        for mutant in applicable(&case).skip(number % 7).step_by(7) {
            for precision in [Precision::F32, Precision::Bf16] {
                let Ok(mut tap) = Planted::all(vec![&mutant.variant], &weights, precision) else { continue };
                let settings = Settings { precision, ..Settings::default() };
                let Ok(mut dump) = Reference.run(&case, &settings, &mut tap) else { continue };
                judged += assert_same(&mut request, &dump, mutant.id);
                dump.retain(|name| !name.contains("attn_") && !name.contains("_pe"));
                judged += assert_same(&mut request, &dump, mutant.id);
            }
        }
    }
    assert!(judged > 20, "{judged}");
}

#[test]
fn narrow_runs_that_were_saved_wider_are_recognised() {
    let mut request = request("v2", CacheFormat::Plain);
    for precision in [Precision::Bf16, Precision::F16] {
        let dump = saved_wider(&dumped(&request, precision));
        assert_eq!(assert_same(&mut request, &dump, "saved as F32"), 1);
        request.precision = Some(Precision::F32);
        assert_same(&mut request, &dump, "and judged as it is stored");
        request.precision = None;
    }
}

#[test]
fn layers_alone_begin_with_what_the_dump_holds_before_them() {
    for layers in [0..1, 1..2, 1..3] {
        let mut request = request("v2", CacheFormat::Plain);
        let dump = dumped(&request, Precision::F32);
        request.case.part = Some(Part { layers: Layers(layers), entering: Entering::OfDump });
        assert_eq!(assert_same(&mut request, &dump, "layers alone"), 1);
    }
}

#[test]
fn files_that_hold_different_stages_are_one_dump() {
    let request = request("v2", CacheFormat::Plain);
    let dump = dumped(&request, Precision::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let write = |name: &str, kept: fn(&str) -> bool| {
        let mut part = dump.clone();
        part.retain(kept);
        part.write(&path(name)).unwrap();
    };
    write("all", |_| true);
    write("first", |name| name.contains("layers.0"));
    write("others", |name| !name.contains("layers.0"));
    let of = |names: &[&str]| by_stage(&request, &names.iter().map(|name| path(name)).collect::<Vec<_>>());
    assert!(of(&["all"]).is_some());
    assert_eq!(of(&["others", "first"]), of(&["all"]));
    assert_eq!(of(&["all", "first"]), None, "a stage twice is for the others to refuse");
}

#[test]
fn near_ties_that_fell_the_other_way_are_followed_as_well() {
    let mut request = request("v2-lite", "fp8".parse().unwrap());
    let dump = dumped(&request, Precision::Bf16);
    let (stepwise, whole) = both(&mut request, &dump);
    let stepwise = stepwise.expect("it is right");
    assert!(stepwise == whole, "{stepwise}\nread whole:\n{whole}");
    assert!(stepwise.contains("end_to_end: Some"), "{stepwise}");
}

#[test]
fn what_may_be_meant_otherwise_is_left_to_the_whole_check() {
    let mut request = request("v2", CacheFormat::Plain);
    let dump = dumped(&request, Precision::F32);
    let with = |name: &str, change: fn(&Values) -> Values| dump.clone().with(name, change(dump.get(name).unwrap()));
    let scaled = |values: &Values| match values {
        Values::Real(dtype, a) => Values::Real(*dtype, a * 1.001),
        other => other.clone(),
    };
    let flat = |values: &Values| match values {
        Values::Real(dtype, a) => Values::Real(*dtype, a.flatten().into_owned().into_dyn()),
        other => other.clone(),
    };
    let of_another = dump.clone().with("model.layers.77.mlp", dump.get("model.norm").unwrap().clone());
    for dump in [with("lm_head", flat), of_another] {
        assert_eq!(both(&mut request, &dump).0, None);
    }
    for dump in [dump.clone(), with("model.norm", scaled), with("model.layers.1.mlp.experts", scaled)] {
        let (stepwise, whole) = both(&mut request, &dump);
        assert_eq!(stepwise.expect("it is what it is"), whole);
    }
}

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

/// The dump with other names for its tensors, or other tensors.
fn renamed(dump: &Trace, change: impl Fn(&str, &Values) -> (String, Values)) -> Trace {
    dump.iter().map(|(name, values)| change(name, values)).collect()
}

/// The rows of all tokens one after another, without an axis for the batch.
fn flat(name: &str, values: &Values) -> (String, Values) {
    let values = match values {
        Values::Real(_, a) if a.ndim() == 3 => values.clone().in_shape(&[a.len() / a.shape()[2], a.shape()[2]]),
        _ => None,
    }
    .unwrap_or_else(|| values.clone());
    (name.to_owned(), values)
}

/// The axis of the heads behind that of the tokens.
fn heads_behind(name: &str, values: &Values) -> (String, Values) {
    let values = match values {
        Values::Real(dtype, a) if name.ends_with("q_pe") => {
            let turned = a.clone().permuted_axes(ndarray::IxDyn(&[0, 2, 1, 3]));
            Values::Real(*dtype, turned.as_standard_layout().into_owned())
        }
        other => other.clone(),
    };
    (name.to_owned(), values)
}

#[test]
fn other_names_and_other_rows_are_judged_to_the_bit_as_if_they_were_read_whole() {
    let wrapped = |name: &str, values: &Values| (format!("module.{name}"), values.clone());
    let module = |name: &str, values: &Values| (name.replace("self_attn.o_proj", "self_attn"), values.clone());
    let (mut judged, mut wrong) = (0, 0);
    for mut request in cases().into_iter().step_by(8) {
        let dump = dumped(&request, Precision::F32);
        let twice: Trace =
            dump.iter().flat_map(|(name, values)| [(name.to_owned(), values.clone()), module(name, values)]).collect();
        let others =
            [renamed(&dump, flat), renamed(&dump, wrapped), renamed(&dump, module), renamed(&dump, heads_behind)];
        for (i, dump) in others.into_iter().chain([twice]).enumerate() {
            judged += assert_same(&mut request, &dump, &format!("of kind {i}"));
            let spoilt = renamed(&dump, |name, values| match values {
                Values::Real(dtype, a) if name.ends_with("mlp") => (name.to_owned(), Values::Real(*dtype, a * 1.01)),
                _ => (name.to_owned(), values.clone()),
            });
            wrong += assert_same(&mut request, &spoilt, &format!("a wrong one of kind {i}"));
        }
    }
    assert!(judged > 10 && wrong > 2, "{judged} {wrong}");
}

/// What two ranks of vLLM or Megatron hold of a trace, by a rule.
fn two_ranks(trace: &Trace, rule: &Rule, batch: usize) -> [Trace; 2] {
    let halves = |a: &ArrayD<f64>, axis: usize| {
        let (first, second) = a.view().split_at(Axis(axis), a.len_of(Axis(axis)) / 2);
        [first.to_owned(), second.to_owned()]
    };
    let flat_by_sequence = |a: &ArrayD<f64>| a.ndim() == 2 && batch > 1;
    let mut ranks = [Vec::new(), Vec::new()];
    for (name, values) in trace.iter() {
        let parts = match (rule.how(name), values) {
            (How::Columns, Values::Real(dtype, a)) => halves(a, a.ndim() - 1).map(|a| Values::Real(*dtype, a)),
            (How::Heads, Values::Real(dtype, a)) => halves(a, 1).map(|a| Values::Real(*dtype, a)),
            (How::Sequence, Values::Real(dtype, a)) if !flat_by_sequence(a) => {
                halves(a, if a.ndim() == 3 { 1 } else { 0 }).map(|a| Values::Real(*dtype, a))
            }
            (How::Sum, Values::Real(dtype, a)) => {
                let first =
                    ArrayD::from_shape_fn(a.raw_dim(), |at| if a[&at].to_bits() >> 30 & 1 == 0 { 0.0 } else { a[&at] });
                [first.clone(), a - &first].map(|a| Values::Real(*dtype, a))
            }
            (_, values) => [values.clone(), values.clone()],
        };
        ranks.iter_mut().zip(parts).for_each(|(rank, part)| rank.push((name.to_owned(), part)));
    }
    ranks.map(|rank| rank.into_iter().collect())
}

/// What both ways say of the files of ranks: stage by stage, and read whole.
fn both_of_ranks(request: &mut Request, ranks: &[Trace], rule: &Rule) -> Result<(Option<String>, String), [String; 2]> {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..ranks.len()).map(|rank| folder.path().join(format!("{rank}.safetensors"))).collect();
    ranks.iter().zip(&paths).for_each(|(rank, path)| rank.write(path).unwrap());
    let candidates = Candidates::open(&paths, Some(rule), &request.case);
    let files: Vec<_> = paths.iter().map(|path| (path.display().to_string(), Trace::read(path).unwrap())).collect();
    let joined = shards::join(&files, rule, &request.case);
    match (candidates, joined) {
        (Ok(candidates), Ok(joined)) => {
            let stepwise = candidates.check(request, false, &mut |_, _, _| ()).unwrap().map(said);
            let whole = shards::judge_ranks(joined, |dump, _| {
                request.candidate = dump;
                check_without_hint(request).map(Some)
            });
            Ok((stepwise, whole.unwrap().map(said).expect("each rank was judged")))
        }
        (candidates, joined) => {
            let refused = |error: Option<crate::Error>| error.map_or_else(String::new, |error| error.to_string());
            Err([refused(candidates.err()), refused(joined.err())])
        }
    }
}

#[test]
fn the_ranks_of_every_plan_are_judged_to_the_bit_as_if_they_were_read_whole() {
    let mut judged = BTreeMap::<&str, usize>::new();
    let even = |request: &Request| request.case.config.num_attention_heads.is_multiple_of(2);
    let requests =
        cases().into_iter().filter(even).step_by(4).chain(cases().into_iter().find(|request| !even(request)));
    for (number, mut request) in requests.enumerate() {
        let dump = dumped(&request, Precision::F32);
        for plan in PLANS {
            let rule: Rule = plan.name.parse().unwrap();
            let right = two_ranks(&dump, &rule, request.case.inputs.batch());
            let changed = |rank: usize, leaf: &str, factor: f64| {
                let mut ranks = right.clone();
                ranks[rank] = renamed(&right[rank], |name, values| match values {
                    Values::Real(dtype, a) if name.ends_with(leaf) => {
                        (name.to_owned(), Values::Real(*dtype, a.mapv(|x| f64::from((x * factor) as f32))))
                    }
                    values => (name.to_owned(), values.clone()),
                });
                ranks
            };
            let (ranks, what) = match number % 4 {
                0 => (changed(1, "layers.1", 1.01), "a copy is wrong"),
                1 => (changed(1, "layers.1", 1.0 + 1e-7), "a copy is another"),
                2 => (changed(1, "experts", 0.0), "a part is lost"),
                _ => (right, "right"),
            };
            let (stepwise, whole, what) = match both_of_ranks(&mut request, &ranks, &rule) {
                Ok((Some(stepwise), whole)) => (stepwise, whole, what),
                Ok((None, _)) => continue,
                Err([stepwise, whole]) => (stepwise, whole, "refused"),
            };
            assert!(stepwise == whole, "{} {what}:\n{stepwise}\nread whole:\n{whole}", plan.name);
            *judged.entry(what).or_default() += 1;
        }
    }
    assert!(judged.len() == 5, "{judged:?}");
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
        let folder = tempfile::tempdir().unwrap();
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
