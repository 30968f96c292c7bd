//! Running `dsv2` as a process, on golden cases as folders.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dsv2::golden::GoldenCases;
use dsv2::materialize::{Feed, materialize};
use dsv2::values::{self, Values};
use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};
use indexmap::IndexMap;
use tempfile::TempDir;

/// A stage of the case `v2`.
pub const O_PROJ: &str = "model.layers.1.self_attn.o_proj";

/// The tensors of a safetensors file.
pub type Tensors = IndexMap<String, Values>;

/// What came of a process.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Everything is all right; what it says on stdout.
    #[track_caller]
    pub fn passes(self) -> String {
        self.ends_with_status(0)
    }

    /// What was examined does not conform; what it says on stdout.
    #[track_caller]
    pub fn fails(self) -> String {
        self.ends_with_status(1)
    }

    /// The request or a file is at fault: one line on stderr and nothing else. The line.
    #[track_caller]
    pub fn refused(self) -> String {
        assert_eq!(self.ends_silently_with_status(2), "");
        let line = self.stderr.trim_end_matches('\n');
        assert!(line.starts_with("dsv2: ") && !line.chars().any(char::is_control), "no single line: {:?}", self.stderr);
        line.to_owned()
    }

    /// A verdict or one line of refusal; its status.
    #[track_caller]
    pub fn ends_well(self) -> i32 {
        let code = self.code.expect("no signal ends it");
        match code {
            0 => drop(self.passes()),
            1 => drop(self.fails()),
            _ => drop(self.refused()),
        }
        code
    }

    #[track_caller]
    fn ends_with_status(self, status: i32) -> String {
        self.ends_silently_with_status(status);
        self.stdout
    }

    #[track_caller]
    fn ends_silently_with_status(&self, status: i32) -> &str {
        let Ran { code, stdout, stderr } = self;
        assert_eq!(*code, Some(status), "stdout: {stdout}\nstderr: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        stdout
    }
}

/// `dsv2` with some arguments.
pub fn dsv2<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsv2"));
    command.args(args);
    command
}

/// Runs a process to its end.
pub fn run(command: &mut Command) -> Ran {
    let output = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A golden case as `materialize` writes it, and an empty folder beside it for what is written.
pub struct Room {
    dir: TempDir,
}

impl Room {
    /// With the golden case of that name.
    pub fn of(case: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        materialize(&GoldenCases::embedded().load(case).unwrap(), dir.path(), Feed::Whole).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        Room { dir }
    }

    /// The folder around everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file of the case or of its model.
    pub fn file(&self, name: &str) -> PathBuf {
        let model = name == "config.json" || name.starts_with("model");
        self.path().join(if model { "model" } else { "case" }).join(name)
    }

    /// A place for a file to be written.
    pub fn out(&self, name: &str) -> PathBuf {
        self.path().join("out").join(name)
    }

    /// `dsv2 trace` of the case into `out/trace.safetensors`.
    pub fn trace(&self) -> Command {
        let mut command = self.on_the_case("trace");
        command.arg("--output").arg(self.out("trace.safetensors"));
        command
    }

    /// `dsv2 check` of a dump of the case.
    pub fn check(&self, candidate: &Path) -> Command {
        let mut command = self.on_the_case("check");
        command.arg("--candidate").arg(candidate);
        command
    }

    fn on_the_case(&self, what: &str) -> Command {
        let mut command = dsv2([what]);
        command.arg("--model").arg(self.path().join("model")).arg("--inputs").arg(self.file("inputs.safetensors"));
        command
    }

    /// The stages that Transformers computed.
    pub fn expected(&self) -> Tensors {
        read(&self.file("expected.safetensors"))
    }

    /// Writes a dump of stages, for `check`.
    pub fn dump(&self, stages: &Tensors) -> PathBuf {
        let path = self.out("candidate.safetensors");
        write(&path, stages);
        path
    }
}

/// The tensors of a file, in their order.
pub fn read(path: &Path) -> Tensors {
    values::read(path).unwrap().into_iter().collect()
}

/// Writes tensors, each in its own type.
pub fn write(path: &Path, tensors: &Tensors) {
    let tensors: Vec<_> = tensors.iter().map(|(name, values)| (name.clone(), Data::from(values))).collect();
    write_safetensors(path, &tensors).unwrap();
}

/// Changes the tensors of a file.
pub fn edit(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = read(path);
    change(&mut tensors);
    write(path, &tensors);
}

/// The names of the files in a folder, in the order of the alphabet.
pub fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// Scales a stage.
pub fn scale(values: &mut Values, factor: f64) {
    let Values::Real(_, a) = values else { panic!("{} are no real numbers", values.describe()) };
    *a *= factor;
}
