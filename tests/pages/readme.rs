//! What the README shows is what the program prints.

use std::path::Path;
use std::process::Command;

use dsv2::metrics::NAMES;

const README: &str = include_str!("../../README.md");

/// The lines that the README shows below `$ {command}`, to the end of the code block or the next command.
fn shown(command: &str) -> Vec<&'static str> {
    let mut lines = README.lines().skip_while(|line| *line != format!("$ {command}"));
    assert!(lines.next().is_some(), "the README shows `{command}`");
    lines.take_while(|line| !line.starts_with("```") && !line.starts_with("$ ")).collect()
}

fn dsv2(arguments: &str, folder: &Path) -> String {
    let arguments: Vec<&str> = arguments.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_dsv2")).args(arguments).current_dir(folder).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A line without its measured numbers and by which measure they are worst, which differ from one mathematical library to the next. `None` for rules and empty lines.
fn stable(line: &str) -> Option<String> {
    let is_measured =
        |word: &&str| word.contains("e-") || NAMES.contains(word) || word.trim_end_matches(',').parse::<f64>().is_ok();
    let words: Vec<&str> =
        line.split_whitespace().filter(|word| !is_measured(word) && !word.starts_with('─')).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[test]
fn the_excerpt_of_verify_is_real() {
    let printed = dsv2("verify --case v2*", Path::new("."));
    // Which stage comes nearest to its budget may change with the last bits, too.
    let without_stage = |line: String| line.split(" model.").next().unwrap_or_default().to_owned();
    // Where there is a GPU there are more runs, and so another number of them.
    let on_any_machine = |line: &&str| !line.contains(" cuda ");
    let real: Vec<_> = printed.lines().filter(on_any_machine).filter_map(stable).map(without_stage).collect();
    let excerpt = shown("cargo run --release -- verify --case 'v2*'");
    let excerpt: Vec<_> = excerpt.into_iter().filter_map(stable).map(without_stage).collect();
    assert_eq!(excerpt, real);
}

#[test]
fn the_example_of_a_wrong_implementation_is_real() {
    let folder = tempfile::tempdir().unwrap();
    let commands: Vec<&str> = README.lines().filter_map(|line| line.strip_prefix("$ dsv2 ")).collect();
    let [materialize, trace, check] = commands[..] else { panic!("three commands: {commands:?}") };
    dsv2(materialize, folder.path());
    dsv2(trace, folder.path());
    let printed = dsv2(check, folder.path());
    let mut real = printed.lines().filter_map(stable);
    for line in shown(&format!("dsv2 {check}")).into_iter().filter(|line| line.trim() != "...").filter_map(stable) {
        assert!(real.any(|printed| printed == line), "not printed, or not in this order: {line}");
    }
}

#[test]
fn the_excerpt_of_the_cache_table_is_real() {
    let printed = dsv2("kv-cache --preset v2", Path::new("."));
    let mut real = printed.lines();
    for line in shown("cargo run --release -- kv-cache --preset v2").into_iter().filter(|line| *line != "...") {
        assert!(real.any(|printed| printed == line), "not printed, or not in this order: {line}");
    }
}
