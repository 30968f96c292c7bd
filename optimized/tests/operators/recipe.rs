//! The recipe: all that `nvrtc.py` makes of `kernels/` is there and nothing else, it is what the library embeds, a driver
//! of version 550 takes it, no kernel spills registers, (where NVRTC 12.4 is) it is what the sources compile to, and (where
//! ptxas is) what that becomes on a GPU is in `sass.txt` and within limits.
//!
//! NVRTC and ptxas are looked for in `python3`, or in the Python that `DSV2_NVRTC_PYTHON` names: then they have to be there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use dsv2_optimized::library::MODULES;
use libtest_mimic::{Failed, Trial};
use ptx_emulator::Module;

use crate::archive;
use crate::mutants::{self, Mutant};

/// What drivers from 550 on take.
const PTX_VERSION: (u32, u32) = (8, 4);
/// The oldest GPU that the kernels are for.
const TARGET: &str = "sm_80";

type Names = BTreeSet<String>;

/// One trial for each statement, each module and each mutant.
pub fn trials() -> Vec<Trial> {
    let named = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("recipe/{name}"), run);
    let mut trials = vec![
        named("every_source_is_embedded", sources_are_embedded),
        named("every_kernel_has_its_resources", kernels_have_resources),
        named("no_kernel_spills", no_kernel_spills),
        named("every_mutant_is_compiled", mutants_are_compiled),
        compiles_to_the_same(),
        assembles_to_the_same(),
    ];
    for (name, text) in MODULES {
        trials.push(Trial::test(format!("recipe/module/{name}"), || fits(text).map(drop)));
    }
    let mut texts = archive::all();
    for mutant in mutants::table() {
        let ptx = texts.remove(&mutant.name);
        trials.push(Trial::test(format!("recipe/mutant/{}", mutant.name), move || is_of_its_module(&mutant, ptx)));
    }
    trials
}

/// Each `.cu` has its PTX, each PTX its `.cu`, and the library has all of them.
fn sources_are_embedded() -> Result<(), Failed> {
    let embedded: Names = MODULES.iter().map(|(name, _)| name.to_string()).collect();
    same("kernels/*.cu", &files("", "cu")?, "kernels/ptx/*.ptx", &files("ptx", "ptx")?)?;
    same("kernels/*.cu", &files("", "cu")?, "the modules in src/library.rs", &embedded)
}

/// Each kernel of the PTX is a row of `resources.txt`, and each row a kernel.
fn kernels_have_resources() -> Result<(), Failed> {
    let mut kernels = Names::new();
    for (_, text) in MODULES {
        kernels.extend(Module::parse(text)?.kernels().map(str::to_string));
    }
    same("the kernels of kernels/ptx", &kernels, "the rows of resources.txt", &resources()?.into_keys().collect())
}

fn no_kernel_spills() -> Result<(), Failed> {
    let spilling: Vec<String> =
        resources()?.into_iter().filter(|(_, spilled)| spilled != "0").map(|row| row.0).collect();
    if spilling.is_empty() { Ok(()) } else { Err(format!("registers are spilled by {}", spilling.join(", ")).into()) }
}

/// Each mutant has its PTX, and each PTX its mutant.
fn mutants_are_compiled() -> Result<(), Failed> {
    let named = mutants::table().into_iter().map(|mutant| mutant.name).collect();
    same("mutants.toml", &named, "kernels/mutants.tar.xz", &archive::all().into_keys().collect())
}

/// A module that a driver takes, and of which the emulator knows every instruction.
fn fits(text: &str) -> Result<Module, Failed> {
    let module = Module::parse(text)?;
    let found = (module.version(), module.target());
    if found != (PTX_VERSION, TARGET) {
        return Err(format!("expected {:?}, found {found:?}", (PTX_VERSION, TARGET)).into());
    }
    module.check()?;
    Ok(module)
}

