mod engines;
mod orders;
mod otherwise;
mod ranks;

use dsv2_reference::Dtype;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::tap::NoTap;

use super::*;
use crate::backend::{Backend, Reference, Settings};
use crate::case::{Entering, Layers, Part};
use crate::check::check_without_hint;
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

/// A folder that is gone when it is dropped.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// What is said of dumps in files, stage by stage.
fn by_stage(request: &Request, files: &[PathBuf]) -> Option<String> {
    let candidates = Candidates::open(files, None, &request.case).unwrap();
    candidates.check(request, false, &mut |_, _, _| ()).unwrap().map(said)
}

/// What both ways say of a dump in a file: stage by stage, and read whole; and of the latter the verdict.
fn both(request: &mut Request, trace: &Trace) -> (Option<String>, String, Verdict) {
    let folder = folder();
    let path = folder.path().join("dump.safetensors");
    trace.write(&path).unwrap();
    let stepwise = by_stage(request, std::slice::from_ref(&path));
    request.candidate = Trace::read(&path).unwrap();
    let checked = check_without_hint(request).unwrap();
    let verdict = checked.verdict.clone();
    (stepwise, said(checked), verdict)
}

fn assert_same(request: &mut Request, trace: &Trace, what: &str) -> usize {
    let (stepwise, whole, _) = both(request, trace);
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
    for mut request in cases().into_iter().step_by(3) {
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
    for (number, mut request) in cases().into_iter().step_by(11).enumerate() {
        let case = request.case.clone();
        let weights = Wide::new(&case);
        for (turn, mutant) in applicable(&case).skip(number % 11).step_by(11).enumerate() {
            let precision = [Precision::F32, Precision::Bf16][turn % 2];
            let Ok(mut tap) = Planted::all(vec![&mutant.variant], &weights, precision) else { continue };
            let settings = Settings { precision, ..Settings::default() };
            let Ok(mut dump) = Reference.run(&case, &settings, &mut tap) else { continue };
            judged += assert_same(&mut request, &dump, mutant.id);
            dump.retain(|name| !name.contains("attn_") && !name.contains("_pe"));
            judged += assert_same(&mut request, &dump, mutant.id);
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
    let folder = folder();
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
    let (stepwise, whole, _) = both(&mut request, &dump);
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
        let (stepwise, whole, _) = both(&mut request, &dump);
        assert_eq!(stepwise.expect("it is what it is"), whole);
    }
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
