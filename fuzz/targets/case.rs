//! Any text as case.json. The seed is that of a small golden case.

#![no_main]

use std::path::Path;

use dsv2::golden::CaseFile;
use dsv2_fuzz::check_message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match CaseFile::parse(Path::new("case.json"), bytes, "one-token") {
        Err(error) => check_message(&error),
        Ok(file) => assert_eq!(file.name, "one-token"),
    }
});
