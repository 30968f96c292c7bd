//! Every file of `golden/hostile` against the program.
//!
//! Beside each file lies what the program has to say of it. `<what>.error`: it is refused with exit status 2, and this
//! is the line on stderr, after `dsv2: ` and with `FILE` for its own path (`DIR` for that of a folder). `<what>.failure`,
//! of a dump: exit status 1, and this is the first wrong stage. With `DSV2_BLESS=1` in the environment these are written.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Ran, dsv2, names, run};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/hostile").join(name)
}

/// Holds each file of a folder against the program. A line that belongs to no file is a mistake.
fn each(kind: &str, hold: impl Fn(&Path)) {
    for name in names(&folder(kind)) {
        let path = folder(kind).join(name);
        println!("{}", path.display()); // seen where it fails: the last one
        if path.extension().is_some_and(|extension| extension == "error" || extension == "failure") {
            let exists = |extension| path.with_extension(extension).exists();
            assert!(["json", "safetensors", "pt", "npz", "npy", ""].into_iter().any(exists), "it belongs to nothing");
        } else {
            hold(&path);
        }
    }
}

#[test]
fn the_good_model_is_taken() {
    let place = Place::new();
    for command in [CHECK, TRACE] {
        place.run(command).passes();
    }
    assert_eq!(names(place.out.path()), ["trace.safetensors"]);
}

#[test]
fn impossible_configs_are_refused() {
    each("config", |path| {
        let model = tempfile::tempdir().unwrap();
        fs::copy(folder("good").join("model.safetensors"), model.path().join("model.safetensors")).unwrap();
        let config = model.path().join("config.json");
        fs::copy(path, &config).unwrap();
        // Where it takes a dialect to see what is wrong, `kv-cache` sees nothing: it knows none.
        let needs_dialect = dsv2_reference::DeepseekV2Config::from_file(path).is_ok();
        let commands = &[TRACE, CHECK, KV_CACHE][..if needs_dialect { 2 } else { 3 }];
        Place { model: model.path().into(), ..Place::new() }.refuses_as(path, &config, commands);
    });
}

#[test]
fn damaged_safetensors_are_refused_in_the_same_words_as_weights_inputs_dump_and_truth() {
    each("safetensors", |path| {
        Place { dump: path.into(), ..Place::new() }.refuses(path, &[CHECK]);
        Place { truth: Some(path.into()), ..Place::new() }.refuses(path, &[CHECK]);
        Place { inputs: path.into(), ..Place::new() }.refuses(path, &[TRACE, CHECK]);
        let model = tempfile::tempdir().unwrap();
        fs::copy(folder("good").join("config.json"), model.path().join("config.json")).unwrap();
        let weights = model.path().join("model.safetensors");
        fs::copy(path, &weights).unwrap();
        Place { model: model.path().into(), ..Place::new() }.refuses_as(path, &weights, &[TRACE, CHECK]);
    });
}

#[test]
fn checkpoints_whose_files_do_not_fit_together_are_refused() {
    each("checkpoint", |path| {
        let mut place = Place { model: path.into(), ..Place::new() };
        let inputs = path.join("inputs.safetensors");
        if inputs.exists() {
            place.inputs = inputs;
        }
        let before = names(path);
        place.refuses(path, &[TRACE, CHECK]);
        assert_eq!(names(path), before, "something was written");
    });
}

#[test]
fn impossible_inputs_are_refused() {
    each("inputs", |path| Place { inputs: path.into(), ..Place::new() }.refuses(path, &[TRACE, CHECK]));
}

#[test]
fn dumps_that_are_none_are_refused_and_wrong_ones_fail() {
    each("dump", |path| {
        let place = Place { dump: path.into(), ..Place::new() };
        let ran = place.run(CHECK);
        if ran.code != Some(1) {
            return place.refuses(path, &[CHECK]);
        }
        let verdict: Value = serde_json::from_str(&ran.fails()).unwrap();
        assert_eq!(verdict["verdict"], "fail");
        compare(&path.with_extension("failure"), verdict["first_failing_stage"].as_str().unwrap());
        let explained: Value = serde_json::from_str(&place.run(EXPLAIN).fails()).unwrap();
        assert_eq!(explained["first_failing_stage"], verdict["first_failing_stage"]);
        assert!(verdict["explanation"].is_null() && explained["explanation"].is_array());
    });
}

