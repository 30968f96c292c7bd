//! A driver that lacks something is none, whatever it lacks; and nothing is called in it that was not looked for.
//!
//! The test builds a library that has each symbol that is called, and no other ([`fake.rs`](fake.rs)), and runs itself with
//! that in the place of libcuda and libcublasLt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dsv2_optimized::device::products::MatrixProduct;
use dsv2_optimized::{Cuda, Device, Element, Error, Grid, Kernel, Library};

/// Tells the test that it is the one that is run with the fake.
const INSIDE: &str = "DSV2_FAKE_DRIVER";

/// Everything that a device can be asked for. What it says at its end.
fn everything() -> Result<(), Error> {
    let gpu = Cuda::timing(Library::embedded())?;
    let places = [4096, 4096, 4096].map(|bytes| gpu.allocate(bytes));
    let [a, b, c] = places.map(|place| place.expect("there is room"));
    let mut read = [0; 4];
    gpu.write(a, &[1, 2, 3, 4])?;
    gpu.copy(a, b, 4)?;
    gpu.fill(c, 7, 4)?;
    gpu.read(b, &mut read)?;
    assert_eq!(read, [1, 2, 3, 4]);
    gpu.launch(
        &Kernel::new("argmax", "argmax_tuned_f32"),
        Grid { blocks: [1; 3], threads: [32, 1, 1], shared: 64 << 10 },
        &[],
    )?;
    gpu.clone().capture(&mut || gpu.fill(c, 7, 4))?.launch()?;
    let product = MatrixProduct::linear([2, 3, 4], 4, [4, 1], 3, [Element::F32; 2]);
    gpu.products()?.multiply(&product, a, b, c)?;
    assert!(gpu.memory()?.0 > 0 && gpu.timings()?.len() == 3);
    let refused = gpu.allocate(1 << 41).unwrap_err().to_string();
    assert!(refused.contains("FAKE"), "{refused}");
    gpu.synchronize()
}

fn main() {
    if std::env::var_os(INSIDE).is_some() {
        match everything() {
            Ok(()) => println!("done"),
            Err(refused) => println!("{refused}"),
        }
        return;
    }
    // as the other test targets are asked for their names
    if std::env::args().any(|argument| argument == "--list") {
        return println!("a_driver_that_lacks_a_symbol_is_none: test");
    }
    if !cfg!(all(target_os = "linux", target_pointer_width = "64")) {
        return println!("not run: it takes Linux");
    }
    let room = tempfile::tempdir().expect("a folder");
    let library = build(room.path());
    assert_eq!(with(&library, room.path()), "done", "what is called is there");
    let text = include_str!("fake.rs");
    let symbols: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(is_symbol).collect();
    let mut symbols = Vec::from_iter(std::collections::BTreeSet::from_iter(symbols));
    symbols.sort_unstable();
    assert_eq!(symbols.len(), 37 + 12);
    for symbol in symbols {
        let said = with(&without(&library, symbol), room.path());
        let of = if symbol.starts_with("cublas") { "libcublasLt" } else { "libcuda" };
        assert!(said.contains(&format!("{of} has no `{symbol}`")) && said.lines().count() == 1, "{symbol}: {said}");
    }
    println!("a driver that lacks a symbol is none: ok");
}

fn is_symbol(word: &&str) -> bool {
    let rest = word.strip_prefix("cublasLt").or_else(|| word.strip_prefix("cu"));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// The fake, as bytes.
fn build(room: &Path) -> Vec<u8> {
    let (source, library) = (room.join("fake.rs"), room.join("fake.so"));
    fs::write(&source, include_str!("fake.rs")).expect("room for it");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"]).arg(&library).arg(&source);
    assert!(command.status().expect("there is a compiler").success());
    fs::read(library).expect("it was built")
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

/// What this program says where that is the driver.
fn with(library: &[u8], room: &Path) -> String {
    for name in ["libcuda.so", "libcuda.so.1", "libcublasLt.so", "libcublasLt.so.12"] {
        fs::write(room.join(name), library).expect("room for it");
    }
    let this: PathBuf = std::env::current_exe().expect("a program");
    let output = Command::new(this).env(INSIDE, "1").env("LD_LIBRARY_PATH", room).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
