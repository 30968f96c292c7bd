//! The host code of the GPU, on a driver whose launches the emulator runs (`ptx-emulator-libcuda`), and on one that lacks a
//! symbol or fails in a call: whatever is wrong, there is one line and never a panic or a wrong number.
//!
//! The test runs itself with that library in the place of libcuda, and with a [fake](fake.rs) in the place of libcublasLt.

#[path = "../support/graphs.rs"]
mod graphs;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use dsv2_optimized::device::products::MatrixProduct;
use dsv2_optimized::device::{Allocation, Counts};
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::operators::argmax::argmax;
use dsv2_optimized::operators::gemm::linear;
use dsv2_optimized::{Cuda, Device, Element, Emulated, Error, Library, Tensor, Variant};
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::Array2;

/// Tells the test that it is the one that is run with the driver, and what it is to do.
const INSIDE: &str = "DSV2_EMULATED_DRIVER";
const TRACE: &str = "EMULATED_CUDA_TRACE";
const FAIL: &str = "EMULATED_CUDA_FAIL";

/// What is called in the driver's library, and in cuBLASLt.
const CALLED: [usize; 2] = [37, 12];

/// Everything that a device can be asked for, with the numbers that must come of it. How many calls were made by then.
fn everything() -> Result<usize, Error> {
    let gpu = Cuda::timing(Library::embedded())?;
    let device: Arc<dyn Device> = gpu.clone();
    // More than goes through pinned memory at once, and more than all of it in small pieces.
    let (large, small) = (vec![7_u8; 100 << 10], vec![9_u8; 60 << 10]);
    let places = [Allocation::new(&device, large.len())?, Allocation::new(&device, large.len())?];
    let [a, b] = [places[0].address(), places[1].address()];
    let mut read = vec![0; large.len()];
    gpu.write(a, &large)?;
    gpu.copy(a, b, large.len())?;
    gpu.read(b, &mut read)?;
    assert_eq!(read, large);
    for index in 0..6 {
        gpu.write(a, &small)?;
        gpu.fill(a, index, 4)?;
        gpu.copy(a, b, small.len())?;
    }
    gpu.read(b, &mut read[..small.len()])?;
    assert!(read[..4] == [5; 4] && read[4..small.len()] == small[4..]);
    let logits = Tensor::from_f32(&device, Element::F32, &[1, 5], &[1.0, 4.0, 2.0, 8.0, 3.0])?;
    let token = Tensor::empty(&device, Element::I32, &[1])?;
    argmax(Variant::Tuned, &logits, &token)?;
    assert_eq!(token.to_i32()?, [3]);
    let graph = device.clone().capture(&mut || {
        argmax(Variant::Naive, &logits, &token)?;
        device.copy(token.address(), a, 4)
    })?;
    logits.write_f32(&[1.0, 4.0, 2.0, 3.0, 3.0])?;
    graph.launch()?;
    gpu.read(a, &mut read[..4])?;
    assert_eq!((&read[..4], token.to_i32()?), (&[1, 0, 0, 0][..], vec![1]));
    // Kernels that may have their shared memory only because it was asked for; in f32 it is 48 KiB and a byte.
    for element in [Element::Bf16, Element::F32] {
        let [x, weight, out] = [128; 3].map(|rows| Tensor::empty(&device, element, &[rows, 128]));
        let (x, weight, out) = (x?, weight?, out?);
        x.write_f32(&vec![1.0; x.len()])?;
        weight.write_f32(&vec![0.5; weight.len()])?;
        linear(Variant::Tuned, &x, &weight, None, &out)?;
        assert_eq!(out.to_f32()?, vec![64.0; out.len()]);
    }
    gpu.products()?.multiply(&MatrixProduct::linear([2, 3, 4], 4, [4, 1], 3, [Element::F32; 2]), a, a, b)?;
    let kernels: Vec<(String, usize)> = gpu.timings()?.into_iter().map(|time| (time.kernel, time.launches)).collect();
    for kernel in ["argmax_tuned_f32", "graph", "gemm_tuned_f32", "gemm_tuned_bf16", "cublaslt_f32"] {
        assert!(kernels.contains(&(kernel.to_string(), 1)), "{kernel}: {kernels:?}");
    }
    assert!(gpu.memory()?.0 > 0);
    let refused = gpu.allocate(1 << 41).unwrap_err().to_string();
    gpu.synchronize()?;
    assert!(refused.starts_with("an allocation of 2199023255552 bytes: CUDA_ERROR"), "{refused}");
    Ok(std::env::var_os(TRACE).map_or(0, |trace| calls(Path::new(&trace)).len()))
}

