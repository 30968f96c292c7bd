//! What all parts share: criterion, the results, and how long a sample may take.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, Throughput};
use dsv2_bench_report::{Better, Machine, Measurement, NotRun, Plot, Results, Run, Table};

use crate::ceilings::{Ceilings, Control};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Everything, up to half an hour.
    Full,
    /// `--quick`: the same kinds of things, smaller and with less certainty, in two minutes.
    Quick,
}

/// One run of this program.
pub struct Bench {
    criterion: Criterion,
    profile: Profile,
    control: Control,
    begun: Instant,
    run: Run,
}

/// The median of some samples, in seconds, and an interval that holds it.
#[derive(Clone, Copy, Debug)]
pub struct Seconds {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Bench {
    /// As the command line of criterion says.
    pub fn from_args() -> Self {
        let profile =
            if std::env::args().any(|argument| argument == "--quick") { Profile::Quick } else { Profile::Full };
        let target = target_folder();
        let run = Run {
            command: command(),
            commit: commit(),
            date: time::OffsetDateTime::from(SystemTime::now())
                .replace_nanosecond(0)
                .expect("0 nanoseconds")
                .format(&time::format_description::well_known::Rfc3339)
                .expect("a date"),
            profile: if profile == Profile::Quick { "quick" } else { "full" }.into(),
            machine: machine(),
            versions: BTreeMap::from([("rustc".into(), rustc())]),
            ..Run::default()
        };
        let criterion = Criterion::default()
            .output_directory(&target.join("criterion"))
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_millis(1500))
            .configure_from_args();
        Bench { criterion, profile, control: Control::new(), begun: Instant::now(), run }
    }

    /// How much is measured.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Says which part comes.
    pub fn begin(&self, part: &str) {
        eprintln!("\n== {part} (after {:.0} s)", self.begun.elapsed().as_secs_f64());
    }

    /// Measures seconds per iteration: `routine` is given a number of iterations and says how long they took. The id of
    /// the measurement is `group/name`; it may hold letters, digits and any of `=.-_`, the group `/` as well. None if
    /// the command line does not want it.
    ///
    /// `work` is what an iteration does, for criterion's rates: tokens, bytes.
    pub fn time(
        &mut self,
        group: &str,
        name: &str,
        work: Option<Throughput>,
        mut routine: impl FnMut(u64) -> Duration,
    ) -> Option<Seconds> {
        let folder = target_folder().join("criterion").join(group.replace('/', "_")).join(name).join("new");
        // What an earlier run has left must not pass for a result of this one.
        let _ = fs::remove_file(folder.join("estimates.json"));
        let mut benchmarks = self.criterion.benchmark_group(group);
        if let Some(work) = work {
            benchmarks.throughput(work);
        }
        benchmarks.bench_function(name, |bencher| bencher.iter_custom(&mut routine));
        benchmarks.finish();
        let (seconds, samples) = estimated(&folder)?;
        self.run.measurements.push(Measurement {
            id: format!("{group}/{name}"),
            unit: "s".into(),
            better: Better::Less,
            value: seconds.median,
            low: seconds.low,
            high: seconds.high,
            samples,
            exact: false,
        });
        Some(seconds)
    }

    /// Keeps a number that was measured in another way.
    pub fn keep(&mut self, measurement: Measurement) {
        self.run.measurements.push(measurement);
    }

    /// Adds a table to the report.
    pub fn table(&mut self, table: Table) {
        self.run.tables.push(table);
    }

    /// Adds a plot to the report, if there is a line in it.
    pub fn plot(&mut self, plot: Plot) {
        if plot.series.iter().any(|series| !series.points.is_empty()) {
            self.run.plots.push(plot);
        }
    }

    /// Says what cannot be measured here, and why.
    pub fn not_run(&mut self, what: &str, why: impl ToString) {
        let not_run = NotRun { what: what.into(), why: why.to_string() };
        eprintln!("not run: {}: {}", not_run.what, not_run.why);
        self.run.not_run.push(not_run);
    }

    /// Names the GPU that takes part.
    pub fn on_gpu(&mut self, name: String) {
        self.run.machine.gpu = Some(name);
    }

    /// Times the load that never changes.
    pub fn time_control(&mut self) {
        self.control.time();
    }

    /// The most that this machine did so far in this run.
    pub fn ceilings(&self) -> Ceilings {
        self.control.ceilings()
    }

    /// Writes the results and says where.
    pub fn finish(mut self) -> Result<(), Box<dyn std::error::Error>> {
        self.criterion.final_summary();
        if self.run.measurements.is_empty() {
            eprintln!("nothing was measured");
            return Ok(());
        }
        self.run.noise = self.control.noise();
        self.run.measurements.extend(self.control.measurements());
        self.run.tables.push(self.control.table());
        self.run.seconds = self.begun.elapsed().as_secs_f64();
        let folder = target_folder().join("bench");
        fs::create_dir_all(&folder)?;
        let path = folder.join("results.json");
        Results::new(vec![self.run]).write(&path)?;
        eprintln!(
            "\n{}: the results; `cargo run --release -- bench-report {0}` makes a report of them",
            path.display()
        );
        Ok(())
    }
}

/// What criterion has found, if it measured at all.
fn estimated(folder: &Path) -> Option<(Seconds, usize)> {
    let json =
        |name: &str| -> Option<serde_json::Value> { serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok() };
    let estimates = json("estimates.json")?;
    let samples = json("sample.json")?["times"].as_array()?.len();
    let median = &estimates["median"];
    let interval = &median["confidence_interval"];
    let seconds = |value: &serde_json::Value| value.as_f64().map(|nanoseconds| nanoseconds * 1e-9);
    let (median, low, high) =
        (seconds(&median["point_estimate"])?, seconds(&interval["lower_bound"])?, seconds(&interval["upper_bound"])?);
    // Of two samples, criterion's interval need not hold the median.
    Some((Seconds { median, low: low.min(median), high: high.max(median) }, samples))
}

/// The folder that cargo builds into, if this program is still in `<target>/release/deps`; or else its own.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("a program");
    let folder = program.parent().expect("a program in a folder");
    let of_cargo = folder.ends_with("release/deps").then(|| folder.ancestors().nth(2)).flatten();
    of_cargo.unwrap_or(folder).to_owned()
}

fn command() -> String {
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let arguments: Vec<String> = arguments.collect();
    if arguments.is_empty() { "cargo bench".into() } else { format!("cargo bench -- {}", arguments.join(" ")) }
}

/// From git, or where the program was carried elsewhere from the variable DSV2_COMMIT.
fn commit() -> String {
    if let Ok(commit) = std::env::var("DSV2_COMMIT") {
        return commit;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|text| !text.is_empty());
    if changed { hash + "+" } else { hash }
}

fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn machine() -> Machine {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing()
            .with_cpu(sysinfo::CpuRefreshKind::nothing())
            .with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
    );
    Machine {
        cpu: system.cpus().first().map_or_else(|| "unknown".into(), |cpu| cpu.brand().trim().to_owned()),
        threads: rayon::current_num_threads(),
        memory_gb: (system.total_memory() as f64 / 1e8).round() / 10.0,
        gpu: None,
    }
}
