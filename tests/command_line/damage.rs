//! Files with damaged bytes: whatever they are, they are read or refused in one line, and nothing panics.

use std::fs;
use std::path::Path;

use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::case::Case;
use dsv2_reference::Dialect;
use dsv2_reference::tap::NoTap;

use crate::process::{Ran, Room, dsv2, names, run};

/// A small generator of numbers, the same ones each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % sides as u64) as usize
    }

    /// Damages a byte or a few, most of them among the first `front`, or cuts something off.
    fn damage(&mut self, bytes: &mut Vec<u8>, front: usize) {
        for _ in 0..=self.roll(3) {
            if bytes.is_empty() {
                return;
            }
            let all = bytes.len();
            let at = if self.roll(4) > 0 { self.roll(front.min(all)) } else { self.roll(all) };
            match self.roll(8) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, b"0\"{}[],:-.e\xff"[self.roll(12)]),
                2 => drop(bytes.remove(at)),
                3 | 4 => bytes[at] ^= 1 << self.roll(8),
                5 => bytes[at] = self.roll(256) as u8,
                // a digit for a digit keeps JSON readable
                _ => match bytes[..front.min(all)].iter().skip(at).position(u8::is_ascii_digit) {
                    Some(next) => bytes[at + next] = b'0' + self.roll(10) as u8,
                    None => bytes[at] = self.roll(256) as u8,
                },
            }
        }
    }
}

/// Where the text of a file ends: all of a JSON file, the header of a safetensors file.
fn end_of_text(name: &str, bytes: &[u8]) -> usize {
    if name.ends_with(".json") { bytes.len() } else { 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize }
}

#[test]
fn damaged_bytes_never_panic() {
    let room = Room::of("labels");
    let mut dice = Dice(2);
    let (mut ran, mut refused) = (0, 0);
    for name in ["config.json", "inputs.safetensors", "model.safetensors"] {
        let path = room.file(name);
        let good = fs::read(&path).unwrap();
        for _ in 0..300 {
            let mut damaged = good.clone();
            dice.damage(&mut damaged, end_of_text(name, &good));
            fs::write(&path, damaged).unwrap();
            let case =
                Case::open(&room.path().join("model"), &room.file("inputs.safetensors"), Dialect::default(), None);
            let settings = Settings { precision: Precision::F32, ..Settings::default() };
            match case.and_then(|case| Reference.run(&case, &settings, &mut NoTap)) {
                Ok(_) => ran += 1,
                Err(error) => {
                    refused += 1;
                    let line = error.to_string();
                    assert!(!line.is_empty() && !line.chars().any(char::is_control), "{line:?}");
                }
            }
        }
        fs::write(&path, good).unwrap();
    }
    assert!(ran > 30 && refused > 300, "{ran} ran, {refused} were refused");
}

#[test]
fn a_process_ends_with_status_0_or_2_whatever_the_bytes_are() {
    let room = Room::of("labels");
    let mut dice = Dice(3);
    for name in ["config.json", "inputs.safetensors", "model.safetensors"] {
        let path = room.file(name);
        let good = fs::read(&path).unwrap();
        for _ in 0..20 {
            let mut damaged = good.clone();
            dice.damage(&mut damaged, end_of_text(name, &good));
            fs::write(&path, damaged).unwrap();
            let status = run(&mut room.trace()).ends_well();
            assert!(status == 0 || status == 2);
            if status == 0 {
                fs::remove_file(room.out("trace.safetensors")).unwrap();
            }
            assert_eq!(names(&room.path().join("out")), [""; 0]);
        }
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn a_damaged_dump_is_refused_or_judged() {
    let room = Room::of("one-token");
    let good = fs::read(room.file("expected.safetensors")).unwrap();
    let dump = room.out("dump.safetensors");
    let mut dice = Dice(4);
    for _ in 0..40 {
        let mut damaged = good.clone();
        dice.damage(&mut damaged, end_of_text("dump.safetensors", &good));
        fs::write(&dump, damaged).unwrap();
        run(room.check(&dump).arg("--json")).ends_well();
    }
}

#[test]
fn a_damaged_golden_case_is_refused_or_fails() {
    let room = tempfile::tempdir().unwrap();
    let folder = room.path().join("one-token");
    fs::create_dir(&folder).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/cases/one-token");
    for name in names(&golden) {
        fs::copy(golden.join(&name), folder.join(&name)).unwrap();
    }
    let mut dice = Dice(5);
    for name in names(&golden) {
        let path = folder.join(&name);
        let good = fs::read(&path).unwrap();
        for _ in 0..20 {
            let mut damaged = good.clone();
            dice.damage(&mut damaged, end_of_text(&name, &good));
            fs::write(&path, damaged).unwrap();
            let ran = run(dsv2(["verify", "--dtype", "f32", "--golden"]).arg(room.path()));
            Ran { stderr: without_progress(&ran.stderr), ..ran }.ends_well();
        }
        fs::write(&path, good).unwrap();
    }
}

/// What `verify` says on stderr, besides how far it is.
fn without_progress(stderr: &str) -> String {
    stderr.lines().filter(|line| !line.starts_with('[')).collect::<Vec<_>>().join("\n")
}