fn main() {
    match std::env::var(INSIDE).as_deref() {
        Ok("everything") => {
            return match everything() {
                Ok(calls) => println!("done after {calls}"),
                Err(refused) => println!("{refused}"),
            };
        }
        Ok(_) => return promises(),
        Err(_) => (),
    }
    // as the other test targets are asked for their names
    if std::env::args().any(|argument| argument == "--list") {
        return println!("host_code_on_an_emulated_driver: test");
    }
    if !cfg!(all(target_os = "linux", target_pointer_width = "64")) {
        return println!("not run: it takes Linux");
    }
    let room = tempfile::tempdir().expect("a folder");
    let cuda = room.path().join("cuda.so");
    fs::copy(emulated(), &cuda).expect("cargo builds it for the tests");
    let libraries = [cuda, build(room.path())];
    let run = |name: &str, libraries: &[PathBuf; 2], settings: &[(&str, &str)], what: &str| {
        let folder = room.path().join(name);
        fs::create_dir(&folder).expect("room for it");
        with(libraries, &folder, settings, what)
    };
    assert_eq!(run("promises", &libraries, &[], "promises"), "kept");

    let trace = room.path().join("trace");
    let said = run("all", &libraries, &[(TRACE, trace.to_str().expect("a path"))], "everything");
    let calls = calls(&trace);
    let working: usize = said.strip_prefix("done after ").and_then(|count| count.parse().ok()).expect("it is done");
    assert!(working < calls.len(), "the rest gives back what there was");

    for (wrong, expected) in [
        (("EMULATED_CUDA_DEVICES", "0"), "no CUDA device: the driver knows no GPU"),
        (
            ("EMULATED_CUDA_CAPABILITY", "7.5"),
            "no CUDA device: emulated GPU has compute capability 7.5, the kernels need 8.0",
        ),
        (
            ("EMULATED_CUDA_PTX", "8.3"),
            "module argmax: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (the provided PTX was compiled with an unsupported \
             toolchain.): ptxas fatal   : Unsupported .version 8.4; current version is '8.3'",
        ),
        (
            ("EMULATED_CUDA_MEMORY", "8000000"),
            "products: library: expected cuBLASLt beside the driver, found no 33554432 bytes for its workspace",
        ),
        // What nobody understands is an error of the driver as any other, and no end of the program.
        (
            ("EMULATED_CUDA_DEVICES", "many"),
            "no CUDA device: CUDA_ERROR_INVALID_VALUE (invalid argument: EMULATED_CUDA_DEVICES: expected 0 or 1, found \
             \"many\")",
        ),
        (
            ("EMULATED_CUDA_MEMORY", "lots"),
            "no CUDA device: CUDA_ERROR_INVALID_VALUE (invalid argument: EMULATED_CUDA_MEMORY: expected a number of bytes, \
             found \"lots\")",
        ),
    ] {
        assert_eq!(run(&format!("{}={}", wrong.0, wrong.1), &libraries, &[wrong], "everything"), expected);
    }

    // Each symbol that the libraries have is taken away.
    let mut tries: Vec<(String, Try)> = vec![];
    for (index, library) in libraries.iter().enumerate() {
        let library = fs::read(library).expect("it was built");
        tries.extend(symbols(&library).into_iter().map(|symbol| (symbol, Try::Without(index))));
    }
    // Each call fails: the first time, once in the middle, the last time.
    let names: BTreeSet<&String> = calls.iter().collect();
    for name in names {
        let places: Vec<usize> = (0..calls.len()).filter(|at| calls[*at] == *name).collect();
        let numbers = BTreeSet::from([1, places.len().div_ceil(2), places.len()]);
        for number in numbers {
            let at = places[number - 1];
            tries.push((format!("{name}:{number}:999"), Try::Failing { at, sticks: false }));
            tries.push((format!("{name}:{number}:700"), Try::Failing { at, sticks: true }));
            if ["cuLaunchKernel", "cuGraphLaunch"].contains(&name.as_str()) || name.ends_with("Async_v2") {
                tries.push((format!("{name}:{number}:700:later"), Try::Failing { at, sticks: true }));
            }
        }
    }
    let outcomes = tried(&tries, &|index, name, attempt| match attempt {
        Try::Without(library) => {
            let mut changed = libraries.clone();
            changed[*library] = room.path().join(format!("without {name}"));
            let bytes = fs::read(&libraries[*library]).expect("it was built");
            fs::write(&changed[*library], without(&bytes, name)).expect("room for it");
            run(&index.to_string(), &changed, &[], "everything")
        }
        Try::Failing { .. } => run(&index.to_string(), &libraries, &[(FAIL, name)], "everything"),
    });
    let mut missed = [0; 2];
    for ((name, attempt), said) in tries.iter().zip(outcomes) {
        assert_eq!(said.lines().count(), 1, "{name}: {said}");
        let done = said.starts_with("done");
        match attempt {
            Try::Without(library) if !done => {
                let of = ["libcuda", "libcublasLt"][*library];
                assert!(said.contains(&format!("{of} has no `{name}`")), "{name}: {said}");
                missed[*library] += 1;
            }
            // It is not called.
            Try::Without(_) => (),
            Try::Failing { at, sticks } => {
                // A failure to give back can be borne, and of memory that is refused there may be more on a second try.
                let borne = ["Free", "Destroy", "Unload", "Release", "cuGetError", "cuMemAlloc"];
                let to_free = calls.get(at + 1).is_some_and(|next| next == "cuMemFree_v2");
                let borne = !sticks && (to_free || borne.iter().any(|word| name.contains(word))) || *at >= working;
                assert!(!done || borne, "{name} failed, and nobody said so");
                assert!(done || said.contains("CUDA_ERROR"), "{name}: {said}");
            }
        }
    }
    assert_eq!(missed, CALLED, "symbols that are missed");
    println!("host code on an emulated driver: {} ways to fail, ok", tries.len());
}

