//! The host code of the GPU, on a driver whose launches the emulator runs (`ptx-emulator-libcuda`), and on one that lacks a
//! symbol or fails in a call: whatever is wrong, there is one line and never a panic or a wrong number.
//!
//! The test runs itself with that library in the place of libcuda, and with a [fake](fake.rs) in the place of libcublasLt.

#[path = "../support/graphs.rs"]
mod graphs;
mod inside;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Tells the test that it is the one that is run with the driver, and what it is to do.
const INSIDE: &str = "DSV2_EMULATED_DRIVER";
const TRACE: &str = "EMULATED_CUDA_TRACE";
const FAIL: &str = "EMULATED_CUDA_FAIL";

/// What is called in the driver's library, and in cuBLASLt.
const CALLED: [usize; 2] = [37, 12];

fn main() {
    match std::env::var(INSIDE).as_deref() {
        Ok("everything") => {
            return match inside::everything() {
                Ok(calls) => println!("done after {calls}"),
                Err(refused) => println!("{refused}"),
            };
        }
        Ok(_) => return inside::promises(),
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

    // Of memory that is all given out there may be more on a second try; after another error there is no other one.
    for (name, fault, expected) in [
        ("full", "cuMemAlloc_v2:1:2", "done after "),
        ("lost", "cuMemAlloc_v2:1:999", "an allocation of 102400 bytes: CUDA_ERROR_UNKNOWN "),
    ] {
        let said = run(name, &libraries, &[(FAIL, fault)], "everything");
        assert!(said.starts_with(expected), "{fault}: {said}");
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
                // A failure to give back can be borne.
                let borne = ["Free", "Destroy", "Unload", "Release", "cuGetError"];
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