#[test]
fn damaged_and_hostile_archives_are_refused_as_dump_and_as_truth() {
    each("archive", |path| {
        Place { dump: path.into(), ..Place::new() }.refuses(path, &[CHECK]);
        Place { truth: Some(path.into()), ..Place::new() }.refuses_in_any_words(&[CHECK]);
    });
}

#[test]
fn inputs_and_dumps_are_read_in_every_format_and_what_is_no_stage_is_listed() {
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/files").join(name);
    for inputs in ["inputs.pt", "inputs.npz"] {
        for (dump, unknown) in [
            ("dump.pt", vec![]),
            ("dump.npz", vec![]),
            ("dump-with-strangers.safetensors", vec!["freqs", "positions", "scales"]),
        ] {
            let place = Place { inputs: file(inputs), dump: file(dump), truth: Some(file(dump)), ..Place::new() };
            let report: Value = serde_json::from_str(&place.run(CHECK).passes()).unwrap();
            let mut found: Vec<_> =
                report["unknown"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            found.sort_unstable();
            assert_eq!(found, unknown, "{dump}");
        }
    }
}

/// A command of the program.
type Subcommand = &'static str;
const TRACE: Subcommand = "trace";
const CHECK: Subcommand = "check";
const EXPLAIN: Subcommand = "check --explain";
const KV_CACHE: Subcommand = "kv-cache";

/// What is given to the program, and an empty folder for what it writes.
struct Place {
    model: PathBuf,
    inputs: PathBuf,
    dump: PathBuf,
    truth: Option<PathBuf>,
    out: TempDir,
}

impl Place {
    /// With nothing wrong.
    fn new() -> Self {
        let model = folder("good");
        let (inputs, dump) = (model.join("inputs.safetensors"), model.join("dump.safetensors"));
        Place { model, inputs, dump, truth: None, out: tempfile::tempdir().unwrap() }
    }

    fn run(&self, subcommand: Subcommand) -> Ran {
        let mut command = dsv2(subcommand.split(' '));
        command.arg("--model").arg(&self.model).current_dir(self.out.path());
        match subcommand {
            TRACE => command.arg("--inputs").arg(&self.inputs).arg("--output").arg("trace.safetensors"),
            CHECK | EXPLAIN => {
                command.arg("--inputs").arg(&self.inputs).arg("--candidate").arg(&self.dump).arg("--json")
            }
            _ => &mut command,
        };
        if let Some(truth) = &self.truth {
            command.arg("--expected").arg(truth);
        }
        run(&mut command)
    }

    /// Each command refuses the file `path` with the line beside it, and writes nothing.
    fn refuses(&self, path: &Path, commands: &[Subcommand]) {
        self.refuses_as(path, path, commands);
    }

    /// Each command refuses something, and writes nothing.
    fn refuses_in_any_words(&self, commands: &[Subcommand]) {
        for command in commands {
            let line = self.run(command).refused();
            assert!(!line.contains('\n') && line.starts_with("dsv2: "), "{line}");
        }
        assert_eq!(names(self.out.path()), [""; 0], "something was written");
    }

    /// The same where the program meets a copy of the file, at `shown`.
    fn refuses_as(&self, path: &Path, shown: &Path, commands: &[Subcommand]) {
        let stands_for = if path.is_dir() { "DIR" } else { "FILE" };
        for command in commands {
            println!("{command}");
            let line = self.run(command).refused().replace(shown.to_str().unwrap(), stands_for);
            compare(&path.with_extension("error"), line.strip_prefix("dsv2: ").unwrap());
        }
        assert_eq!(names(self.out.path()), [""; 0], "something was written");
    }
}

/// The line that lies in the file `path` is the one that was found.
#[track_caller]
fn compare(path: &Path, found: &str) {
    if std::env::var_os("DSV2_BLESS").is_some_and(|bless| bless == "1") {
        fs::write(path, format!("{found}\n")).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(expected.strip_suffix('\n'), Some(found), "{}", path.display());
}
