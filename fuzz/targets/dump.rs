//! Any safetensors file as a dump of stages and as the inputs of a small model: read, checked, judged, run.
//!
//! The first byte says whether the rest is a file as it stands, a file without its length prefix, or what a file in
//! good order is made from.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use arbitrary::Unstructured;
use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::check::{Request, check};
use dsv2::trace::Trace;
use dsv2_fuzz::files::{in_good_order, with_length_prefix};
use dsv2_fuzz::memory::bounded;
use dsv2_fuzz::{check_line, check_message, model};
use dsv2_reference::NoTap;
use libfuzzer_sys::fuzz_target;

/// What tensors of files in good order are called: every stage of the small model, and some that it has not.
static STAGES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let others = ["logits", "loss", "score", "model.layers.7", "x"].map(str::to_owned);
    model::good_trace().iter().map(|(name, _)| name.to_owned()).chain(others).collect()
});

const INPUTS: [&str; 8] = [
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "labels",
    "logits_to_keep",
    "num_items_in_batch",
    "x",
];

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, rest)) = bytes.split_first() else { return };
    match how % 4 {
        0 => {
            as_dump(rest.to_vec());
            as_inputs(rest.to_vec());
        }
        1 => {
            as_dump(with_length_prefix(rest));
            as_inputs(with_length_prefix(rest));
        }
        2 => {
            let names: Vec<&str> = STAGES.iter().map(String::as_str).collect();
            if let Ok(file) = in_good_order(&names, &mut Unstructured::new(rest)) {
                as_dump(file);
            }
        }
        _ => {
            if let Ok(file) = in_good_order(&INPUTS, &mut Unstructured::new(rest)) {
                as_inputs(file);
            }
        }
    }
});

fn as_dump(bytes: Vec<u8>) {
    // A byte may become an integer of eight, two a double.
    let candidate = match bounded(bytes.len(), 8, || Trace::parse(Path::new("dump.safetensors"), bytes)) {
        Ok(candidate) => candidate,
        Err(error) => return check_message(&error),
    };
    match check(&Request::new(model::good_case(), candidate)) {
        Err(error) => check_message(&error),
        Ok(checked) => {
            let notes = checked.verdict.stages.iter().filter_map(|stage| stage.note.as_ref());
            notes.for_each(|note| check_line(note));
        }
    }
}

fn as_inputs(bytes: Vec<u8>) {
    // The numbers are there three times for a moment: as they are stored, as doubles, and as floats.
    let inputs = match bounded(bytes.len(), 12, || model::inputs(bytes)) {
        Ok(inputs) => inputs,
        Err(error) => return check_message(&error),
    };
    let settings = Settings { precision: Precision::F32, ..Settings::default() };
    match model::case(inputs).and_then(|case| Reference.run(&case, &settings, &mut NoTap)) {
        Err(error) => check_message(&error),
        Ok(trace) => assert!(!trace.is_empty()),
    }
}
