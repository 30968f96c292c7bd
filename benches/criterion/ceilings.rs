//! What this machine can do at most, measured in the same run as all else: reading memory, and multiplying and adding in
//! registers. The same two loads, which never change, show how steady the machine was.

use std::hint::black_box;
use std::time::Instant;

use dsv2_bench_report::{Better, Measurement};
use multiversion::multiversion;
use rayon::prelude::*;

/// More than any cache holds.
const READ_BYTES: usize = 1 << 29;

/// Multiplications with addition of one round: 16 chains of 16 numbers, so that no chain waits for itself. They are a
/// tile of a matrix product, 4 x 4, which is a form that compilers keep in registers.
const CHAINS: usize = TILE * TILE;
const TILE: usize = 4;
const LANES: usize = 16;
/// Rounds that go by before the numbers come again.
const PERIOD: usize = 8;
const ROUNDS: usize = 8_000_000;

/// The most that was seen.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes read from memory in a second, by all threads.
    pub bytes_per_second: f64,
    /// fp32 operations in a second, by all threads; a multiplication with addition is two.
    pub flops_per_second: f64,
}

impl Ceilings {
    /// The least time in which so much can be done, in seconds.
    pub fn floor(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.bytes_per_second).max(flops / self.flops_per_second)
    }
}

/// The two loads and the seconds that they took.
pub struct Control {
    memory: Vec<u64>,
    read: Vec<f64>,
    multiply: Vec<f64>,
}

impl Control {
    /// Nothing timed yet.
    pub fn new() -> Self {
        Control { memory: vec![1; READ_BYTES / 8], read: Vec::new(), multiply: Vec::new() }
    }

    /// Each load a few times; the best of them is what the machine could do just now.
    pub fn time(&mut self) {
        let best = |load: &dyn Fn()| {
            let seconds = |_| {
                let start = Instant::now();
                load();
                start.elapsed().as_secs_f64()
            };
            (0..5).map(seconds).fold(f64::INFINITY, f64::min)
        };
        self.read.push(best(&|| read(&self.memory)));
        self.multiply.push(best(&multiply));
    }

    /// The best of the run.
    pub fn ceilings(&self) -> Ceilings {
        let least = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
        Ceilings {
            bytes_per_second: READ_BYTES as f64 / least(&self.read),
            flops_per_second: flops() / least(&self.multiply),
        }
    }

    /// How far the load strayed that strayed more: the range of its times / their median. The largest and the least time are
    /// left out: a single disturbed one must not make the gate lenient. (Each load is timed before and after all parts.)
    pub fn noise(&self) -> f64 {
        let spread = |seconds: &[f64]| {
            let seconds = sorted(seconds);
            let inner = &seconds[1..seconds.len() - 1];
            (inner[inner.len() - 1] - inner[0]) / seconds[seconds.len() / 2]
        };
        spread(&self.read).max(spread(&self.multiply))
    }

    /// For comparing runs, and what a reader must know of them.
    pub fn measurements(&self) -> ([Measurement; 2], String) {
        let id = |name: &str| format!("{}{name}", dsv2_bench_report::compare::CONTROL);
        let measurements = [
            rate(id("read"), "B/s", READ_BYTES as f64, &self.read),
            rate(id("multiply-add-f32"), "flop/s", flops(), &self.multiply),
        ];
        let note = format!(
            "Reading is a sum over {} MiB, multiplying is {CHAINS} chains of {LANES} fp32 numbers in registers; both on all \
             threads, best of 5 each time.",
            READ_BYTES >> 20
        );
        (measurements, note)
    }
}

/// Work done per second, from the seconds that it took several times.
pub fn rate(id: String, unit: &str, work: f64, seconds: &[f64]) -> Measurement {
    let [least, median, most] = least_median_most(seconds);
    let rates = [most, median, least].map(|seconds| work / seconds);
    Measurement::sampled(id, unit, Better::More, rates, seconds.len())
}

/// Of several times.
pub fn least_median_most(seconds: &[f64]) -> [f64; 3] {
    let seconds = sorted(seconds);
    [seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]]
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

fn read(memory: &[u64]) {
    let sum = |part: &[u64]| part.iter().fold(0u64, |sum, &word| sum.wrapping_add(word));
    black_box(memory.par_chunks(1 << 17).map(sum).reduce(|| 0, u64::wrapping_add));
}

fn flops() -> f64 {
    (2 * CHAINS * LANES * ROUNDS * rayon::current_num_threads()) as f64
}

fn multiply() {
    let numbers = [0.001; (PERIOD + 1) * TILE * LANES];
    rayon::broadcast(|_| chains(black_box(&numbers)));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
#[allow(clippy::needless_range_loop)]
fn chains(numbers: &[f32]) {
    let (columns, rows) = numbers.as_chunks::<LANES>().0.split_at(TILE);
    let mut y = [[0.0; LANES]; TILE];
    y.copy_from_slice(columns);
    let mut sums = [[0.0_f32; LANES]; CHAINS];
    for _ in 0..ROUNDS / PERIOD {
        for x in rows.chunks_exact(TILE) {
            for r in 0..TILE {
                for c in 0..TILE {
                    sums[TILE * r + c] = multiply_add(x[r], y[c], sums[TILE * r + c]);
                }
            }
        }
    }
    black_box(sums);
}

#[inline(always)]
fn multiply_add(x: [f32; LANES], y: [f32; LANES], mut sum: [f32; LANES]) -> [f32; LANES] {
    for l in 0..LANES {
        sum[l] = x[l].mul_add(y[l], sum[l]);
    }
    sum
}
