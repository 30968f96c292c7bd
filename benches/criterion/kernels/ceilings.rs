//! What a GPU can do at most, measured in the same run: reading memory, products of bf16 matrices, fp32, launches.

use std::sync::Arc;

use dsv2_bench_report::{Better, Measurement};
use dsv2_optimized::{Arg, Cuda, Device, Element, Grid, Kernel, Library, Result, Tensor, Variant};

use super::case::{Case, Data};
use crate::bench::Bench;
use crate::ceilings::{least_median_most, rate};

/// Made of `ceilings.cu` by `python optimized/nvrtc.py benches/criterion/kernels/ceilings.cu`.
const PTX: &str = include_str!("ceilings.ptx");

const THREADS: u32 = 256;
const BLOCKS: u32 = 1 << 16;
const READ_BYTES: usize = 1 << 30;
/// As many blocks as are good at reading.
const READ_BLOCKS: u32 = 1 << 13;
const MATRIX_ROUNDS: u32 = 256;
const MULTIPLY_ROUNDS: u32 = 2048;
/// How often each is timed.
const TIMES: usize = 12;

/// The kernels of the model, and those of the ceilings.
pub fn library() -> Library {
    Library::embedded().with("ceilings", PTX)
}

/// What was measured of each load. The best of it is what floors are made of.
pub struct Ceilings {
    /// Bytes in a second.
    read: Measurement,
    /// Operations in a second: bf16 by `mma.sync`, and fp32.
    matrix: Measurement,
    multiply: Measurement,
    /// Seconds of a launch that does nothing.
    nothing: Measurement,
}

impl Ceilings {
    /// Times each load a few times.
    pub fn measure(cuda: &Arc<Cuda>) -> Result<Self> {
        let device: Arc<dyn Device> = cuda.clone();
        let data = Data::new(&device, (Variant::Tuned, Element::F32), 1);
        let memory = data.numbers(&[READ_BYTES / 4], 1.0)?;
        let out = data.room_of(Element::I32, &[BLOCKS as usize])?;
        let measured = |load: Load| -> Result<Measurement> {
            let mut seconds = vec![];
            for _ in 0..TIMES {
                device.launch(&Kernel::new("ceilings", load.kernel), load.grid, &load.args)?;
                seconds.extend(cuda.timings()?.iter().map(|time| time.microseconds * 1e-6));
            }
            // The first launch loads the kernel.
            seconds.remove(0);
            Ok(load.measurement(&seconds))
        };
        let [read, matrix, multiply, nothing] = loads(&memory, &out).map(measured);
        Ok(Ceilings { read: read?, matrix: matrix?, multiply: multiply?, nothing: nothing? })
    }

    /// Seconds of a launch that does nothing.
    pub fn launch(&self) -> f64 {
        self.nothing.low
    }

    /// The least time of a case that needs so many bytes, in seconds, and what sets it.
    pub fn floor(&self, case: &Case, bytes: usize) -> (f64, &'static str) {
        let memory = bytes as f64 / self.read.high;
        let (rate, unit) = if case.matrix { (self.matrix.high, "matrix") } else { (self.multiply.high, "fp32") };
        let arithmetic = case.flops as f64 / rate;
        if memory >= arithmetic { (memory, "memory") } else { (arithmetic, unit) }
    }

    /// Puts them into the report.
    pub fn report(&self, bench: &mut Bench) {
        let note = format!(
            "Reading {} MiB of random numbers; mma.sync, the instruction of the kernels, in registers (Hopper's \
             wgmma is faster); fp32 multiplication with addition in registers; a launch that does nothing. The \
             best of each is what floors are made of.",
            READ_BYTES >> 20
        );
        let measurements = [&self.read, &self.matrix, &self.multiply, &self.nothing].map(Measurement::clone);
        bench.loads("Ceilings of the GPU", &measurements, &note);
    }
}

/// A launch, and its bytes or operations.
struct Load {
    kernel: &'static str,
    unit: &'static str,
    work: f64,
    grid: Grid,
    args: Vec<Arg>,
}

fn loads(memory: &Tensor, out: &Tensor) -> [Load; 4] {
    let all = Grid::linear(BLOCKS, THREADS);
    let (threads, warps) = (f64::from(BLOCKS * THREADS), f64::from(BLOCKS * THREADS / 32));
    // As ceilings.cu says: 8 chains of 4096 operations for each warp and round, 16 chains of 2 for each thread.
    let matrix_flops = warps * f64::from(MATRIX_ROUNDS) * 8.0 * 4096.0;
    let multiply_flops = threads * f64::from(MULTIPLY_ROUNDS) * 16.0 * 2.0;
    let read = vec![memory.arg(), (READ_BYTES as u64 / 16).into(), out.arg()];
    let multiply = vec![out.arg(), MULTIPLY_ROUNDS.into(), 0.999_f32.into(), 0.001_f32.into()];
    let load = |kernel, unit, work, grid, args| Load { kernel, unit, work, grid, args };
    [
        load("read_only", "B/s", READ_BYTES as f64, Grid::linear(READ_BLOCKS, THREADS), read),
        load("matrix_bf16", "flop/s", matrix_flops, all, vec![out.arg(), MATRIX_ROUNDS.into()]),
        load("multiply_f32", "flop/s", multiply_flops, all, multiply),
        load("nothing", "s", 1.0, Grid::linear(1, 32), vec![]),
    ]
}

impl Load {
    /// Rates, or for a launch the seconds themselves.
    fn measurement(&self, seconds: &[f64]) -> Measurement {
        let id = format!("kernels/ceilings/{}", self.kernel);
        if self.unit != "s" {
            return rate(id, self.unit, self.work, seconds);
        }
        let ends = least_median_most(seconds);
        Measurement::sampled(id, self.unit, Better::Less, ends, seconds.len())
    }
}
