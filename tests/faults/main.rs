//! Every call to the system that a command makes for its files fails in turn, and every large allocation: the n-th open, read,
//! map, write, rename and sync, by a library that stands in front of the C library's ([`injector.rs`](injector.rs)).
//!
//! Whatever fails: no panic, no abort, no hang; a verdict as always, or status 2 and one line that names the file; and what
//! is written is whole, or not there.
//!
//! Where the library cannot be built or loaded, the tests are shown as ignored.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");

/// The commands; `ROOM` stands for the folder around everything. Their output lies in `ROOM/out`.
const COMMANDS: [(&str, &str); 8] = [
    ("trace", "trace --model ROOM/model --inputs ROOM/inputs.safetensors --output ROOM/out/trace.safetensors"),
    ("check", "check --model ROOM/model --inputs ROOM/inputs.safetensors --candidate ROOM/dump.safetensors"),
    (
        "check_with_report",
        "check --model ROOM/model --inputs ROOM/inputs.npz --candidate ROOM/dump.pt --report ROOM/out/report",
    ),
    ("kv_cache", "kv-cache --model ROOM/model"),
    (
        "verify",
        "verify --golden ROOM/golden --backend reference --dtype f32 --waivers ROOM/waivers.toml --report ROOM/out/report",
    ),
    ("materialize", "materialize one-token ROOM/out/case --golden ROOM/golden"),
    ("mutants", "mutants --golden ROOM/golden --mutant resid_no_attention --dtype f32"),
    (
        "trace_of_shards",
        "trace --model ROOM/sharded --inputs ROOM/inputs.safetensors --output ROOM/out/trace.safetensors",
    ),
];

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

const WAIVERS: &str =
    "[[waiver]]\nimplementation = \"none\"\ncase = \"*\"\nreason = \"a\"\nlink = \"b\"\nexpires = 2099-01-31\n";

fn main() -> std::process::ExitCode {
    let built = injector();
    let mut trials = Vec::new();
    for (name, line) in COMMANDS {
        let library = built.as_ref().ok().map(|(_, path)| path.clone());
        let trial = Trial::test(format!("{name}_survives_every_fault"), move || match library {
            Some(library) => survives(&library, line),
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
fn injector() -> Result<(TempDir, PathBuf), String> {
    if !cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")) {
        return Err("it takes Linux with glibc".into());
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let library = folder.path().join("libinjector.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/injector.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-C", "panic=abort", source, "-o"])
        .arg(&library)
        .output()
        .map_err(|error| format!("rustc: {error}"))?;
    if !built.status.success() {
        return Err("rustc cannot build it".into());
    }
    let room = Room::new();
    match room.run(COMMANDS[3].1, Some((&library, "open", 1, EIO))) {
        (_, true) => Ok((folder, library)),
        (_, false) => Err("it is not heard".into()),
    }
}

fn survives(library: &Path, line: &str) -> Result<(), Failed> {
    let room = Room::new();
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
                if let Err(what) = held(&room, &undisturbed, &whole, &ran, error) {
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
fn held(room: &Room, undisturbed: &Output, whole: &Written, ran: &Output, error: i32) -> Result<(), String> {
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
            contradicts_nothing(&written, code)
        } else {
            Err("not whole".into())
        };
    }
    if error == EINTR || error == SHORT {
        return Err(format!("it gives up: {said}"));
    }
    // How far it is comes before what is wrong.
    let line = said.trim_end().lines().last().unwrap_or_default();
    let names = line.contains(&*room.path().to_string_lossy()) || line.starts_with("dsv2: memory: ");
    if !line.starts_with("dsv2: ") || !names {
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

/// A report says the same in all of its files.
fn contradicts_nothing(written: &Written, code: i32) -> Result<(), String> {
    let Some(json) = written.get("/report/report.json") else { return Ok(()) };
    let passes = |bytes: &[u8], word: &str| String::from_utf8_lossy(bytes).contains(word);
    let all = [
        code == 0,
        passes(json, "\n  \"verdict\": \"pass\""),
        passes(&written["/report/report.html"], "banner pass"),
        !passes(&written["/report/junit.xml"], "<failure"),
    ];
    if all.iter().all(|passes| *passes == all[0]) {
        Ok(())
    } else {
        Err(format!("a report that contradicts itself: {all:?}"))
    }
}

/// What lies in the folder for output, by its place in it.
type Written = BTreeMap<String, Vec<u8>>;

/// A folder with every file that the commands read.
struct Room {
    dir: TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Room { dir: tempfile::tempdir().unwrap() };
        let copy = |from: &str, to: &str| {
            let to = room.path().join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(Path::new(GOLDEN).join(from), to).unwrap();
        };
        for name in ["config.json", "model.safetensors"] {
            copy(&format!("hostile/good/{name}"), &format!("model/{name}"));
        }
        for name in ["inputs.safetensors", "dump.safetensors"] {
            copy(&format!("hostile/good/{name}"), name);
        }
        copy("files/inputs.npz", "inputs.npz");
        copy("files/dump.pt", "dump.pt");
        for name in ["case.json", "inputs.safetensors", "expected.safetensors"] {
            copy(&format!("cases/one-token/{name}"), &format!("golden/one-token/{name}"));
        }
        let sharded = "cases/checkpoint-sharded/checkpoint";
        for entry in fs::read_dir(Path::new(GOLDEN).join(sharded)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            copy(&format!("{sharded}/{name}"), &format!("sharded/{name}"));
        }
        fs::write(room.path().join("waivers.toml"), WAIVERS).unwrap();
        room.clear();
        room
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn clear(&self) {
        let out = self.path().join("out");
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
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
        written
    }

    /// Runs a command, with the n-th call of a kind failing; whether there was such a call.
    fn run(&self, line: &str, fault: Option<(&Path, &str, usize, i32)>) -> (Output, bool) {
        let room = self.path().to_string_lossy();
        let mark = self.path().join("mark");
        let mut command = Command::new(env!("CARGO_BIN_EXE_dsv2"));
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
