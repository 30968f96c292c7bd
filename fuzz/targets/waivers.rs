//! Any text as waivers.toml.

#![no_main]

use dsv2::outcome::Outcome;
use dsv2::waivers::Waivers;
use dsv2_fuzz::check_message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a place for a file");
    std::io::Write::write_all(&mut file, bytes).expect("room for it");
    match Waivers::read(file.path()) {
        Err(error) => check_message(&error),
        // What did not fail is never waived.
        Ok(waivers) => {
            let kept = waivers.apply("cuda", "v2", Outcome::NotJudged("nothing".into()));
            assert!(matches!(kept, Outcome::NotJudged(_)));
        }
    }
});
