//! Requests: what there is, what is refused, and what the latent cache saves.

use std::io::Read;
use std::process::Stdio;

use serde_json::Value;

use crate::process::{Room, dsv2, run};

#[test]
fn what_the_latent_cache_saves() {
    insta::assert_snapshot!(run(&mut dsv2(["kv-cache"])).passes());
    let room = Room::of("v2");
    let stdout = run(dsv2(["kv-cache", "--memory", "0.5", "--model"]).arg(room.path().join("model"))).passes();
    assert!(stdout.contains("longest context in 0.5 GB"), "{stdout}");
    let json = run(&mut dsv2(["kv-cache", "--json", "--preset", "v2-lite", "--batch", "2"])).passes();
    let tables: Value = serde_json::from_str(&json).unwrap();
    let row = tables["tables"][0]["rows"].as_array().unwrap().iter().find(|row| row["attention"] == "mla").unwrap();
    assert_eq!((&row["format"], &row["bytes_per_token"]), (&"bf16".into(), &31_104.into()));
    assert_eq!(row["longest_context"], 160_751, "10^10 / 31104 / 2");
    let line = run(&mut dsv2(["kv-cache", "--preset", "v3"])).refused();
    assert!(line.contains("v3") && line.contains("v2-lite"), "{line}");
}

#[test]
fn benchmarks_are_reported_by_a_program_of_their_own() {
    for (command, now) in [("bench-report", "-- report FILE..."), ("bench-compare", "-- compare OLD NEW")] {
        for args in [&[][..], &["a.json", "b.json", "--all"], &["--help"]] {
            let line = run(dsv2([command]).args(args)).refused();
            let now = format!("`cargo run --release -p dsv2-bench-report {now}`");
            assert_eq!(line, format!("dsv2: {command} is another program now: {now}"));
        }
    }
}

#[test]
fn help_is_no_error() {
    let ran = run(&mut dsv2(["--help"]));
    assert_eq!(ran.stderr, "");
    let stdout = ran.passes();
    for command in ["verify", "trace", "check", "materialize", "kv-cache", "plan", "mutants"] {
        assert!(stdout.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {stdout}");
        let help = run(&mut dsv2([command, "--help"])).passes();
        assert!(help.contains(&format!("Usage: dsv2 {command}")), "{help}");
    }
    assert!(run(&mut dsv2(["--version"])).passes().starts_with("dsv2 "));
}

#[test]
fn what_there_is_not_is_refused_and_what_there_is_said() {
    for (args, says) in [
        (
            &["verify", "--backend", "tpu"][..],
            &["tpu", "--backend", "[possible values: reference, emulated, cuda]"][..],
        ),
        (&["verify", "--backend", "emulated", "--races"], &["--backend", "--races", "cannot be used with"]),
        (&["verify", "--races", "--sums", "wide"], &["--races", "--sums", "cannot be used with"]),
        (&["verify", "--sums", "wide", "--dtype", "f64"], &["--dtype", "f32 or bf16", "f64"]),
        (&["verify", "--sums", "aligned"], &["--sums", "aligned-8-2", "aligned-16-2"]),
        (&["verify", "--case", "no-such-*"], &["--case", "expected a pattern that matches a golden case", "no-such-*"]),
        (
            &["verify", "--case", "mask-4d-heads", "--backend", "emulated"],
            &["--case", "expected a case that can run as asked for", "mask-4d-heads: "],
        ),
        (
            &["verify", "--case", "one-token", "--ranks", "3x1"],
            &["--ranks", "expected a split that one of the cases can have", "one-token: "],
        ),
        (&["verify", "--case", "["], &["--case", "expected a pattern of *, ? and [..]", "\"[\""]),
        (&["verify", "--dtype", "f8"], &["--dtype", "expected f64, f32, tf32, f16, bf16 or fp8", "f8"]),
        (&["verify", "--attention", "flash"], &["--attention", "flash", "expanded", "absorbed"]),
        (&["verify", "--golden", "no/such/folder"], &["no/such/folder", "cannot read"]),
        (&["trace"], &["--model <DIR>", "--inputs <FILE>", "--output <FILE>"]),
        (&["check", "--dialect", "v3"], &["--dialect", "expected hf, hf-pre-5.15 or deepseek", "v3"]),
        (&["trace", "--chunks", "7,0"], &["--chunks", "expected lengths from 1 up, such as 7,1,1", "7,0"]),
        (&["prove"], &["prove"]),
        (&["verify", "--proof"], &["--proof"]),
        (&["kv-cache", "--memory", "-1"], &["--memory", "expected 0 to 9000000 (GB)", "found -1"]),
        (&["kv-cache", "--memory", "9.1e6"], &["--memory", "expected 0 to 9000000 (GB)", "found 9100000"]),
        (&["kv-cache", "--memory=-1"], &["--memory", "expected 0 to 9000000 (GB)", "-1"]),
        (&["kv-cache", "--memory", "NaN"], &["--memory", "expected 0 to 9000000 (GB)", "NaN"]),
        (&["kv-cache", "--batch", "0"], &["--batch", "expected one sequence or more", "0"]),
        (&["generate", "--prompt", "a", "--seed", "-1"], &["invalid value '-1'", "--seed"]),
        (&["trace", "--cache", "fp4"], &["--cache", "plain", "six-bit", "fp4"]),
        (&["materialize", "v2"], &["<DIR>"]),
    ] {
        let line = run(&mut dsv2(args)).refused();
        assert!(says.iter().all(|word| line.contains(word)), "{args:?}: {line}");
    }
}

#[test]
fn a_reader_who_has_read_enough_is_no_fault() {
    for args in [&["kv-cache"][..], &["--help"], &["verify", "--case", "one-token"]] {
        let mut child = dsv2(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() && !stderr.contains("panicked"), "{args:?}: {status}: {stderr}");
    }
}
