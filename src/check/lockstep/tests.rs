use dsv2_reference::model::cache::CacheFormat;

use super::*;
use crate::check::{check_file, check_without_hint};
use crate::golden::GoldenCases;

/// All that is said of a dump, but for the dump itself.
fn said(checked: Checked) -> String {
    format!("{:#?}", Checked { candidate: Trace::default(), ..checked })
}

/// What both ways say of a dump in a file: stage by stage, and read whole.
fn both(request: &mut Request, trace: &Trace) -> (Option<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump.safetensors");
    trace.write(&path).unwrap();
    let stepwise = check_file(request, &path, &mut |_, _, _| ()).unwrap();
    request.candidate = Trace::read(&path).unwrap();
    let whole = check_without_hint(request).unwrap();
    (stepwise.map(said), said(whole))
}

fn request(case: &str, cache: CacheFormat) -> Request {
    let case = GoldenCases::embedded().load(case).unwrap().case;
    Request { cache, ..Request::new(case, Trace::default()) }
}

fn dumped(request: &Request, precision: Precision) -> Trace {
    let settings = Settings { precision, cache: request.cache, ..Settings::default() };
    Reference.run(&request.case, &settings, &mut NoTap).unwrap()
}

#[test]
fn a_right_dump_is_judged_to_the_bit_as_if_it_were_read_whole() {
    let golden = GoldenCases::embedded();
    let mut judged = 0;
    for name in golden.names() {
        let mut request = request(name, CacheFormat::Plain);
        if !can_judge(&request) || request.case.config.parameter_count() > 3_000_000 {
            continue;
        }
        for precision in [Precision::F32, Precision::Bf16] {
            let dump = dumped(&request, precision);
            for kept in [|_: &str| true, |name: &str| !name.contains("topk"), |name: &str| name.contains("layers.1")] {
                let mut part = dump.clone();
                part.retain(kept);
                if part.is_empty() {
                    continue;
                }
                let (stepwise, whole) = both(&mut request, &part);
                if let Some(stepwise) = stepwise {
                    judged += 1;
                    assert!(stepwise == whole, "{name} {precision}:\n{stepwise}\nread whole:\n{whole}");
                }
            }
        }
    }
    assert!(judged > 40, "{judged}");
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
fn what_is_not_right_as_it_came_is_left_to_the_whole_check() {
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
    for dump in [with("model.norm", scaled), with("lm_head", flat), of_another] {
        assert_eq!(both(&mut request, &dump).0, None);
    }
    assert!(both(&mut request, &dump).0.is_some());
}
