//! Every call to the system that `report` and `compare` make for their files fails in turn, and every large allocation; as
//! `tests/faults` asks of `dsv2`.

#[path = "../../../tests/faults/harness.rs"]
mod harness;

use std::path::Path;

use dsv2_bench_report::{Axis, Better, Measurement, Plot, Results, Run, Series};
use harness::{Subject, Written};

static BENCH_REPORT: Subject = Subject {
    program: env!("CARGO_BIN_EXE_dsv2-bench-report"),
    name: "dsv2-bench-report",
    commands: &[
        ("compare", "compare ROOM/results.json ROOM/results.json"),
        ("report", "report ROOM/results.json --output ROOM/out/report"),
        ("report_among_other_files", "report ROOM/results.json --output ROOM/out/among"),
    ],
    fill,
    agrees,
};

fn main() -> std::process::ExitCode {
    harness::main(&BENCH_REPORT)
}

/// Results with two plots.
fn fill(room: &Path) {
    let plot = |file: &str| {
        let axis = |label: &str| Axis { label: label.into(), log: false };
        let series = vec![Series { name: "s".into(), points: vec![(1.0, 2.0), (3.0, 4.0)] }];
        let (section, title, file) = ("cache".into(), "t".into(), file.into());
        Plot { section, title, file, x: axis("x"), y: axis("y"), series }
    };
    let measurements = vec![Measurement::exact("cache/mla", "B", Better::Less, 1.0)];
    let run = Run { noise: 0.05, measurements, plots: vec![plot("one"), plot("two")], ..Run::default() };
    Results::new(vec![run]).write(&room.join("results.json")).unwrap();
}

/// Each plot that REPORT.md shows is there, and none that it does not show.
fn agrees(written: &Written, _: i32) -> Result<(), String> {
    let Some((page, text)) = written.iter().find(|(name, _)| name.ends_with("/REPORT.md")) else { return Ok(()) };
    let text = String::from_utf8_lossy(text);
    let folder = page.trim_end_matches("REPORT.md");
    let plots: Vec<&str> =
        written.keys().filter_map(|name| name.strip_prefix(folder)).filter(|name| name.ends_with(".svg")).collect();
    let shown = plots.iter().filter(|plot| text.contains(&format!("]({plot})"))).count();
    match (shown, plots.len(), text.matches(".svg)").count()) {
        (2, 2, 2) => Ok(()),
        counts => Err(format!("shown of those that are there, there, shown: {counts:?}")),
    }
}