/// What graphs promise on any device, and a model that is decoded with them.
fn promises() {
    let device: Arc<dyn Device> = Cuda::new(Library::embedded()).expect("there is a driver");
    graphs::replays(&device);
    graphs::refuses(&device);
    graphs::refuses_grids(&device);
    device.counts();
    graphs::counts(&device);
    generates(&device);
    println!("kept");
}

/// A small model has the tokens that it has on the emulator, with a graph for each step; and such a step asks the host for
/// nothing but its tokens.
fn generates(gpu: &Arc<dyn Device>) {
    let config = DeepseekV2Config::from_json_str(include_str!("config.json")).expect("a config");
    let rules =
        r#"{"seed": 11, "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.3}, {"suffix": "", "gain": 1.3}]}"#;
    let weights: GeneratedWeights = serde_json::from_str(rules).expect("rules");
    let prompts = Array2::from_shape_fn((3, 5), |(b, s)| (37 * b as i64 + 23 * s as i64 + 5) % 90);
    let options = GenerateOptions { page_size: 4, ..GenerateOptions::new(6) };
    let emulated: Arc<dyn Device> = Emulated::new(Library::embedded());
    let [found, expected] = [gpu, &emulated].map(|device| {
        let settings = Settings::new(Element::Bf16, Variant::Tuned);
        let model = CausalLm::load(&config, Dialect::Hf, &weights, device, settings, &mut |_| ()).expect("it fits");
        let tokens = model.generate(&prompts, None, &options).expect("it runs");
        let mut generation = model.start(&prompts, None, &options).expect("it runs");
        (0..2).for_each(|_| assert!(generation.step(None).expect("it runs").is_some()));
        device.counts();
        generation.step(None).expect("it runs");
        (tokens, device.counts())
    });
    assert_eq!(found, expected);
    let (_, Counts { launches, .. }) = found;
    assert!(launches > 20);
    let step = Counts { launches, graphs: 1, downloads: 1, synchronizations: 1, ..Counts::default() };
    assert_eq!(found.1, step);
}

