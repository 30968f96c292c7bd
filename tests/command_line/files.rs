//! Files that are none, that change or have no end, and writing that is interrupted.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dsv2_reference::weights::safetensors_file::{Data, write_safetensors};

use crate::process::{Ran, Room, dsv2, names, run};

/// Runs a process that must end by itself within a minute.
fn ends(command: &mut Command) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait(&mut child, "it has ended", |child| child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Waits until `what` is so.
fn wait(child: &mut Child, what: &str, so: impl Fn(&mut Child) -> bool) {
    let start = Instant::now();
    while !so(child) {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("waited a minute for: {what}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A golden case of the repository, in a folder of its own.
fn golden(room: &Path, case: &str) -> PathBuf {
    let (from, to) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases").join(case), room.join("golden").join(case));
    copy(&from, &to);
    to
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        match from.join(&name).is_dir() {
            true => copy(&from.join(&name), &to.join(&name)),
            false => drop(fs::copy(from.join(&name), to.join(&name)).unwrap()),
        }
    }
}

/// Puts something that is no file to a path.
type Put<'a> = &'a dyn Fn(&Path);

/// Each file that a command reads is put in the place of what is no file, one after another: a pipe that nobody writes to, a
/// device without end, a folder, a link to either. Files of /proc say that they are empty.
#[test]
fn what_is_no_file_or_has_no_end_is_refused_by_name() {
    let room = Room::of("one-token");
    let dump = room.out("dump.safetensors");
    fs::copy(room.file("expected.safetensors"), &dump).unwrap();
    let waivers = room.out("waivers.toml");
    let case = golden(room.path(), "trained-tiny-greedy");
    let verify = || {
        let mut command = dsv2(["verify", "--backend", "reference", "--dtype", "f32", "--golden"]);
        command.arg(case.parent().unwrap()).arg("--waivers").arg(&waivers);
        command
    };
    let materialize = || {
        let mut command = dsv2(["materialize", "trained-tiny-greedy"]);
        command.arg(room.out("copy")).arg("--golden").arg(case.parent().unwrap());
        command
    };
    fs::write(&waivers, "").unwrap();
    fs::write(case.join("checkpoint/LICENSE"), "").unwrap();
    let files: [(PathBuf, &dyn Fn() -> Command); 10] = [
        (room.file("config.json"), &|| room.trace()),
        (room.file("model.safetensors"), &|| room.trace()),
        (room.file("inputs.safetensors"), &|| room.trace()),
        (dump.clone(), &|| room.check(&dump)),
        (waivers.clone(), &verify),
        (case.join("case.json"), &materialize),
        (case.join("inputs.safetensors"), &materialize),
        (case.join("expected.safetensors"), &verify),
        (case.join("checkpoint/config.json"), &verify),
        (case.join("checkpoint/LICENSE"), &materialize),
    ];
    let kinds: [(&str, Put); 5] = [
        ("a pipe", &|path| drop(run(Command::new("mkfifo").arg(path)).passes())),
        ("a device", &|path| symlink("/dev/zero", path).unwrap()),
        ("a folder", &|path| fs::create_dir(path).unwrap()),
        ("a device", &|path| symlink("/dev/urandom", path).unwrap()),
        ("", &|path| symlink("/proc/self/environ", path).unwrap()),
    ];
    for (path, command) in files {
        let kept = path.with_extension("kept");
        fs::rename(&path, &kept).unwrap();
        for (what, put) in &kinds {
            put(&path);
            let line = ends(&mut command()).refused();
            let linked_out = line.contains("expected what lies in the folder of the case, found a link to");
            assert!(line.contains(&*path.display().to_string()), "{}: {line}", path.display());
            assert!(
                line.ends_with(&format!("expected a file, found {what}"))
                    || what.is_empty()
                    || linked_out
                    || path.ends_with("case.json"),
                "{line}"
            );
            assert!(fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).is_ok());
            assert_eq!(names(&room.path().join("out")).iter().filter(|name| name.starts_with("copy")).count(), 0);
        }
        fs::rename(&kept, &path).unwrap();
    }
    run(&mut verify()).passes();
}

#[test]
fn files_longer_than_any_sensible_one_are_refused() {
    let room = Room::of("one-token");
    let case = golden(room.path(), "one-token");
    let golden = case.parent().unwrap();
    let long = |path: &Path, limit: u64, command: &mut Command| {
        File::options().create(true).append(true).open(path).unwrap().set_len(limit + 1).unwrap();
        let line = ends(command).refused();
        assert!(line.ends_with(&format!("expected at most {limit} bytes, found more")), "{line}");
        assert!(line.contains(&*path.display().to_string()), "{line}");
    };
    let waivers = room.out("waivers.toml");
    long(&waivers, 1 << 20, dsv2(["verify", "--waivers"]).arg(&waivers));
    long(&case.join("case.json"), 4 << 20, dsv2(["verify", "--golden"]).arg(golden));
    long(&room.file("config.json"), 4 << 20, &mut room.trace());
    let index = room.file("model.safetensors.index.json");
    fs::remove_file(room.file("model.safetensors")).unwrap();
    run(&mut Room::of("one-token").trace()).passes();
    fs::copy(golden.join("../case/inputs.safetensors"), room.out("inputs")).unwrap();
    let whole = Room::of("one-token");
    fs::copy(whole.file("config.json"), room.file("config.json")).unwrap();
    long(&index, 32 << 20, &mut room.trace());
}

/// A case from somebody else must not make us read, or copy, files elsewhere.
#[test]
fn what_a_case_names_lies_in_its_folder_also_through_links() {
    let room = Room::of("one-token");
    let case = golden(room.path(), "trained-tiny-greedy");
    let secret = room.path().join("secret");
    let materialize = |room: &Room| {
        let mut command = dsv2(["materialize", "trained-tiny-greedy"]);
        command.arg(room.out("copy")).arg("--golden").arg(case.parent().unwrap());
        command
    };
    fs::rename(case.join("checkpoint"), &secret).unwrap();
    symlink("../../secret", case.join("checkpoint")).unwrap();
    let line = run(&mut materialize(&room)).refused();
    assert!(line.contains("checkpoint: expected what lies in the folder of the case, found a link to "), "{line}");

    fs::remove_file(case.join("checkpoint")).unwrap();
    fs::rename(&secret, case.join("checkpoint")).unwrap();
    fs::write(&secret, "not ours").unwrap();
    symlink(&secret, case.join("checkpoint/README.md")).unwrap();
    let line = run(&mut materialize(&room)).refused();
    assert!(line.contains("checkpoint/README.md: expected what lies in the folder of the case"), "{line}");
    assert_eq!(names(&room.path().join("out")), [""; 0]);

    fs::remove_file(case.join("checkpoint/README.md")).unwrap();
    symlink("config.json", case.join("checkpoint/README.md")).unwrap();
    run(&mut materialize(&room)).passes();
}

/// `dsv2` at work on all cases that have a checkpoint, which it has unpacked among the temporary files of `room`.
fn at_work(room: &Path) -> Child {
    let verify = dsv2(["verify", "--case", "trained-*", "--backend", "emulated"]);
    // Who runs the tests in the background may ignore signals, and then so does the program.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT,TERM,HUP").arg(verify.get_program()).args(verify.get_args());
    let mut child = command.env("TMPDIR", room).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait(&mut child, "something unpacked", |child| {
        assert_eq!(child.try_wait().unwrap(), None, "it must be at work");
        !left_by(room, child).is_empty()
    });
    child
}

/// What a run has left, or is still at.
fn left_by(room: &Path, child: &Child) -> Vec<String> {
    names(room).into_iter().filter(|name| name.contains(&format!(".{}-", child.id()))).collect()
}

fn send(signal: &str, child: &Child) {
    run(Command::new("kill").arg(signal).arg(child.id().to_string())).passes();
}

#[test]
fn an_interrupted_run_removes_what_it_has_begun() {
    for (signal, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1)] {
        let room = tempfile::tempdir().unwrap();
        let mut child = at_work(room.path());
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(128 + number), "{signal}");
        assert_eq!(names(room.path()), [""; 0], "{signal}");
    }
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_and_that_of_a_living_one_is_not() {
    let room = tempfile::tempdir().unwrap();
    let (mut killed, mut living) = (at_work(room.path()), at_work(room.path()));
    send("-KILL", &killed);
    assert_eq!(killed.wait().unwrap().signal(), Some(9));
    assert!(!left_by(room.path(), &killed).is_empty());
    run(dsv2(["verify", "--case", "trained-tiny-greedy", "--backend", "reference"]).env("TMPDIR", room.path()))
        .passes();
    assert_eq!(left_by(room.path(), &killed), [""; 0]);
    assert!(!left_by(room.path(), &living).is_empty());
    send("-TERM", &living);
    living.wait().unwrap();
    assert_eq!(names(room.path()), [""; 0]);
}

/// The system would send SIGBUS.
#[test]
fn weights_that_become_shorter_while_they_are_read_are_refused() {
    let room = Room::of("one-token");
    let model = room.file("model.safetensors");
    // Behind the tensors of the model, one of a gigabyte of zeros: the first tensor that is looked for is missing.
    let config = fs::read_to_string(room.file("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let [vocab, hidden] = ["vocab_size", "hidden_size"].map(|key| config[key].as_u64().unwrap());
    let (rows, _) = ((1 << 29) / hidden, vocab);
    let text = fs::read_to_string(room.file("config.json")).unwrap();
    let text = text.replace(&format!("\"vocab_size\": {vocab}"), &format!("\"vocab_size\": {rows}"));
    fs::write(room.file("config.json"), text).unwrap();
    enlarge(&model, rows, hidden);
    let mut command = room.trace();
    let mut child = command.arg("--stages=lm_head").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let maps = format!("/proc/{}/maps", child.id());
    wait(&mut child, "the weights are mapped", |_| {
        fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("model.safetensors"))
    });
    File::options().write(true).open(&model).unwrap().set_len(4096).unwrap();
    wait(&mut child, "it has ended", |child| child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert!(line.contains("model.safetensors: expected a file that stays as it is while it is read"), "{line}");
    assert_eq!(names(&room.path().join("out")), [""; 0]);
}

/// Gives the embedding and the head `rows` rows of zeros, in a file with a hole.
fn enlarge(model: &Path, rows: u64, hidden: u64) {
    let bytes = fs::read(model).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let mut end = 0;
    let mut held = Vec::new();
    let mut tensors: Vec<_> = header.iter_mut().filter(|(name, _)| *name != "__metadata__").collect();
    tensors.sort_by_key(|(_, info)| info["data_offsets"][0].as_u64());
    for (name, info) in tensors {
        let offset = |end: usize| info["data_offsets"][end].as_u64().unwrap() as usize;
        let (start, stop) = (offset(0), offset(1));
        let large = name == "lm_head.weight" || name == "model.embed_tokens.weight";
        let size = if large { rows * hidden * 2 } else { (stop - start) as u64 };
        if large {
            info["shape"][0] = rows.into();
        } else {
            held.push((end, start..stop));
        }
        info["data_offsets"] = serde_json::json!([end, end + size]);
        end += size;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let start = 8 + header.len() as u64;
    fs::write(model, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    let file = File::options().write(true).open(model).unwrap();
    file.set_len(start + end).unwrap();
    for (at, range) in held {
        std::os::unix::fs::FileExt::write_all_at(&file, &data[range], start + at).unwrap();
    }
}

/// An empty folder of a report never stays, and neither do the folders above it.
#[test]
fn a_request_that_is_refused_leaves_no_folder_of_a_report() {
    let room = Room::of("one-token");
    let dump = room.out("dump.safetensors");
    let numbers = Data::Real(dsv2_reference::Tensor::from_values(dsv2_reference::Dtype::F32, &[3], [0.0; 3]));
    write_safetensors(&dump, &[("no.stage.at.all".into(), numbers)]).unwrap();
    for report in ["report", "a/b/report"] {
        run(room.check(&dump).arg("--report").arg(room.out(report))).refused();
        run(room.check(&room.out("none.safetensors")).arg("--report").arg(room.out(report))).refused();
        assert_eq!(names(&room.path().join("out")), ["dump.safetensors"]);
    }
}

#[test]
fn absurd_variables_and_missing_threads_are_one_line_or_a_sane_run() {
    let verify = || dsv2(["verify", "--case", "one-token"]);
    for (threads, refused) in
        [("100000", true), ("many", true), ("-1", true), ("0", false), ("", false), ("1", false), ("7", false)]
    {
        let ran = ends(verify().env("RAYON_NUM_THREADS", threads));
        match refused {
            true => {
                let expected =
                    format!("dsv2: RAYON_NUM_THREADS: expected a number of threads up to 1024, found {threads:?}");
                assert_eq!(ran.refused(), expected);
            }
            false => drop(ran.passes()),
        }
    }
    // No memory has a stack of this size, so that no thread can be made.
    ends(verify().env("RUST_MIN_STACK", "4611686018427387904")).passes();
}

/// A library by the driver's name that is none, as an old or a broken driver.
#[test]
fn a_driver_that_lacks_a_symbol_is_no_driver() {
    let room = tempfile::tempdir().unwrap();
    let source = room.path().join("empty.c");
    fs::write(&source, "int cuInit(unsigned flags) { return 0; }\n").unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        run(Command::new("cc").args(["-shared", "-o"]).arg(room.path().join(name)).arg(&source)).passes();
    }
    let with_it = |command: &mut Command| ends(command.env("LD_LIBRARY_PATH", room.path()));
    with_it(&mut dsv2(["verify", "--case", "one-token"])).passes();
    let line = with_it(&mut dsv2(["verify", "--case", "one-token", "--backend", "cuda"])).refused();
    assert!(line.contains("libcuda has no `cuCtxSetCurrent`"), "{line}");
}

/// One way to read a file, and one to write it: no program of this workspace opens one by itself.
#[test]
fn files_are_opened_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ways = [
        "fs::read(",
        "fs::read_to_string(",
        "File::open(",
        "File::options(",
        "OpenOptions::new(",
        "Mmap::map(",
        "fs::copy(",
        "File::create(",
        "tempfile::",
    ];
    let mut found = Vec::new();
    for folder in ["src", "reference/src", "optimized/src", "emulator/src", "metrics/src", "benches/report/src"] {
        sources(&root.join(folder), &mut |path, text| {
            let program = text.split("#[cfg(test)]").next().unwrap();
            let lines = program.lines().filter(|line| !line.trim_start().starts_with("//"));
            let name = path.strip_prefix(root).unwrap().display().to_string();
            // `TensorFile::open` is another one than `File::open`.
            let at_work = |line: &str, way: &str| {
                line.match_indices(way).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric()))
            };
            if lines.clone().any(|line| ways.iter().any(|way| at_work(line, way))) {
                found.push(name);
            }
        });
    }
    found.sort();
    let allowed = [
        "reference/src/file.rs",
        "reference/src/file/map.rs",
        "reference/src/file/unfinished.rs",
        "reference/src/weights/safetensors_file/write.rs",
    ];
    assert_eq!(found, allowed);
}

/// The sources in a folder that are no tests.
fn sources(folder: &Path, each: &mut impl FnMut(&Path, &str)) {
    for name in names(folder) {
        let path = folder.join(&name);
        match path.is_dir() {
            true => sources(&path, each),
            false if name.ends_with(".rs") && !name.contains("tests") && name != "stage_checks.rs" => {
                each(&path, &fs::read_to_string(&path).unwrap());
            }
            false => {}
        }
    }
}

/// SECURITY.md says the limits that hold.
#[test]
fn the_limits_are_those_that_are_written_down() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md")).unwrap();
    for (file, limit) in [
        ("config.json, case.json", dsv2_reference::file::CONFIG),
        ("model.safetensors.index.json", dsv2_reference::file::INDEX),
        ("waivers.toml", dsv2::waivers::LONGEST),
        ("compressed arrays of an `.npz` file, inflated", dsv2::files::archive::INFLATED),
    ] {
        assert!(page.contains(&format!("| {file} | {limit} bytes |")), "{file}: {limit}");
    }
}
