//! Damages every kind of file that the program reads, and runs the commands that read it.
//!
//! What may not be: a panic, an abort, more than ten seconds, a half-written file, a refusal that does not say what it is
//! about, a line of more than 1,000 characters, a character that a terminal would obey. Most runs are calls within a process
//! that may be lost; one in fifty is a process of its own. Each run is a function of its seed: `--seed N --runs 1` does one
//! again.

mod damage;
mod held;
mod place;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use clap::Parser;
use dsv2_bench_report::{Results, compare, report};
use fastrand::Rng;
use held::Ran;
use place::{Place, TARGETS};

/// The damage of files, and what comes of it.
#[derive(Clone, Parser)]
struct Arguments {
    /// The seed of the first run; those after it have the seeds after it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many runs; as many as there is time for, if --seconds says so
    #[arg(long, default_value_t = 10_000)]
    runs: u64,
    /// No batch of runs is begun after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// How many processes at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Do the runs here, and say how far it is (what the program asks of its own processes)
    #[arg(long, hide = true)]
    here: bool,
}

/// How many runs a process does before another takes its place.
const BATCH: u64 = 250;

/// After which time a run is a finding, and after which a process is ended.
const LONGEST: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(40);

/// What a process may take of memory, in KiB.
const MEMORY: u64 = 6 << 20;

thread_local! {
    /// Where this thread panicked last, and with which words.
    static PANICKED: RefCell<String> = const { RefCell::new(String::new()) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.here {
        return match work(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("WRONG the files cannot be laid out: {error}");
                ExitCode::from(2)
            }
        };
    }
    let (start, next, findings) = (Instant::now(), AtomicU64::new(0), Mutex::new(Vec::new()));
    let done = AtomicU64::new(0);
    let in_time = || arguments.seconds.is_none_or(|seconds| start.elapsed() < Duration::from_secs(seconds));
    let runs = if arguments.seconds.is_some() { u64::MAX } else { arguments.runs };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while in_time() {
                    let from = next.fetch_add(BATCH, Relaxed);
                    if from >= runs {
                        break;
                    }
                    let end = from.saturating_add(BATCH).min(runs);
                    supervise(&arguments, from, end, &done, &findings);
                }
            });
        }
    });
    let findings = findings.into_inner().unwrap_or_default();
    for finding in &findings {
        println!("{finding}");
    }
    let (done, seconds) = (done.into_inner(), start.elapsed().as_secs_f64());
    println!("{done} runs on damaged files in {seconds:.0} s: {} findings", findings.len());
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Does the runs from `from` to `end` in processes that may be lost.
fn supervise(arguments: &Arguments, mut from: u64, end: u64, done: &AtomicU64, findings: &Mutex<Vec<String>>) {
    let find = |what: String| {
        eprintln!("{what}");
        findings.lock().expect("no thread panics with it").push(what);
    };
    while from < end {
        let (seed, runs) = (arguments.seed + from, end - from);
        let program = std::env::current_exe().expect("it is running");
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" --here --seed {seed} --runs {runs}")])
            .arg(program)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process can be made");
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut at = None;
        let lost = loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => match line.strip_prefix("at ") {
                    Some(now) => {
                        at = now
                            .split(' ')
                            .next()
                            .and_then(|seed| seed.parse::<u64>().ok())
                            .map(|seed| (seed, now.to_owned()));
                        done.fetch_add(1, Relaxed);
                    }
                    None => find(line),
                },
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let _ = child.kill();
                    break Some("it hangs".to_owned());
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break None,
            }
        };
        let status = child.wait().expect("it is ours");
        if lost.is_none() && status.success() {
            return;
        }
        let what = lost.unwrap_or_else(|| format!("the process is lost: {status}"));
        let Some((seed, now)) = at else { return find(format!("WRONG before the first run: {what}")) };
        find(format!("WRONG at {now}: {what}"));
        from = seed - arguments.seed + 1;
    }
}

