//! Every call to the system that a command makes for its files fails in turn, and every large allocation: the n-th open, read,
//! map, write, rename and sync, by a library that stands in front of the C library's ([`injector.rs`](injector.rs)).
//!
//! Whatever fails: no panic, no abort, no hang; a verdict as always, or status 2 and one line that names the file; and what
//! is written is whole, or not there.
//!
//! Where the library cannot be built or loaded, the tests are shown as ignored.

mod harness;

use std::fs;
use std::path::Path;

use harness::{Subject, Written};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");

const COMMANDS: [(&str, &str); 9] = [
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
        "check_with_report_among_other_files",
        "check --model ROOM/model --inputs ROOM/inputs.npz --candidate ROOM/dump.pt --report ROOM/out/among",
    ),
    (
        "trace_of_shards",
        "trace --model ROOM/sharded --inputs ROOM/inputs.safetensors --output ROOM/out/trace.safetensors",
    ),
];

const WAIVERS: &str =
    "[[waiver]]\nimplementation = \"none\"\ncase = \"*\"\nreason = \"a\"\nlink = \"b\"\nexpires = 2099-01-31\n";

static DSV2: Subject = Subject {
    program: env!("CARGO_BIN_EXE_dsv2"),
    name: "dsv2",
    commands: &COMMANDS,
    fill,
    agrees: contradicts_nothing,
};

fn main() -> std::process::ExitCode {
    harness::main(&DSV2)
}

/// A report says the same in all of its files.
fn contradicts_nothing(written: &Written, code: i32) -> Result<(), String> {
    let Some(place) = written.keys().find_map(|name| name.strip_suffix("/report.json")) else { return Ok(()) };
    let file = |name: &str| &written[&format!("{place}/{name}")];
    let passes = |bytes: &[u8], word: &str| String::from_utf8_lossy(bytes).contains(word);
    let all = [
        code == 0,
        passes(file("report.json"), "\n  \"verdict\": \"pass\""),
        passes(file("report.html"), "banner pass"),
        !passes(file("junit.xml"), "<failure"),
    ];
    if all.iter().all(|passes| *passes == all[0]) {
        Ok(())
    } else {
        Err(format!("a report that contradicts itself: {all:?}"))
    }
}

/// Every file that the commands read.
fn fill(room: &Path) {
    let copy = |from: &str, to: &str| {
        let to = room.join(to);
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
    fs::write(room.join("waivers.toml"), WAIVERS).unwrap();
}
