//! Times on a GPU, against what the same GPU can do at most.

use std::sync::Arc;
use std::time::Duration;

use criterion::Throughput;
use dsv2_bench_report::{Axis, Plot, Series, Table};
use dsv2_optimized::{Cuda, Device, Element, Result, Variant};

use super::case::{Case, Launch, Scale, Work};
use super::ceilings::{self, Ceilings};
use super::{FAMILIES, by_operator, shape};
use crate::bench::Bench;

/// Between two uses of the same operands others of so many bytes are used: twice the L2 cache of the largest GPUs.
const ROTATED: usize = 256 << 20;
/// But no more than so many copies: what a step hands from one small kernel to the next is in the cache there too.
const MOST_COPIES: usize = 64;

/// A case and its seconds.
struct Timed {
    case: Case,
    seconds: f64,
    floor: f64,
    limit: &'static str,
}

/// Times every operator, if there is a GPU.
pub fn run(bench: &mut Bench) {
    let scale = Scale::Gpu(bench.profile());
    let families: Vec<(&str, Vec<Case>)> = FAMILIES
        .into_iter()
        .map(|(title, cases)| {
            (title, by_operator(cases(scale)).into_iter().filter(|case| bench.wants(&case.id())).collect())
        })
        .collect();
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
    for (title, cases) in families {
        let mut timed = vec![];
        for case in cases {
            match time(bench, &cuda, &case) {
                Ok(Some(seconds)) => {
                    let (floor, limit) = found.floor(&case);
                    timed.push(Timed { case, seconds, floor, limit });
                }
                Ok(None) => (),
                Err(error) => bench.not_run(&case.id(), error),
            }
        }
        if !timed.is_empty() {
            bench.table(table(title, &timed, &found));
            plots(&timed).into_iter().for_each(|plot| bench.plot(plot));
        }
    }
}

/// Seconds of a launch, of all its kernels together.
fn time(bench: &mut Bench, cuda: &Arc<Cuda>, case: &Case) -> Result<Option<f64>> {
    let device: Arc<dyn Device> = cuda.clone();
    let copies = ROTATED.div_ceil(case.work.bytes()).min(MOST_COPIES);
    let mut launches: Vec<Launch> = vec![case.prepare(&device, 0)?];
    // Fewer copies where there is no room for more.
    launches.extend((1..copies as u64).map_while(|seed| case.prepare(&device, seed).ok()));
    // The first launch loads the kernel, and shows whether it runs at all.
    launches.iter().try_for_each(|launch| launch())?;
    cuda.timings()?;

    let mut next = (0..launches.len()).cycle();
    let mut failed = None;
    let seconds =
        bench.time(&case.group(), &case.shape(), Some(Throughput::Bytes(case.work.bytes() as u64)), |rounds| {
            let mut round = || -> Result<f64> {
                for copy in next.by_ref().take(rounds as usize) {
                    launches[copy]()?;
                }
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
        None => Ok(seconds.map(|seconds| seconds.median)),
    }
}

fn table(title: &str, timed: &[Timed], ceilings: &Ceilings) -> Table {
    let row = |Timed { case, seconds, floor, limit }: &Timed| {
        let Work { flops, .. } = case.work;
        vec![
            case.operator.into(),
            format!("{} {}", case.variant, case.element),
            shape(case),
            format!("{:.1}", seconds * 1e6),
            format!("{:.0}", case.work.bytes() as f64 / seconds / 1e9),
            format!("{:.2}", flops as f64 / seconds / 1e12),
            format!("{:.1}", floor * 1e6),
            (*limit).into(),
            format!("{:.0} %", 100.0 * floor / seconds),
        ]
    };
    Table {
        section: "kernels".into(),
        title: format!("{title}: time on the GPU"),
        columns: ["operator", "kernel", "shape", "us", "GB/s", "TFLOP/s", "floor, us", "limit", "of the floor"]
            .map(String::from)
            .into(),
        rows: timed.iter().map(row).collect(),
        notes: vec![
            "GB/s and TFLOP/s are of the bytes and operations that the shape needs (each byte of operands and \
             results once), not of those that the kernel moves. The floor is the longer of the times that these take \
             at the ceilings above; 100 % is the best that is possible."
                .into(),
            format!(
                "Operands are random, and rotated over {} MiB or {MOST_COPIES} copies, so that large ones are not in \
                 the cache. A time includes its launch: one that does nothing takes {:.1} us.",
                ROTATED >> 20,
                ceilings.launch * 1e6
            ),
        ],
    }
}

/// The time against the floor, for each operator with enough shapes.
fn plots(timed: &[Timed]) -> Vec<Plot> {
    let mut operators: Vec<&str> = timed.iter().map(|timed| timed.case.operator).collect();
    operators.dedup();
    operators.into_iter().filter_map(|operator| plot(operator, timed)).collect()
}

fn plot(operator: &str, timed: &[Timed]) -> Option<Plot> {
    let tuned = |timed: &&Timed| {
        let Case { variant, element, .. } = timed.case;
        timed.case.operator == operator && (variant, element) == (Variant::Tuned, Element::Bf16)
    };
    let timed: Vec<&Timed> = timed.iter().filter(tuned).collect();
    if timed.len() < 3 {
        return None;
    }
    let mut series = vec![];
    for model in ["V2-Lite", "V2"] {
        let of_model = timed.iter().filter(|timed| timed.case.model == model);
        let mut points: Vec<(f64, f64)> = of_model.map(|timed| (timed.floor * 1e6, timed.seconds * 1e6)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.push(Series { name: model.into(), points });
    }
    let floors = timed.iter().map(|timed| timed.floor * 1e6);
    let (least, most) = floors.fold((f64::MAX, 0.0_f64), |(least, most), floor| (least.min(floor), most.max(floor)));
    series.push(Series { name: "the floor".into(), points: vec![(least, least), (most, most)] });
    series.retain(|series| !series.points.is_empty());
    let axis = |label: &str| Axis { label: label.into(), log: true };
    Some(Plot {
        section: "kernels".into(),
        title: format!("{operator}, tuned, bf16: time against the floor"),
        file: format!("kernels-{}", operator.replace('_', "-")),
        x: axis("least time at this GPU's ceilings, us"),
        y: axis("time, us"),
        series,
    })
}
