//! The report, and files that make none.

use std::fs;

use dsv2_bench_report::{Axis, Better, Machine, Measurement, NotRun, Plot, Results, Run, Series, Table, report};

fn plot(file: &str, log: bool) -> Plot {
    let axis = |label: &str| Axis { label: label.into(), log };
    Plot {
        section: "cache".into(),
        title: "Bytes against tokens".into(),
        file: file.into(),
        x: axis("tokens"),
        y: axis("bytes"),
        series: vec![
            Series { name: "MHA".into(), points: vec![(0.0, 0.0), (1.0, 100.0), (1000.0, 1e5)] },
            Series { name: "MLA".into(), points: vec![(1.0, 2.0), (1000.0, 2000.0)] },
        ],
    }
}

fn results() -> Results {
    let text = |cells: &[&str]| cells.iter().map(|&cell| cell.into()).collect::<Vec<String>>();
    Results::new(vec![
        Run {
            command: "cargo bench".into(),
            commit: "0123456789".into(),
            date: "2026-01-02T03:04:05Z".into(),
            profile: "full".into(),
            machine: Machine { cpu: "A processor".into(), threads: 2, memory_gb: 25.3, gpu: None },
            seconds: 660.0,
            versions: [("rustc".into(), "1.95".into())].into(),
            noise: 0.07,
            measurements: vec![Measurement::exact("cache/mla", "B", Better::Less, 69_120.0)],
            tables: vec![
                Table {
                    section: "throughput".into(),
                    title: "Decode".into(),
                    columns: text(&["context", "tokens/s"]),
                    rows: vec![text(&["512", "17"]), text(&["a | b", "15"])],
                    notes: vec!["On 2 threads.".into()],
                },
                Table { section: "cache".into(), title: "Bytes".into(), columns: text(&["kind"]), ..Table::default() },
            ],
            plots: vec![plot("bytes", true)],
            not_run: vec![NotRun { what: "kernels on a GPU".into(), why: "no driver".into() }],
        },
        Run { command: "python peers/measure.py".into(), profile: "quick".into(), ..Run::default() },
    ])
}

#[test]
fn sections_come_in_order_and_say_what_made_them() {
    insta::assert_snapshot!(report::markdown(&results()));
}

#[test]
fn a_report_is_a_text_its_plots_and_all_numbers() {
    let folder = tempfile::tempdir().unwrap();
    report::write(&results(), folder.path()).unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("REPORT.md")).unwrap(), report::markdown(&results()));
    assert_eq!(Results::read(&folder.path().join("REPORT.json")).unwrap(), results());
    let svg = fs::read_to_string(folder.path().join("report-plots/bytes.svg")).unwrap();
    assert!(["<svg", "</svg>", "MHA", "MLA", "Bytes against tokens", "tokens"].iter().all(|word| svg.contains(word)));
}

/// How many points are marked in a plot.
fn marks(plot: Plot) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let name = plot.file.clone();
    report::write(&Results::new(vec![Run { plots: vec![plot], ..Run::default() }]), folder.path()).unwrap();
    fs::read_to_string(folder.path().join(format!("report-plots/{name}.svg"))).unwrap().matches("<circle").count()
}

#[test]
fn a_logarithmic_axis_leaves_out_what_it_cannot_show() {
    assert_eq!(marks(plot("plain", false)), 5);
    assert_eq!(marks(plot("log", true)), 4);
}

#[test]
fn a_plot_of_nothing_is_refused() {
    let mut empty = plot("empty", true);
    empty.series.truncate(1);
    empty.series[0].points.truncate(1);
    let folder = tempfile::tempdir().unwrap();
    let refused = report::write(&Results::new(vec![Run { plots: vec![empty], ..Run::default() }]), folder.path());
    let expected = "plot \"Bytes against tokens\": no point that can be drawn";
    assert_eq!(refused.unwrap_err().to_string(), expected);
    assert!(!folder.path().join("REPORT.md").exists());
}

#[test]
fn a_file_that_no_program_of_ours_wrote_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let good = serde_json::to_value(results()).unwrap();
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        json.to_string()
    };
    let measurement = good.pointer("/runs/0/measurements/0").unwrap().clone();
    for (text, says) in [
        ("{".into(), "expected results of benchmarks, found EOF"),
        ("[1]".into(), "expected results of benchmarks"),
        (changed("/format", 2.into()), "expected format 1, found 2"),
        (
            changed("/runs/0/measurements/0/value", 1.into()),
            "0 <= low <= value <= high of cache/mla, found 69120, 1, 69120",
        ),
        (changed("/runs/0/measurements", vec![measurement.clone(), measurement].into()), "once, found cache/mla twice"),
        (changed("/runs/0/noise", (-1).into()), "expected a noise of 0 or more, found -1"),
        (changed("/runs/0/tables/0/rows/1", vec!["1"].into()), "expected 2 cells in each row of \"Decode\", found 1"),
        (changed("/runs/0/plots/0/file", "../bytes".into()), "named by letters, digits, - and _, found \"../bytes\""),
        (changed("/runs/0/machine/cpu", 7.into()), "expected results of benchmarks, found invalid type: integer"),
    ] {
        fs::write(&path, &text).unwrap();
        let refused = Results::read(&path).unwrap_err().to_string();
        assert!(refused.contains(says) && refused.contains("results.json") && !refused.contains('\n'), "{refused}");
    }
    let missing = Results::read(&folder.path().join("none.json")).unwrap_err().to_string();
    assert!(missing.contains("none.json"), "{missing}");
}
