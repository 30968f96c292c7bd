//! The program, as a process: what it prints, what it writes, how it ends.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use dsv2_bench_report::{Axis, Better, Measurement, Plot, Results, Run, Series};
use tempfile::TempDir;

/// What came of a process.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// Its standard output; it ended with this status and without a word of error.
    #[track_caller]
    fn ends_with(self, status: i32) -> String {
        assert_eq!((self.code, &*self.stderr), (Some(status), ""), "stdout: {}", self.stdout);
        self.stdout
    }

    /// The request or a file is at fault: one line on stderr and nothing else. The line.
    #[track_caller]
    fn refused(self) -> String {
        assert_eq!((self.code, &*self.stdout), (Some(2), ""), "stderr: {}", self.stderr);
        let line = self.stderr.trim_end_matches('\n');
        let single = line.starts_with("dsv2-bench-report: ") && !line.chars().any(char::is_control);
        assert!(single, "no single line: {:?}", self.stderr);
        line.to_owned()
    }
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsv2-bench-report"));
    command.args(args);
    command
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A file of results with one time and one number of bytes.
fn results(folder: &TempDir, name: &str, seconds: f64, bytes: f64) -> PathBuf {
    let time = Measurement::sampled("decode", "s", Better::Less, [0.99 * seconds, seconds, 1.01 * seconds], 10);
    let measurements = vec![time, Measurement::exact("cache/mla", "B", Better::Less, bytes)];
    let path = folder.path().join(name);
    Results::new(vec![Run { noise: 0.05, measurements, ..Run::default() }]).write(&path).unwrap();
    path
}

#[test]
fn a_benchmark_that_is_slower_than_chance_allows_does_not_pass() {
    let folder = tempfile::tempdir().unwrap();
    let old = results(&folder, "old.json", 1.0, 69_120.0);
    let compare = |new: PathBuf| run(program(&["compare"]).arg(&old).arg(new));
    let within = compare(results(&folder, "within.json", 1.03, 69_120.0)).ends_with(0);
    assert_eq!(within.trim(), "2 measurements: 2 same, 0 better, 0 worse, 0 gone, 0 new, 0 not judged");
    let slower = compare(results(&folder, "slower.json", 1.3, 69_000.0)).ends_with(1);
    insta::assert_snapshot!(slower);
    compare(results(&folder, "larger.json", 1.0, 69_121.0)).ends_with(1);
    let all = run(program(&["compare", "--all"]).arg(&old).arg(&old)).ends_with(0);
    assert!(all.contains("decode") && all.contains("1.000"), "{all}");
}

#[test]
fn results_become_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let results = results(&folder, "results.json", 1.0, 69_120.0);
    let output = folder.path().join("report");
    let stdout = run(program(&["report"]).arg(&results).arg("--output").arg(&output)).ends_with(0);
    assert_eq!(stdout.trim(), output.join("REPORT.md").display().to_string());
    assert!(fs::read_to_string(output.join("REPORT.md")).unwrap().starts_with("# Benchmarks\n"));
}

#[test]
fn what_is_no_file_of_results_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = results(&folder, "good.json", 1.0, 1.0);
    let other = folder.path().join("other.json");
    Results::new(Vec::new()).write(&other).unwrap();
    let line = run(program(&["compare"]).arg(&good).arg(&other)).refused();
    assert!(line.contains("other.json: expected a measurement that") && line.ends_with("found none"), "{line}");
    fs::write(&other, "{}").unwrap();
    let line = run(program(&["report"]).arg(&other)).refused();
    assert!(line.contains("other.json: expected results of benchmarks"), "{line}");
    let line = run(program(&["report"]).arg(folder.path().join("a\tb.json"))).refused();
    assert!(line.contains("a\\tb.json"), "{line}");
}

#[test]
fn help_is_no_error_and_what_there_is_not_is_refused() {
    let help = run(&mut program(&["--help"])).ends_with(0);
    for command in ["report", "compare"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {help}");
        let help = run(&mut program(&[command, "--help"])).ends_with(0);
        assert!(help.contains(&format!("Usage: dsv2-bench-report {command}")), "{help}");
    }
    assert!(run(&mut program(&["--version"])).ends_with(0).starts_with("dsv2-bench-report "));
    let line = run(&mut program(&["compare", "one.json"])).refused();
    assert!(line.contains("<NEW>"), "{line}");
    let line = run(&mut program(&["print"])).refused();
    assert!(line.contains("'print'"), "{line}");
}

/// The system's pipes and devices have no end, and nobody writes to a pipe here.
#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let good = results(&folder, "good.json", 1.0, 1.0);
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (path, what) in [(pipe, "a pipe"), ("/dev/zero".into(), "a device"), (folder.path().into(), "a folder")] {
        let expected = format!("dsv2-bench-report: {}: expected a file, found {what}", path.display());
        assert_eq!(run(program(&["report"]).arg(&path)).refused(), expected);
        assert_eq!(run(program(&["compare"]).arg(&path).arg(&good)).refused(), expected);
        assert_eq!(run(program(&["compare"]).arg(&good).arg(&path)).refused(), expected);
    }
    let long = folder.path().join("long.json");
    fs::File::create(&long).unwrap().set_len((32 << 20) + 1).unwrap();
    let line = run(program(&["report"]).arg(&long)).refused();
    assert!(line.ends_with("long.json: expected at most 33554432 bytes, found more"), "{line}");
    let line = run(program(&["report"]).arg(folder.path().join("none.json"))).refused();
    assert!(line.contains("none.json: cannot read: "), "{line}");
}

/// Of any size: drawn, or refused by name. On some of these axes, finding places for numbers never ended.
#[test]
fn plots_of_numbers_of_any_size_end() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.json");
    let output = folder.path().join("report");
    let values = [0.0, 5e-324, 1e-310, 1e-29, 1.0, 1e29, 1.797e308];
    for (first, second, log) in
        values.iter().flat_map(|a| values.iter().flat_map(move |b| [(a, b, true), (a, b, false)]))
    {
        let axis = |label: &str| Axis { label: label.into(), log };
        let points = vec![(*first, *second), (*second, -*first)];
        let series = vec![Series { name: "s".into(), points }];
        let (x, y) = (axis("x"), axis("y"));
        let plot = Plot { section: "cache".into(), title: "t".into(), file: "f".into(), x, y, series };
        Results::new(vec![Run { plots: vec![plot], ..Run::default() }]).write(&results).unwrap();
        let ran = run(program(&["report"]).arg(&results).arg("--output").arg(&output));
        let sensible = |value: f64| value == 0.0 || (1e-30..=1e30).contains(&value);
        if sensible(*first) && sensible(*second) {
            let nothing = log && (*first == 0.0 || *second == 0.0);
            assert_eq!(ran.code, Some(if nothing { 2 } else { 0 }), "{first:e} {second:e} {log}: {}", ran.stderr);
        } else {
            let line = ran.refused();
            let expected = "results.json: expected points of 0 or of the size of 1e-30 to 1e30 in \"t\", found ";
            assert!(line.contains(expected), "{line}");
        }
    }
}