/// It can be put in the place of kernels of its module: a mutant that cannot be launched would look like one that
/// was caught.
fn is_of_its_module(mutant: &Mutant, ptx: Option<String>) -> Result<(), Failed> {
    let original = MODULES.iter().find(|(name, _)| *name == mutant.module);
    let (_, original) = original.ok_or_else(|| format!("no module {}", mutant.module))?;
    let original: Names = Module::parse(original)?.kernels().map(str::to_string).collect();
    let compiled: Names = fits(&ptx.ok_or("no PTX: run optimized/nvrtc.py")?)?.kernels().map(str::to_string).collect();
    if compiled.is_empty() || !compiled.is_subset(&original) {
        return Err(format!("expected some of {original:?}, found {compiled:?}").into());
    }
    Ok(())
}

/// NVRTC makes the same of the sources, byte by byte; also of those of the emulator's tests.
fn compiles_to_the_same() -> Trial {
    let (name, has_it) = ("recipe/ptx_is_what_the_sources_compile_to", "import nvrtc; nvrtc.Compiler()");
    checked_by("nvrtc.py", name, has_it, "NVRTC 12.4 is not installed")
}

/// ptxas makes of the PTX what `sass.txt` says, and no kernel breaks a limit.
fn assembles_to_the_same() -> Trial {
    let (name, has_it) = ("recipe/sass_is_what_the_ptx_assembles_to", "import sass; sass.tools()");
    checked_by("sass.py", name, has_it, "ptxas and nvdisasm are not installed")
}

/// A script that finds no difference; not run, and that is said, if Python has not what it needs and none was named.
fn checked_by(script: &'static str, name: &str, has_it: &str, reason: &str) -> Trial {
    let named = env::var_os("DSV2_NVRTC_PYTHON");
    let python = named.clone().unwrap_or_else(|| "python3".into());
    if named.is_none() && !run(&python, &["-c", has_it]).is_ok_and(|it| it.status.success()) {
        let reason = format!("not run: {reason}");
        return Trial::test(format!("{name} ({reason})"), move || Err(reason.into())).with_ignored_flag(true);
    }
    Trial::test(name, move || {
        let output = run(&python, &[script, "--check"]).map_err(|error| format!("{}: {error}", python.display()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim_end().into())
    })
}

fn run(python: &OsStr, arguments: &[&str]) -> std::io::Result<Output> {
    let folder = env!("CARGO_MANIFEST_DIR");
    Command::new(python).args(arguments).current_dir(folder).env("PYTHONDONTWRITEBYTECODE", "1").output()
}

fn kernels_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// The names, without their ending, of the files with an ending.
fn files(folder: &str, ending: &str) -> Result<Names, Failed> {
    let folder = kernels_folder().join(folder);
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    let with_ending = paths.iter().filter(|path| path.extension() == Some(OsStr::new(ending)));
    Ok(with_ending.filter_map(|path| Some(path.file_stem()?.to_str()?.to_string())).collect())
}

/// The kernels of `resources.txt`, each with its number of spilled bytes.
fn resources() -> Result<BTreeMap<String, String>, Failed> {
    let text = fs::read_to_string(kernels_folder().join("resources.txt"))?;
    let mut lines = text.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let spills = lines.next().and_then(|titles| titles.iter().position(|title| *title == "spill bytes"));
    let spills = spills.ok_or("resources.txt: expected a column `spill bytes`, found none")?;
    let row = |cells: Vec<&str>| Some((cells.first()?.to_string(), cells.get(spills)?.to_string()));
    lines.map(|cells| row(cells).ok_or_else(|| "resources.txt: a row is too short".into())).collect()
}

/// Both have the same names.
fn same(one: &str, its: &Names, other: &str, others: &Names) -> Result<(), Failed> {
    let missing = |names: &Names, in_these: &Names, place: &str| {
        let missing: Vec<&str> = names.difference(in_these).map(String::as_str).collect();
        (!missing.is_empty()).then(|| format!("{} not in {place}", missing.join(", ")))
    };
    let complaints: Vec<String> =
        [missing(its, others, other), missing(others, its, one)].into_iter().flatten().collect();
    if complaints.is_empty() { Ok(()) } else { Err(complaints.join("; ").into()) }
}
