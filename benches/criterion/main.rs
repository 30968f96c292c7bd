//! Everything that is measured, in one program and one run, so that ratios are of the same machine in the same minutes.
//!
//! ```text
//! cargo bench                      all of it: a quarter of an hour on 2 cores
//! cargo bench -- --quick           smaller models and fewer samples: under 2 minutes
//! cargo bench -- decode/mid        what has that in its name (a regular expression)
//! ```
//!
//! The results go to target/bench/results.json, criterion's own to target/criterion.
//! `cargo run --release -p dsv2-bench-report -- report` makes benches/REPORT.md of the first, `... -- compare` compares two
//! of them.

mod bench;
mod cache;
mod ceilings;
mod emulator;
mod headline;
mod kernels;
mod provenance;
mod throughput;
mod work;

use bench::Bench;

/// Measures and reports on one subject.
type Part = fn(&mut Bench);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut bench = Bench::from_args();
    // Between the parts, the load that never changes is timed again.
    let parts: [(&str, Part); 5] = [
        ("throughput", throughput::run),
        ("headline", headline::run),
        ("cache", cache::run),
        ("kernels", kernels::run),
        ("emulator", emulator::run),
    ];
    bench.time_control();
    for (name, part) in parts {
        bench.begin(name);
        part(&mut bench);
        bench.time_control();
    }
    bench.finish()
}
