//! Requests and files that no file in `golden/hostile` can stand for: each is refused in one line, and nothing is written.

use std::fs;
use std::path::Path;

use dsv2::values::Values;
use dsv2_reference::Dtype;
use ndarray::ArrayD;

use crate::process::{Room, Tensors, dsv2, edit, names, run, write};

#[test]
fn a_file_that_is_not_there_is_named() {
    let room = Room::of("one-token");
    let good = room.file("expected.safetensors");
    let missing = room.out("missing.safetensors");
    let of_inputs = |subcommand: &str| {
        let mut command = dsv2([subcommand, "--model"]);
        command.arg(room.path().join("model")).arg("--inputs").arg(&missing);
        command
    };
    for command in [
        of_inputs("trace").arg("--output").arg(room.out("trace.safetensors")),
        of_inputs("check").arg("--candidate").arg(&good),
        &mut room.check(&missing),
        room.check(&good).arg("--expected").arg(&missing),
    ] {
        let line = run(command).refused();
        assert_eq!(
            line,
            format!(
                "dsv2: {}: expected a file of tensors (safetensors, .npz, .npy or .pt), found no such file",
                missing.display()
            )
        );
        assert_eq!(names(&room.path().join("out")), [""; 0]);
    }
    fs::remove_file(room.file("config.json")).unwrap();
    for command in [&mut room.trace(), &mut room.check(&good)] {
        let line = run(command).refused();
        assert!(line.contains("config.json: cannot read: "), "{line}");
    }
}

#[test]
fn a_truth_of_another_type_or_shape_is_refused() {
    let room = Room::of("one-token");
    let (good, truth) = (room.file("expected.safetensors"), room.out("truth.safetensors"));
    let refusal = || run(room.check(&good).arg("--expected").arg(&truth)).refused();
    let narrow = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/hostile/dump/stage-of-4-bit-floats.safetensors");
    fs::copy(narrow, &truth).unwrap();
    let line = refusal();
    assert!(line.contains("truth.safetensors") && line.contains(": expected BOOL, U8 to U64"), "{line}");
    assert!(line.contains("found F4"), "{line}");
    let stage = Values::Real(Dtype::F32, ArrayD::zeros(vec![3]));
    write(&truth, &Tensors::from_iter([("lm_head".to_owned(), stage)]));
    let line = refusal();
    for words in ["--expected", "`lm_head` of shape [1, 1, 112]", "found shape [3]"] {
        assert!(line.contains(words), "{words}: {line}");
    }
}

#[test]
#[cfg(unix)]
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    for name in ["config.json", "model.safetensors", "inputs.safetensors"] {
        let room = Room::of("v2");
        fs::remove_file(room.file(name)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(room.file(name)).status().unwrap().success());
        let line = run(&mut room.trace()).refused();
        assert!(line.contains(&format!("{name}: expected a file, found a pipe")), "{line}");
    }
}

#[test]
fn control_characters_of_a_path_do_not_reach_the_terminal() {
    let room = Room::of("v2");
    let inputs = room.file("inputs.safetensors");
    let arguments = ["trace", "--model", "a\rb\x1b[31m", "--output", "o", "--inputs", inputs.to_str().unwrap()];
    let mut command = dsv2(arguments);
    let line = run(&mut command).refused();
    assert!(line.contains("a\\rb\\u{1b}[31m"), "{line}");
}

#[test]
fn pieces_that_are_not_the_sequence() {
    for (case, chunks, words) in [
        ("v2", "7,1,2", "--chunks: expected lengths from 1 up that add up to 11, found [7, 1, 2]"),
        ("v2", "12", "--chunks: expected lengths from 1 up that add up to 11, found [12]"),
        ("v2", "18446744073709551615,12", "--chunks: expected lengths from 1 up that add up to 11, found"),
        ("v2", "7,0,4", "--chunks"),
        ("v2", "7,,4", "--chunks"),
        ("v2", "-7,18", "--chunks"),
        ("v2", "", "--chunks"),
        ("labels", "7,4", "--chunks: expected inputs without labels and logits_to_keep"),
        ("no-cache", "5,4", "--chunks: expected one chunk where there is no cache (use_cache is false), found 2"),
    ] {
        let room = Room::of(case);
        let line = run(room.trace().arg(format!("--chunks={chunks}"))).refused();
        assert!(line.contains(words), "{chunks}: {line}");
        assert_eq!(names(&room.path().join("out")), [""; 0]);
    }
}

#[test]
fn places_that_cannot_be_written() {
    let room = Room::of("one-token");
    let trace = |output: &Path| {
        let mut command = dsv2(["trace", "--model"]);
        command.arg(room.path().join("model")).arg("--inputs").arg(room.file("inputs.safetensors"));
        run(command.arg("--output").arg(output)).refused()
    };
    fs::write(room.out("taken"), "").unwrap();
    for (output, words) in [
        (room.out("no/such/folder"), &["no/such/folder: cannot write: "][..]),
        (room.path().join("out"), &["out: expected a file to write, found a folder"]),
        (room.out("taken/trace.safetensors"), &["taken/trace.safetensors: cannot write: "]),
        (room.out(".."), &["expected a file to write"]),
        ("".into(), &["--output"]),
    ] {
        let line = trace(&output);
        assert!(words.iter().all(|word| line.contains(word)), "{}: {line}", output.display());
        assert_eq!(names(&room.path().join("out")), ["taken"]);
        assert_eq!(names(room.path()), ["case", "model", "out"]);
    }

    // the report of a check, in the place of a file
    let ran = run(room.check(&room.file("expected.safetensors")).arg("--report").arg(room.out("taken")));
    let line = ran.refused();
    assert!(line.ends_with("taken: expected a folder to write to, found something else"), "{line}");
    assert_eq!(names(&room.path().join("out")), ["taken"]);
}

#[test]
fn a_refused_request_leaves_an_older_file_as_it_was() {
    let room = Room::of("one-token");
    run(&mut room.trace()).passes();
    let before = fs::read(room.out("trace.safetensors")).unwrap();
    edit(&room.file("model.safetensors"), |weights| match &mut weights["lm_head.weight"] {
        Values::Real(_, a) => a[[0, 0]] = f64::NAN,
        other => panic!("{}", other.describe()),
    });
    run(&mut room.trace()).refused();
    assert!(fs::read(room.out("trace.safetensors")).unwrap() == before);
    assert_eq!(names(&room.path().join("out")), ["trace.safetensors"]);
}
