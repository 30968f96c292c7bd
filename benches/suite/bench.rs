//! What all parts share: criterion, the results, and how long a sample may take.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, Throughput};
use dsv2_bench_report::{Better, Machine, Measurement, NotRun, Plot, Results, Run, Table};
use regex::Regex;

use crate::cache::bytes::Bytes;
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
    sizes: Criterion<Bytes>,
    filter: Filter,
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
        // A size is the same each time, so criterion's samples need no time; in its quick mode it takes the first that lasts
        // longer than asked for. Its plots would show the size as a bell (it widens what has no spread by 1 %); a folder of
        // its own keeps the index of the other report free of pages that are not there.
        let sizes = Criterion::default()
            .output_directory(&target.join("bench").join("criterion-bytes"))
            .sample_size(10)
            .nresamples(1001)
            .warm_up_time(Duration::from_nanos(1))
            .measurement_time(if profile == Profile::Quick {
                Duration::from_nanos(1)
            } else {
                Duration::from_millis(1)
            })
            .configure_from_args()
            .without_plots()
            .with_measurement(Bytes);
        Bench {
            criterion,
            sizes,
            filter: Filter::from_args(),
            profile,
            control: Control::new(),
            begun: Instant::now(),
            run,
        }
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
        self.keep_seconds(format!("{group}/{name}"), seconds, samples);
        Some(seconds)
    }

    /// The same for a routine whose first call sets things up. It is called once before criterion sees it, which would
    /// otherwise take the setup for the time of an iteration, and make do with very few of them.
    pub fn time_after_setup(
        &mut self,
        group: &str,
        name: &str,
        work: Option<Throughput>,
        mut routine: impl FnMut(u64) -> Duration,
    ) -> Option<Seconds> {
        if self.wants(&format!("{group}/{name}")) {
            routine(1);
        }
        self.time(group, name, work, routine)
    }

    /// The same for what takes too long for criterion's ten samples: `routine` says how long one iteration took, and is
    /// called `rounds` times. The interval is the least and the most.
    pub fn time_few(
        &mut self,
        group: &str,
        name: &str,
        rounds: usize,
        mut routine: impl FnMut() -> Duration,
    ) -> Option<Seconds> {
        let id = format!("{group}/{name}");
        if rounds == 0 || !self.wants(&id) {
            return None;
        }
        let mut times: Vec<f64> = (0..rounds).map(|_| routine().as_secs_f64()).collect();
        times.sort_by(f64::total_cmp);
        let (low, high) = (times[0], times[rounds - 1]);
        let seconds = Seconds { median: (times[(rounds - 1) / 2] + times[rounds / 2]) / 2.0, low, high };
        println!("{id}\n{:24}time:   [{low:.4} s {:.4} s {high:.4} s] ({rounds} times)", "", seconds.median);
        self.keep_seconds(id, seconds, rounds);
        Some(seconds)
    }

    fn keep_seconds(&mut self, id: String, seconds: Seconds, samples: usize) {
        let Seconds { median: value, low, high } = seconds;
        let (unit, better) = ("s".into(), Better::Less);
        self.keep(Measurement { id, unit, better, value, low, high, samples, exact: false });
    }

    /// Measures bytes: `fill` makes what takes them, and says how many they are. It is done once, and what was found is
    /// criterion's every sample: bytes are counted, and a second count would be the same. Of the id as for times; `tokens`
    /// is what the bytes hold. None if the command line does not want it.
    pub fn bytes(&mut self, group: &str, name: &str, tokens: u64, mut fill: impl FnMut() -> u64) -> Option<u64> {
        let folder = target_folder().join("bench").join("criterion-bytes").join(group.replace('/', "_")).join(name);
        // The gate compares exact numbers; criterion's test needs some spread.
        let _ = fs::remove_dir_all(folder);
        let mut measured = None;
        let mut benchmarks = self.sizes.benchmark_group(group);
        benchmarks.throughput(Throughput::Elements(tokens)).bench_function(name, |bencher| {
            let bytes = *measured.get_or_insert_with(&mut fill);
            bencher.iter_custom(|iterations| iterations as f64 * bytes as f64);
        });
        benchmarks.finish();
        let bytes = measured?;
        self.run.measurements.push(Measurement::exact(format!("{group}/{name}"), "B", Better::Less, bytes as f64));
        Some(bytes)
    }

    /// Whether the command line wants what is measured in another way under this id.
    pub fn wants(&self, id: &str) -> bool {
        match &self.filter {
            Filter::All => true,
            Filter::Regex(regex) => regex.is_match(id),
            Filter::Exactly(wanted) => id == wanted,
            Filter::Nothing => false,
        }
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
            "\n{}: the results; `cargo run --release -p dsv2-bench-report -- report {0}` makes a report of them",
            path.display()
        );
        Ok(())
    }
}

/// Which ids the command line wants: the same rule as criterion's, which it does not tell.
enum Filter {
    All,
    Regex(Regex),
    Exactly(String),
    /// It only lists benchmarks or tries them, or runs criterion under a profiler.
    Nothing,
}

impl Filter {
    /// Options of criterion's command line that take the next argument as their value.
    #[rustfmt::skip]
    const WITH_VALUE: [&str; 18] = [
        "-c", "--color", "-s", "--save-baseline", "-b", "--baseline", "--baseline-lenient", "--load-baseline",
        "--format", "--sample-size", "--warm-up-time", "--measurement-time", "--nresamples", "--noise-threshold",
        "--confidence-level", "--significance-level", "--output-format", "--plotting-backend",
    ];

    fn from_args() -> Self {
        let (mut pattern, mut exact) = (None, false);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" | "--test" | "--profile-time" => return Filter::Nothing,
                "--exact" => exact = true,
                option if Filter::WITH_VALUE.contains(&option) => drop(arguments.next()),
                option if option.starts_with('-') => (),
                _ => pattern = Some(argument),
            }
        }
        match pattern {
            None => Filter::All,
            Some(id) if exact => Filter::Exactly(id),
            // Criterion has ended the program if it is no regular expression.
            Some(pattern) => Regex::new(&pattern).map_or(Filter::Nothing, Filter::Regex),
        }
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
pub fn target_folder() -> PathBuf {
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