/// Does all runs here.
fn work(arguments: &Arguments) -> std::io::Result<()> {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // The end of the path says which crate's line it is, on every machine.
        let names: Vec<&str> = place.rsplit('/').take(4).collect();
        let place = names.into_iter().rev().collect::<Vec<_>>().join("/");
        PANICKED
            .with_borrow_mut(|panicked| *panicked = format!("{place}: {}", panic.payload_as_str().unwrap_or_default()));
    }));
    let place = Place::new()?;
    let mut stdout = std::io::stdout();
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.runs) {
        let mut rng = Rng::with_seed(seed);
        let target = &TARGETS[rng.usize(..TARGETS.len())];
        let command = target.commands[rng.usize(..target.commands.len())];
        let what = format!("{seed} {} {}", target.file, command.split(' ').next().unwrap_or_default());
        writeln!(stdout, "at {what}")?;
        stdout.flush()?;
        place.clear()?;
        let good = place.damage(target, &mut rng)?;
        let start = Instant::now();
        // `generate` prints as it goes, which within this process would be among its own lines.
        let alone = rng.usize(..50) == 0 || command.starts_with("generate");
        let ran = std::panic::catch_unwind(|| if alone { process(&place, command) } else { call(&place, command) });
        let wrong = match ran {
            Err(_) => Some(format!("it panics at {}", PANICKED.take())),
            Ok(_) if start.elapsed() > LONGEST => Some(format!("{:.0} s", start.elapsed().as_secs_f64())),
            Ok(ran) => held::wrong(&place, target, command, &ran)?,
        };
        if let Some(wrong) = wrong {
            writeln!(stdout, "WRONG at {what}: {wrong}")?;
        }
        place.mend(target, &good)?;
    }
    Ok(())
}

/// The command within this process.
fn call(place: &Place, command: &str) -> Ran {
    let words = place.words(command);
    let (name, rest) = words.split_first().expect("a command has a name");
    let done = match name.as_str() {
        "bench-report" => Results::read(Path::new(&rest[0]))
            .and_then(|results| report::write(&results, Path::new(&rest[1])))
            .map(|()| 0),
        "bench-compare" => Results::read(Path::new(&rest[0])).and_then(|new| {
            let changes = compare::compare(&Results::read(Path::new(&rest[1]))?, &new);
            Ok(u8::from(changes.iter().any(compare::Change::is_regression)))
        }),
        _ => {
            let ended = dsv2::cli::run(["dsv2".to_owned()].into_iter().chain(words));
            let said = ended.output.unwrap_or_else(|line| line).to_string();
            return Ran { status: ended.status, said };
        }
    };
    match done {
        Ok(status) => Ran { status, said: String::new() },
        Err(error) => Ran { status: 2, said: error.to_string() },
    }
}

/// The command as a process: the programs lie beside this one.
fn process(place: &Place, command: &str) -> Ran {
    let mut words = place.words(command);
    let here = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    let program: PathBuf = match words[0].as_str() {
        "bench-report" => {
            words = vec!["report".into(), words[1].clone(), "--output".into(), words[2].clone()];
            here.join("dsv2-bench-report")
        }
        "bench-compare" => {
            words = vec!["compare".into(), words[2].clone(), words[1].clone()];
            here.join("dsv2-bench-report")
        }
        _ => here.join("dsv2"),
    };
    match Command::new(&program).args(&words).output() {
        Ok(output) => {
            let refused = output.status.code() == Some(2);
            let said = if refused { output.stderr } else { output.stdout };
            let said = String::from_utf8_lossy(&said);
            // How far it is comes before what is wrong.
            let said = if refused { said.trim_end().lines().last().unwrap_or_default() } else { &said };
            Ran { status: output.status.code().map_or(u8::MAX, |code| code as u8), said: said.to_owned() }
        }
        Err(error) => Ran { status: u8::MAX, said: format!("{}: {error}; build it first", program.display()) },
    }
}
