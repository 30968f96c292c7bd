//! Rotated keys in halves or in pairs.

use ndarray::{Axis, Slice, concatenate};

use super::*;

/// The stages that end so, with the even numbers of each row first.
fn in_halves(dump: &Trace, end: &str) -> Trace {
    renamed(dump, |name, values| match values {
        Values::Real(dtype, a) if name.ends_with(end) => {
            let last = Axis(a.ndim() - 1);
            let every_other = |from| a.slice_axis(last, Slice::new(from, None, 2));
            (name.to_owned(), Values::Real(*dtype, concatenate(last, &[every_other(0), every_other(1)]).unwrap()))
        }
        values => (name.to_owned(), values.clone()),
    })
}

/// The same model, and where only the last token is looked at, after a cache.
fn fed(model: &str, step: bool, cache_before: bool) -> Request {
    let request = request(model, CacheFormat::Plain);
    let inputs = crate::inputs::Inputs { cache_before, ..request.case.inputs.clone().decoding(1).unwrap() };
    let chunks = vec![inputs.past(), 1];
    let case = if step { Case { inputs, chunks, ..request.case } } else { request.case };
    Request::new(case, Trace::default())
}

#[test]
fn keys_of_one_order_are_judged_to_the_bit_as_if_they_were_read_whole_and_those_of_two_are_left_to_that() {
    for (number, (step, cache_before)) in [(false, false), (true, false), (true, true)].into_iter().enumerate() {
        for model in ["v2", "v2-lite"] {
            let mut request = fed(model, step, cache_before);
            let mut dump = dumped(&request, [Precision::F32, Precision::Bf16][number % 2]);
            dump.retain(|name| !name.ends_with("q_pe"));
            let what = format!("{model}, a step: {step}, the cache before it: {cache_before}");
            for right in [&dump, &in_halves(&dump, "k_pe")] {
                let (stepwise, whole, verdict) = both(&mut request, right);
                assert!(stepwise.is_none_or(|stepwise| stepwise == whole), "{what}");
                assert!(verdict.passes(), "{what}: {whole}");
            }
            let (stepwise, _, verdict) = both(&mut request, &in_halves(&dump, "past_key_values.1.k_pe"));
            assert_eq!(stepwise, None, "{what}");
            let failure = verdict.first_failure().map(|of| of.stage.clone());
            assert_eq!(failure.as_deref(), Some("past_key_values.1.k_pe"), "{what}");
        }
    }
}
