//! Any text as results of benchmarks: read, compared with themselves, and made a report.

#![no_main]

use dsv2_bench_report::compare::{Change, compare};
use dsv2_bench_report::{Results, report};
use dsv2_fuzz::check_message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a place for a file");
    std::io::Write::write_all(&mut file, bytes).expect("room for it");
    match Results::read(file.path()) {
        Err(error) => check_message(&error),
        Ok(results) => {
            assert!(!compare(&results, &results).iter().any(Change::is_regression), "it is worse than itself");
            assert!(!report::markdown(&results).contains("<script"));
        }
    }
});
