//! What `verify` and `mutants` plan to take is what they take.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use dsv2::backend::{Backend, OnDevice, Precision, Reference, Settings};
use dsv2::golden::GoldenCases;
use dsv2::mutants::benign::benign;
use dsv2::mutants::catalogue;
use dsv2::score::dumps::{self, DumpKind};
use dsv2::score::{self, Subjects, Trials, run as try_all};
use dsv2::values::Values;
use dsv2::verify::{self, need};
use dsv2_reference::tap::NoTap;
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use ndarray::ArrayD;
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What a run of a case on a backend takes, and what was planned.
fn run(golden: &GoldenCases, name: &str, backend: &dyn Backend, precision: Precision) -> (u64, u64) {
    let settings = Settings { precision, ..Settings::default() };
    let planned = need::of_run(&golden.outline(name).unwrap().case, backend, &settings).unwrap();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let case = golden.load(name).unwrap();
    let outcome = verify::run(&case, backend, precision, settings.attention, &mut NoTap);
    assert!(!outcome.fails(), "{name}: {outcome:?}");
    ((ALLOCATOR.peak_usage() - before) as u64, planned)
}

const ON_REFERENCE: [(&dyn Backend, Precision); 2] = [(&Reference, Precision::F64), (&Reference, Precision::F32)];
const ON_EMULATOR: [(&dyn Backend, Precision); 2] =
    [(&OnDevice::Emulator { races: false }, Precision::F32), (&OnDevice::Emulator { races: false }, Precision::Bf16)];
const WATCHED: [(&dyn Backend, Precision); 1] = [(&OnDevice::Emulator { races: true }, Precision::F32)];

/// Nothing else allocates meanwhile.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn no_run_of_a_golden_case_takes_more_than_was_planned() {
    let _alone = ALONE.lock().unwrap();
    let golden = GoldenCases::embedded();
    let all: Vec<&str> = golden.names().iter().map(String::as_str).collect();
    let few = ["one-token", "real-decode", "batch-of-one", "classify-no-pad"];
    for (cases, candidates) in [(&all[..], &ON_REFERENCE[..]), (&few[..], &ON_EMULATOR[..]), (&few[..2], &WATCHED[..])]
    {
        for (name, (backend, precision)) in
            cases.iter().flat_map(|name| candidates.iter().map(move |candidate| (name, candidate)))
        {
            let (taken, planned) = run(&golden, name, *backend, *precision);
            println!("{name}, {} {precision}: {taken} bytes, {planned} planned", backend.name());
            assert!(taken <= planned, "{name}, {} {precision}: {taken} bytes, {planned} planned", backend.name());
        }
    }

    // golden cases are small, and what any of them takes hides what grows with a model
    let room = tempfile::tempdir().unwrap();
    let golden = larger(room.path());
    for (backend, precision) in ON_REFERENCE {
        let (taken, planned) = run(&golden, "larger", backend, precision);
        let bytes = format!("{precision}: {taken} bytes, {planned} planned");
        assert!(taken > 40_000_000 && taken <= planned && planned < 2 * taken, "{bytes}");
    }
}

/// What trials of some mutants and benign variants on a case take, and what was planned.
fn trials(golden: &GoldenCases, name: &str, mutants: &[&str], kinds: &[&'static DumpKind], hints: bool) -> (u64, u64) {
    let trials = Trials {
        golden,
        cases: vec![name.to_owned()],
        precisions: vec![Precision::Bf16],
        dumps: kinds.to_vec(),
        hints,
        subjects: Subjects {
            mutants: catalogue().filter(|mutant| mutants.contains(&mutant.id)).collect(),
            benign: benign().take(1).collect(),
        },
        most: usize::MAX,
        at_a_time: 1,
    };
    let (_, planned) = score::need::at_a_time(&trials, None).unwrap();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let findings = try_all(&trials, |_, _| {}).unwrap();
    assert!(findings.len() > mutants.len(), "{name}: each is tried");
    ((ALLOCATOR.peak_usage() - before) as u64, planned.size.0)
}

#[test]
fn no_trial_of_a_mutant_takes_more_than_was_planned() {
    let _alone = ALONE.lock().unwrap();
    let golden = GoldenCases::embedded();
    let each = dumps::named(&["each".to_owned()]).unwrap();
    let two = ["mask_finite", "shared_dropped"];
    for (name, kinds) in [("left-padding", &each[..]), ("real-decode", &each[..1])] {
        let (taken, planned) = trials(&golden, name, &two, kinds, true);
        println!("{name}: {taken} bytes, {planned} planned");
        assert!(taken <= planned, "{name}: {taken} bytes, {planned} planned");
    }
    let room = tempfile::tempdir().unwrap();
    let golden = larger(room.path());
    // in one dump one of them is found, and the other passes: how far it moves the logits is asked then
    for (mutant, kinds) in [("shared_dropped", &each[..1]), ("mask_finite", &each[1..2])] {
        let (taken, planned) = trials(&golden, "larger", &[mutant], kinds, true);
        println!("larger, {}: {taken} bytes, {planned} planned", kinds[0].name);
        assert!(taken > 40_000_000 && taken <= planned && planned < 5 * taken, "{taken} bytes, {planned} planned");
    }
}

/// The case `v2` with a wider model and more tokens. What it expects is what the reference computes.
fn larger(room: &Path) -> GoldenCases {
    let folder = room.join("larger");
    fs::create_dir(&folder).unwrap();
    let v2 = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases/v2/case.json");
    let mut file: Value = serde_json::from_slice(&fs::read(v2).unwrap()).unwrap();
    file["name"] = "larger".into();
    for (key, value) in [("hidden_size", 352), ("intermediate_size", 600), ("kv_lora_rank", 128), ("vocab_size", 3000)]
    {
        file["config"][key] = value.into();
    }
    let ids = ArrayD::from_shape_fn(vec![1, 200], |at| (at[1] * 37 % 3000) as i64);
    file["inputs"] = json!({"input_ids": {"dtype": "I64", "shape": [1, 200]}});
    let write = |file: &Value| fs::write(folder.join("case.json"), file.to_string()).unwrap();
    write(&file);
    write_safetensors(&folder.join("inputs.safetensors"), &[("input_ids".to_owned(), Data::Index(ids))]).unwrap();
    let golden = GoldenCases::at(room).unwrap();
    let settings = Settings { precision: Precision::F32, ..Settings::default() };
    let expected = Reference.run(&golden.outline("larger").unwrap().case, &settings, &mut NoTap).unwrap();
    expected.write(&folder.join("expected.safetensors")).unwrap();
    let stage = |(name, values): (&str, &Values)| {
        let dtype = if values.index().is_some() { "I64" } else { "F32" };
        (name.to_owned(), json!({"dtype": dtype, "shape": values.shape(), "baseline": null}))
    };
    file["stages"] = expected.iter().map(stage).collect::<serde_json::Map<_, _>>().into();
    write(&file);
    golden
}
