//! The program with the fault in it: how it is run, and what is asked of it. For every program of the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

const EINTR: i32 = 4;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const ENOSPC: i32 = 28;
/// No error: half of what was asked for is done.
const SHORT: i32 = 0;

/// The calls, and how they fail.
const FAULTS: [(&str, &[i32]); 8] = [
    ("open", &[EIO, EINTR]),
    ("read", &[EIO, EINTR, SHORT]),
    ("map", &[ENOMEM]),
    ("write", &[ENOSPC, EIO, EINTR, SHORT]),
    ("rename", &[EIO]),
    ("sync", &[EIO]),
    ("mkdir", &[ENOSPC]),
    ("alloc", &[ENOMEM]),
];

/// Allocations from this size on may fail, in bytes.
const LARGE: &str = "4096";

/// How many of the calls of a kind are tried: each of the first, then fewer and fewer.
const MOST: usize = 12;

const PATIENCE: Duration = Duration::from_secs(60);

/// A program, and what it is tried with.
pub struct Subject {
    /// Where it is.
    pub program: &'static str,
    /// What it calls itself.
    pub name: &'static str,
    /// A name and a command line for each run; `ROOM` stands for the folder around everything. Output lies in `ROOM/out`.
    pub commands: &'static [(&'static str, &'static str)],
    /// Makes the files that the commands read.
    pub fill: fn(&Path),
    /// What else is asked of what was written by a run that ended with this status.
    pub agrees: fn(&Written, i32) -> Result<(), String>,
}