/// What is tried.
enum Try {
    /// One of the libraries lacks a symbol.
    Without(usize),
    /// The call at this place of all calls fails; and then perhaps all others.
    Failing { at: usize, sticks: bool },
}

/// What becomes of each, several at a time.
fn tried(tries: &[(String, Try)], run: &(dyn Fn(usize, &str, &Try) -> String + Sync)) -> Vec<String> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let part = tries.len().div_ceil(threads);
    thread::scope(|scope| {
        let parts = tries.chunks(part).enumerate().map(|(index, tries)| {
            scope.spawn(move || {
                let numbered = tries.iter().enumerate();
                numbered.map(|(at, (name, attempt))| run(index * part + at, name, attempt)).collect::<Vec<_>>()
            })
        });
        let running: Vec<_> = parts.collect();
        running.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    })
}

/// The calls of a trace, in order.
fn calls(trace: &Path) -> Vec<String> {
    fs::read_to_string(trace).expect("a trace").lines().map(str::to_owned).collect()
}

/// The driver's library, which cargo builds for the tests.
fn emulated() -> PathBuf {
    std::env::current_exe().expect("a program").with_file_name("libptx_emulator_libcuda.so")
}

/// The fake cuBLASLt.
fn build(room: &Path) -> PathBuf {
    let (source, library) = (room.join("fake.rs"), room.join("fake.so"));
    fs::write(&source, include_str!("fake.rs")).expect("room for it");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"]).arg(&library).arg(&source);
    assert!(command.status().expect("there is a compiler").success());
    library
}

/// The names of calls in a library.
fn symbols(library: &[u8]) -> BTreeSet<String> {
    let is_symbol = |word: &&str| {
        let rest = word.strip_prefix("cublasLt").or_else(|| word.strip_prefix("cu"));
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let words = library.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    words.filter(is_symbol).map(str::to_owned).collect()
}

/// The same without a symbol: nobody finds it under its name.
fn without(library: &[u8], symbol: &str) -> Vec<u8> {
    let name: Vec<u8> = [&[0], symbol.as_bytes(), &[0]].concat();
    let mut changed = library.to_vec();
    let places: Vec<usize> =
        library.windows(name.len()).enumerate().filter(|(_, window)| *window == name).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{symbol} is in it");
    places.into_iter().for_each(|at| changed[at + 1] = b'x');
    changed
}

/// What this program says where those are the driver and cuBLASLt.
fn with([cuda, cublaslt]: &[PathBuf; 2], folder: &Path, settings: &[(&str, &str)], what: &str) -> String {
    for (name, library) in [("libcuda.so.1", cuda), ("libcublasLt.so.13", cublaslt)] {
        fs::hard_link(library, folder.join(name)).expect("a link");
    }
    let this: PathBuf = std::env::current_exe().expect("a program");
    let mut command = Command::new(this);
    command.env(INSIDE, what).env("LD_LIBRARY_PATH", folder).envs(settings.iter().copied());
    let output = command.output().expect("it starts");
    fs::remove_dir_all(folder).expect("it is there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Where a call fails, what it should have given back is left.
    let left = said.starts_with("emulated libcuda: not given back:") && said.lines().count() == 1;
    let failing = settings.iter().any(|(name, _)| *name == FAIL);
    assert!(output.status.success() && (said.is_empty() || failing && left), "{settings:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
