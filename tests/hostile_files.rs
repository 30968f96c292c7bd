//! Every file of `golden/hostile` against the program: one test for each, named after the file.
//!
//! Beside each file lies what the program has to say of it. `<what>.error`: it is refused with exit status 2, and this
//! is the line on stderr, after `dsv2: ` and with `FILE` for its own path (`DIR` for that of a folder). `<what>.failure`,
//! of a dump: exit status 1, and this is the first wrong stage. With `DSV2_BLESS=1` in the environment these are written.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Ran, dsv2, names, run};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use tempfile::TempDir;

fn main() {
    let arguments = Arguments::from_args();
    let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/hostile");
    let mut trials = vec![good(room.clone())];
    for (kind, hold) in KINDS {
        let mut said = Vec::new();
        for name in names(&room.join(kind)) {
            let path = room.join(kind).join(&name);
            if matches!(extension(&path), "error" | "failure") {
                said.push(path);
                continue;
            }
            let what = format!("{kind}::{}", path.file_stem().unwrap_or_default().display());
            let room = room.clone();
            trials.push(Trial::test(what, move || hold(&room, &path)));
        }
        trials.push(Trial::test(format!("{kind}::nothing_is_left_over"), move || nothing_left_over(&said)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Holds one hostile file against the program.
type Hold = fn(&Path, &Path) -> Result<(), Failed>;

/// The folders, and what is done with a file of each.
const KINDS: [(&str, Hold); 5] = [
    ("config", as_config),
    ("safetensors", in_every_role),
    ("checkpoint", |room, path| Place::new(room)?.with_model(path).refuses(path, &[TRACE, CHECK])),
    ("inputs", |room, path| Place::new(room)?.with_inputs(path).refuses(path, &[TRACE, CHECK])),
    ("dump", as_dump),
];

/// The good model, without anything wrong, is taken.
fn good(room: PathBuf) -> Trial {
    Trial::test("good", move || {
        let place = Place::new(&room)?;
        for command in [CHECK, TRACE] {
            place.run(command).passes();
        }
        assert_eq!(names(place.out.path()), ["trace.safetensors"]);
        Ok(())
    })
}

fn as_config(room: &Path, path: &Path) -> Result<(), Failed> {
    let model = tempfile::tempdir()?;
    fs::copy(room.join("good/model.safetensors"), model.path().join("model.safetensors"))?;
    let config = model.path().join("config.json");
    fs::copy(path, &config)?;
    let place = Place::new(room)?.with_model(model.path());
    place.refuses_as(path, &config, &[TRACE, CHECK, KV_CACHE][..if needs_dialect(path)? { 2 } else { 3 }])
}

/// Whether it takes a dialect to see what is wrong: `kv-cache` knows none.
fn needs_dialect(config: &Path) -> Result<bool, Failed> {
    Ok(dsv2_reference::DeepseekV2Config::from_file(config).is_ok())
}

/// As weights, as inputs and as a dump: the same line.
fn in_every_role(room: &Path, path: &Path) -> Result<(), Failed> {
    Place::new(room)?.with_dump(path).refuses(path, &[CHECK])?;
    Place::new(room)?.with_inputs(path).refuses(path, &[TRACE, CHECK])?;
    let model = tempfile::tempdir()?;
    fs::copy(room.join("good/config.json"), model.path().join("config.json"))?;
    let weights = model.path().join("model.safetensors");
    fs::copy(path, &weights)?;
    Place::new(room)?.with_model(model.path()).refuses_as(path, &weights, &[TRACE, CHECK])
}

fn as_dump(room: &Path, path: &Path) -> Result<(), Failed> {
    let place = Place::new(room)?.with_dump(path);
    let ran = place.run(CHECK);
    if ran.code != Some(1) {
        return place.refuses(path, &[CHECK]);
    }
    let verdict: Value = serde_json::from_str(&ran.fails())?;
    let stage = verdict["first_failing_stage"].as_str().ok_or("a failure without a stage")?;
    compare(&path.with_extension("failure"), stage)
}

/// A line without its input is a mistake.
fn nothing_left_over(said: &[PathBuf]) -> Result<(), Failed> {
    let inputs = ["json", "safetensors", ""];
    let orphan = |path: &&PathBuf| !inputs.iter().any(|extension| path.with_extension(extension).exists());
    match said.iter().find(orphan) {
        Some(path) => Err(format!("{} belongs to nothing", path.display()).into()),
        None => Ok(()),
    }
}

/// A command of the program.
type Subcommand = &'static str;
const TRACE: Subcommand = "trace";
const CHECK: Subcommand = "check";
const KV_CACHE: Subcommand = "kv-cache";

/// What is given to the program, and an empty folder for what it writes.
struct Place {
    model: PathBuf,
    inputs: PathBuf,
    dump: PathBuf,
    out: TempDir,
}

impl Place {
    fn new(room: &Path) -> Result<Self, Failed> {
        let good = room.join("good");
        let (inputs, dump) = (good.join("inputs.safetensors"), good.join("dump.safetensors"));
        Ok(Place { model: good, inputs, dump, out: tempfile::tempdir()? })
    }

    fn with_model(self, model: &Path) -> Self {
        Place { model: model.to_owned(), ..self }
    }

    fn with_inputs(self, inputs: &Path) -> Self {
        Place { inputs: inputs.to_owned(), ..self }
    }

    fn with_dump(self, dump: &Path) -> Self {
        Place { dump: dump.to_owned(), ..self }
    }

    fn run(&self, subcommand: Subcommand) -> Ran {
        let mut command = dsv2([subcommand]);
        command.arg("--model").arg(&self.model).current_dir(self.out.path());
        match subcommand {
            TRACE => command.arg("--inputs").arg(&self.inputs).arg("--output").arg("trace.safetensors"),
            CHECK => command.arg("--inputs").arg(&self.inputs).arg("--candidate").arg(&self.dump).arg("--json"),
            _ => &mut command,
        };
        run(&mut command)
    }

    /// Each command refuses the file `path` with the line beside it, and writes nothing.
    fn refuses(&self, path: &Path, commands: &[Subcommand]) -> Result<(), Failed> {
        self.refuses_as(path, path, commands)
    }

    /// The same where the program meets a copy of the file, at `shown`.
    fn refuses_as(&self, path: &Path, shown: &Path, commands: &[Subcommand]) -> Result<(), Failed> {
        let stands_for = if path.is_dir() { "DIR" } else { "FILE" };
        let shown = shown.to_str().ok_or("a path that is no text")?;
        for command in commands {
            let line = self.run(command).refused().replace(shown, stands_for);
            let line = line.strip_prefix("dsv2: ").unwrap_or(&line);
            compare(&path.with_extension("error"), line).map_err(|failed| match failed.message() {
                Some(message) => Failed::from(format!("{command}: {message}")),
                None => failed,
            })?;
        }
        let written = names(self.out.path());
        if written.is_empty() { Ok(()) } else { Err(format!("it wrote {written:?}").into()) }
    }
}

/// The line that lies in the file `path` is the one that was found.
fn compare(path: &Path, found: &str) -> Result<(), Failed> {
    if std::env::var_os("DSV2_BLESS").is_some_and(|bless| bless == "1") {
        fs::write(path, format!("{found}\n"))?;
    }
    match fs::read_to_string(path) {
        Err(_) => Err(format!("{} is missing; found: {found}", path.display()).into()),
        Ok(expected) if expected.strip_suffix('\n') == Some(found) => Ok(()),
        Ok(expected) => Err(format!("{}\nexpected: {}\nfound:    {found}", path.display(), expected.trim_end()).into()),
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}
