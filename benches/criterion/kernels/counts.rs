//! What kernels ask for, counted by the emulator: the same on every machine and in every run.

use std::sync::Arc;

use dsv2_bench_report::{Better, Measurement};
use dsv2_optimized::{Device, Result};
use dsv2_predict::{Launch, Sketch};
use ptx_emulator::profile::{Class, Profile};

use super::case::{Case, Prepared, Scale};
use super::ladder::Ladder;
use super::predictions::{self, Prediction};
use super::{FAMILIES, ratio, shape};
use crate::bench::Bench;

/// What the launches of an operator did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub launches: u64,
    /// Of warps.
    pub instructions: u64,
    /// Of these, `mma`.
    pub matrix: u64,
    /// Of these, barriers of a block.
    pub barriers: u64,
    /// Bytes of global memory that multiprocessors ask for, in sectors of 32 bytes.
    pub read: u64,
    pub written: u64,
    pub bank_conflicts: u64,
    pub flops: u64,
}

/// Bytes of a sector.
const SECTOR: u64 = 32;

impl Count {
    /// Of these launches together.
    pub fn of<'a>(launches: impl IntoIterator<Item = &'a Profile>) -> Self {
        let mut count = Count::default();
        for profile in launches {
            count.launches += 1;
            for line in &profile.lines {
                let counts = line.counts;
                count.instructions += counts.warp_instructions;
                count.flops += counts.flops;
                count.bank_conflicts += counts.bank_conflicts();
                if line.class == Class::Matrix {
                    count.matrix += counts.warp_instructions;
                }
                let barrier = ["bar.", "barrier."].iter().any(|name| line.opcode.starts_with(name));
                if barrier && !line.opcode.starts_with("bar.warp") {
                    count.barriers += counts.warp_instructions;
                }
                // A line either reads or writes; an atomic operation does both.
                let sectors = SECTOR * counts.sectors;
                count.read += if counts.global.read + counts.global.atomic > 0 { sectors } else { 0 };
                count.written += if counts.global.written + counts.global.atomic > 0 { sectors } else { 0 };
            }
        }
        count
    }

    /// For comparing runs: less is better of everything.
    pub fn keep(&self, bench: &mut Bench, id: &str) {
        let numbers = [
            ("launches", "", self.launches),
            ("instructions", "", self.instructions),
            ("matrix-instructions", "", self.matrix),
            ("barriers", "", self.barriers),
            ("bytes-read", "B", self.read),
            ("bytes-written", "B", self.written),
            ("bank-conflicts", "", self.bank_conflicts),
        ];
        for (name, unit, number) in numbers {
            bench.keep(Measurement::exact(format!("{id}/{name}"), unit, Better::Less, number as f64));
        }
    }
}

/// Counts every operator, and predicts times from the counts.
pub fn run(bench: &mut Bench) {
    let mut ladder = Ladder::default();
    for (title, cases) in FAMILIES {
        let (mut rows, mut predicted) = (vec![], vec![]);
        for case in cases(Scale::Counts(bench.profile())) {
            if !bench.wants(&case.id()) {
                continue;
            }
            match count(&case) {
                Ok((prepared, launches)) => {
                    let count = Count::of(launches.iter().map(|launch| &launch.profile));
                    count.keep(bench, &case.id());
                    rows.push(row(&case, &prepared, &count));
                    let prediction = Prediction::new(&case, &prepared, &launches);
                    prediction.keep(bench, &case.id());
                    predicted.push(prediction.row(&case));
                    ladder.add(&case, count, prediction);
                }
                Err(error) => bench.not_run(&case.id(), error),
            }
        }
        bench.table(&format!("{title}: what the kernels ask for, counted by the emulator"), COLUMNS, rows, &NOTES);
        predictions::table(bench, title, predicted);
    }
    ladder.table(bench);
}

fn count(case: &Case) -> Result<(Prepared, Vec<Launch>)> {
    let sketch = Sketch::running();
    let device: Arc<dyn Device> = sketch.clone();
    let prepared = case.prepare(&device, 1)?;
    (prepared.launch)()?;
    Ok((prepared, sketch.launches()))
}

fn row(case: &Case, needed: &Prepared, count: &Count) -> Vec<String> {
    let of = |part: u64, whole: usize| ratio(part as f64, whole as f64);
    vec![
        case.operator.into(),
        format!("{} {}", case.variant, case.element),
        shape(case),
        count.launches.to_string(),
        count.instructions.to_string(),
        count.matrix.to_string(),
        of(count.flops, case.flops),
        count.read.to_string(),
        of(count.read, needed.read),
        count.written.to_string(),
        of(count.written, needed.written),
        count.bank_conflicts.to_string(),
        count.barriers.to_string(),
    ]
}

const COLUMNS: &str = "operator | kernel | shape | launches | instructions | of them mma | flops, x needed | bytes read | \
                       x needed | bytes written | x needed | bank conflicts | barriers";

const NOTES: [&str; 2] = [
    "Counts, not times; the same in every run. An instruction of a warp counts once, and so does a barrier for each warp that \
     comes to it. Bytes are sectors of 32 that multiprocessors ask for: a byte that several warps ask for counts each time, \
     though a GPU's caches may hold it.",
    "Needed is what the shape demands: each byte of the operands once (a mixture's weights only of experts that have a \
     token), each byte of the result once, and the operations of the formula. More operations than needed are mostly those \
     of tiles that are not full.",
];
