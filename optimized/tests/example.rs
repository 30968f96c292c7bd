//! The program examples/generate refuses in one line what cannot be done. `cargo test` builds it beside the tests.

use std::process::Command;

/// What `generate` says on stderr, with a small model on the emulator, where it must refuse.
fn refused(arguments: &[&str]) -> String {
    let test = std::env::current_exe().unwrap();
    let examples = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples");
    let program = examples.join("generate").with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not there: cargo build --examples", program.display());
    let small = ["--device", "emulated", "--shrink", "64"];
    let output = Command::new(&program).args(small).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{arguments:?}: {said}");
    said.trim_end().to_owned()
}

#[test]
fn sizes_that_no_memory_holds_are_refused_before_anything_is_made() {
    for option in ["--batch", "--prompt-tokens", "--new-tokens"] {
        for number in ["100000000000", "6148914691236517205", "18446744073709551615"] {
            for others in [&["--layers", "2"][..], &["--layers", "1", "--top-p", "0.5"]] {
                let said = refused(&[&[option, number], others].concat());
                let found = said.strip_prefix("generate: device memory: expected ");
                assert!(found.is_some_and(|found| found.ends_with(" bytes, found 4294967296 free")), "{said}");
            }
        }
    }
}

#[test]
fn numbers_that_mean_nothing_are_refused_by_their_names() {
    for (option, number, expected) in [
        ("--batch", "0", "at least 1"),
        ("--prompt-tokens", "0", "at least 1"),
        ("--layers", "0", "1 to 27"),
        ("--layers", "28", "1 to 27"),
        ("--layers", "100000000000", "1 to 27"),
        ("--top-p", "1.5", "a number within 0 and 1"),
        ("--top-p", "NaN", "a number within 0 and 1"),
    ] {
        assert_eq!(refused(&[option, number]), format!("generate: {option}: expected {expected}, found {number}"));
    }
}
