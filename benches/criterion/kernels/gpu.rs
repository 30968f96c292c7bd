//! Times on a GPU, against what the same GPU can do at most.

use std::sync::Arc;
use std::time::Duration;

use criterion::Throughput;
use dsv2_optimized::{Cuda, Device, Result};

use super::case::{Case, Scale};
use super::ceilings::{self, Ceilings};
use super::{FAMILIES, shape};
use crate::bench::Bench;

/// Between two uses of the same operands others of so many bytes are used: twice the L2 cache of the largest GPUs.
const ROTATED: usize = 256 << 20;
/// But no more than so many copies: what a step hands from one small kernel to the next is in the cache there too.
const MOST_COPIES: usize = 64;

/// Times every operator, if there is a GPU.
pub fn run(bench: &mut Bench) {
    let scale = Scale::Gpu(bench.profile());
    let wanted = |cases: Vec<Case>| -> Vec<Case> { cases.into_iter().filter(|case| bench.wants(&case.id())).collect() };
    let families = FAMILIES.map(|(title, cases)| (title, wanted(cases(scale))));
    if families.iter().all(|(_, cases)| cases.is_empty()) {
        return;
    }
    let what = "the time of kernels on a GPU";
    let cuda = match Cuda::timing(ceilings::library()) {
        Ok(cuda) => cuda,
        Err(error) => return bench.not_run(what, error),
    };
    let found = match Ceilings::measure(&cuda) {
        Ok(ceilings) => ceilings,
        Err(error) => return bench.not_run(what, error),
    };
    bench.on_gpu(cuda.name());
    found.report(bench);
    let operands = format!(
        "Operands are random, and rotated over {} MiB or {MOST_COPIES} copies, so that large ones are not in the cache. A time \
         includes its launch: one that does nothing takes {:.1} us.",
        ROTATED >> 20,
        found.launch() * 1e6
    );
    for (title, cases) in families {
        let mut rows = vec![];
        for case in cases {
            match time(bench, &cuda, &case) {
                Ok(timed) => rows.extend(timed.map(|(bytes, seconds)| row(&case, bytes, seconds, &found))),
                Err(error) => bench.not_run(&case.id(), error),
            }
        }
        bench.table(&format!("{title}: time on the GPU"), COLUMNS, rows, &[NEEDED, &operands]);
    }
}

/// Bytes that a launch needs, and its seconds, of all its kernels together.
fn time(bench: &mut Bench, cuda: &Arc<Cuda>, case: &Case) -> Result<Option<(usize, f64)>> {
    let device: Arc<dyn Device> = cuda.clone();
    let mut copies = vec![case.prepare(&device, 0)?];
    let bytes = copies[0].read + copies[0].written;
    let wanted = ROTATED.div_ceil(bytes).min(MOST_COPIES) as u64;
    // Fewer copies where there is no room for more.
    copies.extend((1..wanted).map_while(|seed| case.prepare(&device, seed).ok()));
    // The first launch loads the kernel, and shows whether it runs at all.
    copies.iter().try_for_each(|copy| (copy.launch)())?;
    cuda.timings()?;

    let mut next = copies.iter().cycle();
    let mut failed = None;
    let seconds = bench.time(&case.group(), &case.shape(), Throughput::Bytes(bytes as u64), |rounds| {
        let mut round = || -> Result<f64> {
            next.by_ref().take(rounds as usize).try_for_each(|copy| (copy.launch)())?;
            Ok(cuda.timings()?.iter().map(|time| time.microseconds).sum())
        };
        // Criterion cannot be told of an error: it gets a number, which nobody sees.
        let microseconds = round().unwrap_or_else(|error| {
            failed = Some(error);
            rounds as f64 * 1e3
        });
        Duration::from_secs_f64(microseconds * 1e-6)
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(seconds.map(|seconds| (bytes, seconds))),
    }
}

fn row(case: &Case, bytes: usize, seconds: f64, ceilings: &Ceilings) -> Vec<String> {
    let (floor, limit) = ceilings.floor(case, bytes);
    vec![
        case.operator.into(),
        format!("{} {}", case.variant, case.element),
        shape(case),
        format!("{:.1}", seconds * 1e6),
        format!("{:.0}", bytes as f64 / seconds / 1e9),
        format!("{:.2}", case.flops as f64 / seconds / 1e12),
        format!("{:.1}", floor * 1e6),
        limit.into(),
        format!("{:.0} %", 100.0 * floor / seconds),
    ]
}

const COLUMNS: &str = "operator | kernel | shape | us | GB/s | TFLOP/s | floor, us | limit | of the floor";

const NEEDED: &str = "GB/s and TFLOP/s are of the bytes and operations that the shape needs (each byte of operands and results \
                      once), not of those that the kernel moves. The floor is the longer of the times that these take at the \
                      ceilings above; 100 % is the best that is possible.";
