//! How fast the emulator is: thread-instructions per second (an instruction of a warp counts once for each of its threads)
//! on the kernels of its own tests, each in every way of running them.
//!
//! ```text
//! cargo bench -p dsv2-benches --bench emulator                        about a minute
//! cargo bench -p dsv2-benches --bench emulator -- --quick integer     a few seconds, those with `integer` in their name
//! ```

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Arg, Emulator, Grid, Module, Options};

const SPEED: &str = include_str!("../optimized/emulator/tests/ptx/speed.ptx");
const GEMM: &str = include_str!("../optimized/emulator/tests/ptx/gemm.ptx");

/// A launch that can be repeated: what it writes does not depend on what was there.
struct Launch {
    gpu: Emulator,
    module: Module,
    kernel: &'static str,
    grid: Grid,
    args: Vec<Arg>,
}

impl Launch {
    /// A loop of `speed.cu`: 16 blocks of 256 threads, each of which leaves one number.
    fn of_loop(kernel: &'static str, rounds: u32) -> Self {
        let mut gpu = Emulator::new();
        let grid = Grid::linear(16, 256);
        let out = gpu.allocate(16 * 256 * 4).expect("there is room");
        Launch { gpu, module: parsed(SPEED), kernel, grid, args: vec![out.into(), rounds.into()] }
    }

    /// A product of two bf16 matrices `[size, size]` with `mma.sync`, in tiles of 64 x 64 copied by `cp.async`.
    fn of_product(size: u32) -> Self {
        let mut gpu = Emulator::new();
        let bf16_one = 0x3f80u16.to_le_bytes();
        let ones = bf16_one.repeat((size * size) as usize);
        let (a, b) = (gpu.upload(&ones).expect("there is room"), gpu.upload(&ones).expect("there is room"));
        let c = gpu.allocate(u64::from(size * size) * 4).expect("there is room");
        let grid = Grid { blocks: [size / 64, size / 64, 1], threads: [128, 1, 1], shared: 0 };
        let args = vec![a.into(), b.into(), c.into(), size.into(), size.into()];
        Launch { gpu, module: parsed(GEMM), kernel: "gemm_bf16", grid, args }
    }

    /// How many thread-instructions it is.
    fn run(&mut self, options: Options) -> u64 {
        let launched = self.gpu.launch(&self.module, self.kernel, self.grid, &self.args, options);
        launched.expect("the kernel runs").thread_instructions
    }

    /// The same while the race detector watches, which takes one thread.
    fn run_watched(&mut self, options: Options) -> u64 {
        let mut races = RaceDetector::new();
        let Launch { gpu, module, kernel, grid, args } = self;
        let launched = gpu.launch_watched(module, kernel, *grid, args, options, &mut races);
        assert!(races.races().is_empty(), "{kernel}: {:?}", races.races());
        launched.expect("the kernel runs").thread_instructions
    }
}

fn parsed(text: &str) -> Module {
    Module::parse(text).expect("the PTX of a test")
}

fn emulator(criterion: &mut Criterion) {
    let launches = [
        ("integer", Launch::of_loop("integer", 300)),
        ("single", Launch::of_loop("single", 300)),
        ("shared", Launch::of_loop("shared_traffic", 50)),
        ("mma", Launch::of_product(256)),
    ];
    for (name, mut launch) in launches {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(launch.run(Options::default())));
        for (mode, options) in [("unchecked", Options::unchecked()), ("checked", Options::default())] {
            for (threads, count) in [("one thread", 1), ("all threads", 0)] {
                let options = Options { threads: count, ..options };
                group.bench_function(format!("{mode}, {threads}"), |b| b.iter(|| black_box(launch.run(options))));
            }
        }
        group.bench_function("races", |b| b.iter(|| black_box(launch.run_watched(Options::default()))));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = emulator
}
criterion_main!(benches);