/// Runs every command with every fault: a test target's `main`.
pub fn main(subject: &'static Subject) -> std::process::ExitCode {
    let built = injector(subject);
    let mut trials = Vec::new();
    for &(name, line) in subject.commands {
        let library = built.as_ref().ok().map(|(_, path)| path.clone());
        let trial = Trial::test(format!("{name}_survives_every_fault"), move || match library {
            Some(library) => survives(subject, &library, line),
            None => Ok(()),
        });
        trials.push(match &built {
            Ok(_) => trial,
            Err(reason) => trial.with_kind(format!("not run: {reason}")).with_ignored_flag(true),
        });
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Builds the library, and sees that it is loaded and heard.
fn injector(subject: &'static Subject) -> Result<(TempDir, PathBuf), String> {
    if !cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")) {
        return Err("it takes Linux with glibc".into());
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let library = folder.path().join("libinjector.so");
    // The test may lie in any folder.
    let source = folder.path().join("injector.rs");
    fs::write(&source, include_str!("injector.rs")).map_err(|error| error.to_string())?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-C", "panic=abort", "-o"])
        .arg(&library)
        .arg(&source)
        .output()
        .map_err(|error| format!("rustc: {error}"))?;
    if !built.status.success() {
        return Err("rustc cannot build it".into());
    }
    let room = Room::new(subject);
    match room.run(subject.commands[0].1, Some((&library, "open", 1, EIO))) {
        (_, true) => Ok((folder, library)),
        (_, false) => Err("it is not heard".into()),
    }
}

fn survives(subject: &'static Subject, library: &Path, line: &str) -> Result<(), Failed> {
    let room = Room::new(subject);
    let (undisturbed, _) = room.run(line, None);
    let whole = room.written();
    let mut wrong = Vec::new();
    let (mut tried, mut kinds) = (0, Vec::new());
    for (call, errors) in FAULTS {
        for &error in errors {
            let (mut nth, mut tries) = (1, 0);
            while tries < MOST {
                room.clear();
                let (ran, happened) = room.run(line, Some((library, call, nth, error)));
                if !happened {
                    break;
                }
                if let Err(what) = held(subject, &room, &undisturbed, &whole, &ran, error) {
                    wrong.push(format!("{call} {nth} fails with {error}: {what}"));
                }
                (nth, tries, tried) = (nth + 1 + nth / 4, tries + 1, tried + 1);
            }
            kinds.push(format!("{tries} {call} {error}"));
        }
    }
    println!("{tried} faults ({}): {line}", kinds.join(", "));
    if wrong.is_empty() && tried > 0 { Ok(()) } else { Err(format!("{tried} faults\n{}", wrong.join("\n")).into()) }
}

/// What is asked of a run in which a call failed.
fn held(
    subject: &Subject,
    room: &Room,
    undisturbed: &Output,
    whole: &Written,
    ran: &Output,
    error: i32,
) -> Result<(), String> {
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    let code = ran.status.code().ok_or_else(|| format!("{}: {said}", ran.status))?;
    let written = room.written();
    if said.contains("panicked") || !(code == 2 || Some(code) == undisturbed.status.code()) {
        return Err(format!("status {code}: {said}"));
    }
    if let Some(hidden) = written.keys().find(|name| name.contains("/.")) {
        return Err(format!("{hidden} is left"));
    }
    if code != 2 {
        return if written.keys().eq(whole.keys()) {
            (subject.agrees)(&written, code)
        } else {
            Err("not whole".into())
        };
    }
    if error == EINTR || error == SHORT {
        return Err(format!("it gives up: {said}"));
    }
    // How far it is comes before what is wrong.
    let line = said.trim_end().lines().last().unwrap_or_default();
    let names =
        line.contains(&*room.path().to_string_lossy()) || line.starts_with(&format!("{}: memory: ", subject.name));
    if !line.starts_with(&format!("{}: ", subject.name)) || !names {
        return Err(format!("no line that names the file: {said}"));
    }
    if !ran.stdout.is_empty() {
        return Err("a verdict and a refusal".into());
    }
    if written.is_empty() || written.keys().eq(whole.keys()) {
        Ok(())
    } else {
        Err(format!("{line}: half-written: {:?}", written.keys()))
    }
}

/// What was written to the folder for output, by its place in it. `among` is a folder with a file of somebody else's.
pub type Written = BTreeMap<String, Vec<u8>>;

/// A folder with every file that the commands read.
struct Room {
    subject: &'static Subject,
    dir: TempDir,
}

impl Room {
    fn new(subject: &'static Subject) -> Self {
        let room = Room { subject, dir: tempfile::tempdir().unwrap() };
        (subject.fill)(room.path());
        room.clear();
        room
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn clear(&self) {
        let out = self.path().join("out");
        let _ = fs::remove_dir_all(&out);
        fs::create_dir_all(out.join("among")).unwrap();
        fs::write(out.join("among/others"), "").unwrap();
    }

    fn written(&self) -> Written {
        fn below(folder: &Path, shown: &str, written: &mut Written) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let shown = format!("{shown}/{}", path.file_name().unwrap().to_string_lossy());
                if path.is_dir() {
                    below(&path, &shown, written)
                } else {
                    drop(written.insert(shown, fs::read(path).unwrap()))
                }
            }
        }
        let mut written = Written::new();
        below(&self.path().join("out"), "", &mut written);
        written.remove("/among/others").expect("it is nobody's to remove");
        written
    }

    /// Runs a command, with the n-th call of a kind failing; whether there was such a call.
    fn run(&self, line: &str, fault: Option<(&Path, &str, usize, i32)>) -> (Output, bool) {
        let room = self.path().to_string_lossy();
        let mark = self.path().join("mark");
        let mut command = Command::new(self.subject.program);
        command.args(line.split(' ').map(|word| word.replace("ROOM", &room)));
        if let Some((library, call, nth, error)) = fault {
            command.env("LD_PRELOAD", library).env("FAULT_BELOW", &*room).env("FAULT_CALL", call);
            command.env("FAULT_NTH", nth.to_string()).env("FAULT_ERROR", error.to_string());
            command.env("FAULT_SIZE", LARGE).env("FAULT_MARK", &mark);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        (child.wait_with_output().unwrap(), fs::remove_file(mark).is_ok())
    }
}
