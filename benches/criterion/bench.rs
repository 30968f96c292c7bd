//! What all parts share: criterion, the results, and how long a sample may take.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, Throughput};
use dsv2_bench_report::{Better, Measurement, NotRun, Results, Run, Table};
use regex::Regex;

use crate::ceilings::{Ceilings, Control};
use crate::provenance::{command, commit, machine, output_of};

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
    wanted: Regex,
    profile: Profile,
    control: Control,
    begun: Instant,
    part: &'static str,
    run: Run,
}

impl Bench {
    /// As the command line of criterion says.
    pub fn from_args() -> Self {
        let profile =
            if std::env::args().any(|argument| argument == "--quick") { Profile::Quick } else { Profile::Full };
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
            versions: output_of("rustc", &["--version"]).map(|version| ("rustc".into(), version)).into_iter().collect(),
            ..Run::default()
        };
        let criterion = Criterion::default()
            .output_directory(&criterion_folder())
            .sample_size(10)
            .without_plots()
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_millis(1500))
            .configure_from_args();
        Bench {
            criterion,
            wanted: wanted_ids(),
            profile,
            control: Control::new(),
            begun: Instant::now(),
            part: "",
            run,
        }
    }

    /// How much is measured.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Says which part comes: a section of the report.
    pub fn begin(&mut self, part: &'static str) {
        self.part = part;
        eprintln!("\n== {part} (after {:.0} s)", self.begun.elapsed().as_secs_f64());
    }

    /// The median of seconds per iteration: `routine` is given a number of iterations and says how long they took. The id of
    /// the measurement is `group/name`; it may hold letters, digits and any of `=.-_`, the group `/` as well. None if
    /// the command line does not want it.
    ///
    /// The first call may set things up: it is made before criterion sees any, which would otherwise take the setup for the
    /// time of an iteration, and make do with very few of them. `work` is what an iteration does, for criterion's rates:
    /// tokens, bytes.
    pub fn time(
        &mut self,
        group: &str,
        name: &str,
        work: Throughput,
        mut routine: impl FnMut(u64) -> Duration,
    ) -> Option<f64> {
        if self.wants(&format!("{group}/{name}")) {
            routine(1);
        }
        let folder = criterion_folder().join(group.replace('/', "_")).join(name).join("new");
        // What an earlier run has left must not pass for a result of this one.
        let _ = fs::remove_file(folder.join("estimates.json"));
        let mut benchmarks = self.criterion.benchmark_group(group);
        benchmarks.throughput(work).bench_function(name, |bencher| bencher.iter_custom(&mut routine));
        benchmarks.finish();
        let (seconds, samples) = estimated(&folder)?;
        Some(self.keep_seconds(format!("{group}/{name}"), seconds, samples))
    }

    /// The same for what takes too long for criterion's ten samples: `routine` says how long one iteration took, and is
    /// called `rounds` times. The interval is the least and the most.
    pub fn time_few(
        &mut self,
        group: &str,
        name: &str,
        rounds: usize,
        mut routine: impl FnMut() -> Duration,
    ) -> Option<f64> {
        let id = format!("{group}/{name}");
        if rounds == 0 || !self.wants(&id) {
            return None;
        }
        let mut times: Vec<f64> = (0..rounds).map(|_| routine().as_secs_f64()).collect();
        times.sort_by(f64::total_cmp);
        let (low, median, high) = (times[0], (times[(rounds - 1) / 2] + times[rounds / 2]) / 2.0, times[rounds - 1]);
        println!("{id}\n{:24}time:   [{low:.4} s {median:.4} s {high:.4} s] ({rounds} times)", "");
        Some(self.keep_seconds(id, [low, median, high], rounds))
    }

    /// Keeps the ends of an interval and the median in it, which it returns.
    fn keep_seconds(&mut self, id: String, seconds: [f64; 3], samples: usize) -> f64 {
        self.keep(Measurement::sampled(id, "s", Better::Less, seconds, samples));
        seconds[1]
    }

    /// Measures bytes: `fill` makes what takes them, and says how many they are. They are counted, so once is enough. None
    /// if the command line does not want it.
    pub fn bytes(&mut self, id: String, fill: impl FnOnce() -> u64) -> Option<u64> {
        if !self.wants(&id) {
            return None;
        }
        let bytes = fill();
        println!("{id}\n{:24}bytes:  {bytes}", "");
        self.keep(Measurement::exact(id, "B", Better::Less, bytes as f64));
        Some(bytes)
    }

    /// Whether the command line wants what is measured in another way under this id.
    pub fn wants(&self, id: &str) -> bool {
        self.wanted.is_match(id)
    }

    /// Keeps a number that was measured in another way.
    pub fn keep(&mut self, measurement: Measurement) {
        self.run.measurements.push(measurement);
    }

    /// Adds a table to this part of the report, unless it is empty. The heads of the columns are divided by `|`.
    pub fn table(&mut self, title: &str, columns: &str, rows: Vec<Vec<String>>, notes: &[&str]) {
        if !rows.is_empty() {
            let columns = columns.split('|').map(|column| column.trim().to_owned()).collect();
            let notes = notes.iter().map(|&note| note.to_owned()).collect();
            self.run.tables.push(Table { section: self.part.into(), title: title.into(), columns, rows, notes });
        }
    }

    /// Keeps the measurements of this machine's loads, or those of a GPU, with a table of them.
    pub fn loads(&mut self, title: &str, measurements: &[Measurement], note: &str) {
        let row = |measurement: &Measurement| {
            let Measurement { id, unit, value, low, high, samples, .. } = measurement;
            let scaled = |value: &f64| match unit.as_str() {
                "s" => format!("{:.2} µs", value * 1e6),
                unit => format!("{:.1} G{unit}", value / 1e9),
            };
            vec![id.clone(), scaled(value), scaled(low), scaled(high), samples.to_string()]
        };
        self.table(title, "load | median | least | most | times", measurements.iter().map(row).collect(), &[note]);
        measurements.iter().for_each(|measurement| self.keep(measurement.clone()));
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
        if self.run.measurements.is_empty() {
            eprintln!("nothing was measured");
            return Ok(());
        }
        self.part = "machine";
        self.run.noise = self.control.noise();
        let (measurements, note) = self.control.measurements();
        self.loads("Ceilings, timed between all parts of the run", &measurements, &note);
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

/// Options of criterion's command line that take the next argument as their value.
#[rustfmt::skip]
const WITH_VALUE: [&str; 18] = [
    "-c", "--color", "-s", "--save-baseline", "-b", "--baseline", "--baseline-lenient", "--load-baseline",
    "--format", "--sample-size", "--warm-up-time", "--measurement-time", "--nresamples", "--noise-threshold",
    "--confidence-level", "--significance-level", "--output-format", "--plotting-backend",
];

/// Which ids the command line wants: the same rule as criterion's, which it does not tell.
fn wanted_ids() -> Regex {
    let (mut pattern, mut exact) = (String::new(), false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" | "--test" | "--profile-time" => {
                // It only lists benchmarks or tries them, or runs criterion under a profiler: no id is like this.
                (pattern, exact) = ("a^".into(), false);
                break;
            }
            "--exact" => exact = true,
            option if WITH_VALUE.contains(&option) => drop(arguments.next()),
            option if option.starts_with('-') => (),
            _ => pattern = argument,
        }
    }
    if exact && !pattern.is_empty() {
        pattern = format!("^{}$", regex::escape(&pattern));
    }
    Regex::new(&pattern).expect("criterion has refused what is no regular expression")
}

/// What criterion has found, if it measured at all: the median between the ends of its interval, and of how many samples.
fn estimated(folder: &Path) -> Option<([f64; 3], usize)> {
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
    Some(([low.min(median), median, high.max(median)], samples))
}

/// The folder that cargo builds into, if this program is still in `<target>/release/deps`; or else its own.
pub fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("a program");
    let folder = program.parent().expect("a program in a folder");
    let of_cargo = folder.ends_with("release/deps").then(|| folder.ancestors().nth(2)).flatten();
    of_cargo.unwrap_or(folder).to_owned()
}

/// Where criterion keeps what it measured, for its own comparisons.
fn criterion_folder() -> PathBuf {
    target_folder().join("criterion")
}
