//! The programs in examples/ run, and say what they are there to show.

use std::path::PathBuf;
use std::process::Command;

/// The lines that an example prints. `cargo test` builds the examples beside the tests.
fn printed(example: &str) -> Vec<String> {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(example);
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not there: cargo build --examples", program.display());
    let output = Command::new(&program).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && err.is_empty(), "{example}: {}, {err}", output.status);
    out.lines().map(str::to_owned).collect()
}

/// The line that begins with `start`.
fn line<'a>(lines: &'a [String], start: &str) -> &'a str {
    let line = lines.iter().find(|line| line.starts_with(start));
    line.unwrap_or_else(|| panic!("no line begins with {start:?}: {lines:#?}"))
}

/// The last number of a line.
fn number(line: &str) -> f64 {
    line.split_whitespace().next_back().unwrap().parse().unwrap()
}

#[test]
fn a_tap_records_and_plants() {
    let lines = printed("tap");
    let attends: Vec<f64> = line(&lines, "  token 5").split_whitespace().skip(2).map(|x| x.parse().unwrap()).collect();
    assert_eq!(attends.len(), 6);
    assert!((attends.iter().sum::<f64>() - 1.0).abs() < 0.005, "{attends:?}");
    let planted = number(line(&lines, "Scores 1.59 times too small: the logits are off by"));
    assert!((0.01..2.0).contains(&planted), "{planted}");
    assert_eq!(number(line(&lines, "Without a tap, or with one that only looks: off by")), 0.0);
}

#[test]
fn a_backend_is_verified_and_its_bug_is_found() {
    let lines = printed("backend");
    for case in ["v2", "v2-lite", "many-groups"] {
        assert_eq!(line(&lines, &format!("pass {case} mine ")), format!("pass {case} mine f32"));
    }
    // V2-Lite has no groups, so that both rules are one.
    line(&lines, "pass v2-lite mine-by-v3-rule f32");
    for case in ["v2", "many-groups"] {
        let failure =
            format!("FAIL {case} mine-by-v3-rule f32: first wrong stage model.layers.1.mlp.gate.topk_indices: ");
        assert!(line(&lines, &failure).contains("which the router does not select from these logits"));
    }
    assert_eq!(lines.len(), 6);
}

#[test]
fn a_dump_is_judged_and_its_bug_is_explained() {
    let lines = printed("check_dump");
    let wrong = lines.iter().position(|line| line == "without the shared experts: 7 stages of f32 compared").unwrap();
    let (right, wrong) = lines.split_at(wrong);
    assert_eq!(right, ["right: 7 stages of f32 compared", "  pass"]);
    assert_eq!(wrong[1], "  FAIL: first wrong stage model.layers.1");
    assert_eq!(wrong[4..], ["  explained by `shared_dropped`: The shared experts are not added."]);
}

#[test]
fn an_engine_is_judged_by_the_tokens_that_it_generated() {
    let lines = printed("generated_ids");
    assert_eq!([&lines[1][..], &lines[3]], ["  pass: 1 stage", "  FAIL: first wrong stage lm_head"], "{lines:#?}");
    assert!(lines[0].starts_with("right: [17, 3, 99, 42, 8, "), "{lines:#?}");
    assert_eq!(lines.len(), 4);
}

#[test]
fn the_emulator_finds_what_a_gpu_might_forgive() {
    let lines = printed("emulate_kernel");
    line(&lines, "right: the furthest of 2000 numbers is ");
    let error = line(&lines, "out of bounds: rms_norm_tuned_f32 at ");
    assert!(error.contains("block (1, 0, 0)") && error.ends_with(" of y, which has 4000"), "{error}");
    let race = line(&lines, "race: rms_norm_tuned_f32: race on 4 bytes of shared memory");
    assert!(race.contains("write at ") && race.contains(" and read at "), "{race}");
    assert!(line(&lines, "and: rms_norm_tuned_f32 at ").contains("are read but not initialised"));
}

#[test]
fn the_page_on_kernels_shows_what_the_emulator_says() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kernels.md"));
    // Lines of a source, addresses and the last bits of an error are another matter.
    let without_numbers = |line: &str| line.replace(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c), "");
    let shown = page.lines().skip_while(|line| *line != "$ cargo run --release --example emulate_kernel").skip(1);
    let shown: Vec<String> = shown.take_while(|line| *line != "```").map(without_numbers).collect();
    let printed: Vec<String> = printed("emulate_kernel").iter().map(|line| without_numbers(line)).collect();
    assert_eq!(shown, printed[..shown.len()]);
    assert!(!shown.is_empty());
}
