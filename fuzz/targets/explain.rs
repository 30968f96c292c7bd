//! `check --explain` of a damaged dump: judged, explained by every mutant and by pairs of them, and reported.
//!
//! What the small good model records is damaged in a few places: elements, rows, columns, scales, shapes. Most of what a dump
//! may be is not read here at all: that is what the target `dump` is for.

#![no_main]

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use dsv2::check::{Conclusion, Request, check};
use dsv2::mutants::explain::{Question, explain};
use dsv2::report;
use dsv2::report::model::{CheckReport, Files, Report};
use dsv2::trace::Trace;
use dsv2::values::Values;
use dsv2_fuzz::{check_line, check_message, model};
use dsv2_reference::Dtype;
use libfuzzer_sys::fuzz_target;
use ndarray::{ArrayD, Axis, Slice};

static GOOD: LazyLock<Trace> = LazyLock::new(model::good_trace);

fuzz_target!(|bytes: &[u8]| {
    if let Ok(candidate) = damaged(&mut Unstructured::new(bytes)) {
        // Hundreds of runs of a small model: from outside, each of its loops would wait for a thread to wake up.
        rayon::scope(|_| explained(candidate));
    }
});

fn explained(candidate: Trace) {
    let request = Request::new(model::good_case(), candidate);
    let checked = match check(&request) {
        Ok(checked) => checked,
        Err(error) => return check_message(&error),
    };
    let name = || "f".to_owned();
    let files = Files { model: name(), inputs: name(), candidate: name(), expected: None };
    let mut report = CheckReport::new(&request, &checked, files);
    if report.verdict == Conclusion::Fail {
        match explain(&Question::new(&checked.case, &checked.candidate, checked.precision), |_, _, _| ()) {
            Ok(found) => report = report.explained(&found),
            Err(error) => check_message(&error),
        }
    }
    report::check_text(&report, false).lines().filter(|line| !line.is_empty()).for_each(check_line);
    let report = Report::Check(Box::new(report));
    assert!(!report.json().is_null() && !report::html(&report).is_empty());
}

/// Some stages of the good model, some of them damaged.
fn damaged(u: &mut Unstructured<'_>) -> Result<Trace> {
    let mut trace = GOOD.clone();
    if u.arbitrary()? {
        let kept: u64 = u.arbitrary()?;
        let kept = trace.iter().enumerate().filter(|(place, _)| kept >> (place % 64) & 1 == 1);
        let kept: Vec<String> = kept.map(|(_, (name, _))| name.to_owned()).collect();
        trace.retain(|name| kept.iter().any(|kept| kept == name));
    }
    let names: Vec<String> = trace.iter().map(|(name, _)| name.to_owned()).collect();
    for _ in 0..u.int_in_range(1..=3)? {
        let name = u.choose(&names)?;
        let damaged = match trace.get(name).expect("it is there") {
            Values::Real(dtype, a) => {
                let dtype = *u.choose(&[*dtype, Dtype::Bf16, Dtype::F16])?;
                let number = |u: &mut Unstructured<'_>| Ok(f64::from(f32::from_bits(u.arbitrary()?)));
                Values::Real(dtype, damage(a.clone(), u, number, |x, by| x * by)?)
            }
            Values::Index(a) => {
                Values::Index(damage(a.clone(), u, |u| u.arbitrary().map(i64::from_le_bytes), |x, _| x)?)
            }
            Values::Bool(a) => Values::Bool(a.clone()),
        };
        trace = trace.with(name, damaged);
    }
    Ok(trace)
}

/// One thing done to a tensor.
fn damage<T: Clone>(
    mut a: ArrayD<T>,
    u: &mut Unstructured<'_>,
    any: impl Fn(&mut Unstructured<'_>) -> Result<T>,
    scaled: impl Fn(T, f64) -> T,
) -> Result<ArrayD<T>> {
    let axis = Axis(u.choose_index(a.ndim().max(1))?);
    let axis_at_all = a.ndim() > 0;
    match u.int_in_range(0..=6)? {
        0 => {
            let place = u.choose_index(a.len())?;
            let new = any(u)?;
            a.iter_mut().skip(place).take(1).for_each(|x| *x = new.clone());
        }
        1 => {
            let by = *u.choose(&[-1.0, 0.0, 0.5, 2.0, 16.0, 1.0 + 1e-3, std::f64::consts::SQRT_2, 1.5896, f64::NAN])?;
            a.mapv_inplace(|x| scaled(x, by));
        }
        2 if axis_at_all => a.invert_axis(axis),
        3 if axis_at_all => {
            let by = u.choose_index(a.len_of(axis))?;
            let (first, rest) = a.view().split_at(axis, by);
            a = ndarray::concatenate(axis, &[rest, first]).expect("parts of one tensor");
        }
        4 if axis_at_all => {
            let length = u.choose_index(a.len_of(axis))?;
            a = a.slice_axis(axis, Slice::from(..length)).to_owned();
        }
        5 => a.swap_axes(0, axis.0.min(a.ndim().saturating_sub(1))),
        _ => {
            for x in &mut a {
                *x = any(u)?;
            }
        }
    }
    Ok(a.as_standard_layout().into_owned())
}
