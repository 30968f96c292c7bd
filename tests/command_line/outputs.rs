//! Output that cannot be written, for every subcommand: a full disk, a reader who is gone, a place that is none.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use dsv2::values::Values;

use crate::process::{Room, dsv2, edit, names, run};

/// A command for each subcommand, and its status where nothing is in the way.
const SAY: [(&str, i32); 17] = [
    ("--help", 0),
    ("--version", 0),
    ("verify --case one-token --backend reference --dtype f32", 0),
    ("trace --model ROOM/model --inputs ROOM/case/inputs.safetensors --output ROOM/out/trace.safetensors", 0),
    ("check --model ROOM/model --inputs ROOM/case/inputs.safetensors --candidate ROOM/case/expected.safetensors", 0),
    ("check --json --model ROOM/model --inputs ROOM/case/inputs.safetensors --candidate ROOM/wrong.safetensors", 1),
    ("mutants --case one-token --mutant resid_no_attention --dtype f32", 0),
    ("materialize one-token ROOM/out/made", 0),
    ("kv-cache --model ROOM/model", 0),
    ("plan --model ROOM/model --device-memory 1GB --reserve 0", 0),
    ("plan --json --preset v2 --devices 8", 0),
    ("generate --prompt The --greedy --max-new-tokens 2", 0),
    ("chat --greedy --max-new-tokens 2", 0),
    ("check-text --dtype f32 ROOM/right.jsonl", 0),
    ("check-text --dtype f32 --json ROOM/wrong.jsonl", 1),
    ("operator list", 0),
    ("operator inputs rmsnorm ROOM/out/made", 0),
];

/// A transcript of the small model, whose tokens come to two. That it ended by itself is not so.
const RIGHT: &str = r#"{"request": {"prompt": "The router", "temperature": 0, "max_tokens": 2}, "response": {"choices": [{"text": " gives each", "token_ids": [626, 411], "finish_reason": "length"}]}}"#;

/// The subcommands that write files, without the place.
const WRITE: [&str; 5] = [
    "trace --model ROOM/model --inputs ROOM/case/inputs.safetensors --output",
    "check --model ROOM/model --inputs ROOM/case/inputs.safetensors --candidate ROOM/case/expected.safetensors --report",
    "verify --case one-token --backend reference --dtype f32 --report",
    "materialize one-token",
    "operator inputs rmsnorm",
];

fn room() -> Room {
    let room = Room::of("one-token");
    let wrong = room.path().join("wrong.safetensors");
    fs::copy(room.file("expected.safetensors"), &wrong).unwrap();
    edit(&wrong, |stages| crate::process::scale(&mut stages["model.norm"], 2.0));
    fs::write(room.path().join("right.jsonl"), RIGHT).unwrap();
    fs::write(room.path().join("wrong.jsonl"), RIGHT.replace("length\"", "stop\"")).unwrap();
    fs::write(room.path().join("questions"), "hello\n").unwrap();
    room
}

fn command(room: &Room, line: &str) -> Command {
    let mut command = dsv2(line.split(' ').map(|word| word.replace("ROOM", &room.path().to_string_lossy())));
    command.stdin(fs::File::open(room.path().join("questions")).unwrap());
    command
}

/// How many lines say why something is refused, or where something panicked.
fn refusals(said: &str) -> usize {
    said.lines().filter(|line| line.starts_with("dsv2: ") || line.contains("panicked")).count()
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_stdout_is_a_fault_and_a_reader_who_is_gone_is_none() {
    for (line, status) in SAY {
        let room = room();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(&room, line).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        // how far it is may have been said before
        let last = said.lines().last().unwrap_or_default();
        let says = last.starts_with("dsv2: stdout: cannot write: No space left on device");
        assert!(says && refusals(&said) == 1, "{line}: {said}");

        let room = self::room();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(&room, line).stdout(writer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), refusals(&said)), (Some(status), 0), "{line}: {said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn nobody_has_to_listen_to_stderr() {
    for (line, status) in SAY {
        let room = room();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let ran = command(&room, line).stderr(full).stdout(Stdio::null()).status().unwrap();
        assert_eq!(ran.code(), Some(status), "{line}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_place_that_is_none_is_refused_by_its_name_and_nothing_is_left() {
    let long = "x".repeat(300);
    let deep = vec!["y".repeat(200); 30].join("/");
    for line in WRITE {
        let room = room();
        fs::write(room.out("file"), "").unwrap();
        // Were the work begun, this would be said of it.
        edit(&room.file("model.safetensors"), |weights| match &mut weights["lm_head.weight"] {
            Values::Real(_, a) => a[[0, 0]] = f64::NAN,
            other => panic!("{}", other.describe()),
        });
        let places = [
            room.out("file/below"),
            room.out(&long),
            room.out(&deep),
            room.out("loop/x"),
            PathBuf::from("/proc/none"),
            PathBuf::from("/dev/null/x"),
            PathBuf::from("/dev/full"),
        ];
        std::os::unix::fs::symlink("loop", room.out("loop")).unwrap();
        for place in places {
            let refused = run(command(&room, line).arg(&place)).refused();
            let shown: String = place.to_string_lossy().chars().take(60).collect();
            assert!(refused.contains(&shown) && refused.chars().count() < 1000, "{line}: {shown}: {refused}");
            assert_eq!(names(&room.path().join("out")), ["file", "loop"], "{line}: {shown}");
        }
    }
}

/// A limit on files stands for a full disk.
#[test]
#[cfg(target_os = "linux")]
fn room_that_is_lacking_is_known_before_a_trace_is_computed() {
    let room = room();
    edit(&room.file("model.safetensors"), |weights| match &mut weights["lm_head.weight"] {
        Values::Real(_, a) => a[[0, 0]] = f64::NAN,
        other => panic!("{}", other.describe()),
    });
    let limited = |blocks: &str| {
        let trace = room.trace();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -f {blocks}; exec \"$0\" \"$@\"")]).arg(trace.get_program());
        run(shell.args(trace.get_args())).refused()
    };
    let line = limited("8");
    assert!(line.contains("trace.safetensors: cannot write: "), "{line}");
    let line = limited("unlimited");
    assert!(line.contains("lm_head.weight"), "{line}");
    assert_eq!(names(&room.path().join("out")), [""; 0]);
}
