//! How fast the emulator is: thread-instructions per second (an instruction of a warp counts once for each of its threads)
//! on the kernels of its own tests, each in every way of running them.

use std::time::Instant;

use criterion::Throughput;
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Arg, Emulator, Grid, Module, Options};

use crate::bench::Bench;

const SPEED: &str = include_str!("../../emulator/tests/ptx/speed.ptx");
const GEMM: &str = include_str!("../../emulator/tests/ptx/gemm.ptx");

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

    /// How many thread-instructions it is. Without options the race detector watches, which takes one thread.
    fn run(&mut self, options: Option<Options>) -> u64 {
        let Launch { gpu, module, kernel, grid, args } = self;
        let mut races = RaceDetector::new();
        let launched = match options {
            Some(options) => gpu.launch(module, kernel, *grid, args, options),
            None => gpu.launch_watched(module, kernel, *grid, args, Options::default(), &mut races),
        };
        assert!(races.races().is_empty(), "{kernel}: {:?}", races.races());
        launched.expect("the kernel runs").thread_instructions
    }
}

fn parsed(text: &str) -> Module {
    Module::parse(text).expect("the PTX of a test")
}

/// Times every kernel in every way.
pub fn run(bench: &mut Bench) {
    let one = |options: Options| Options { threads: 1, ..options };
    let all = |options: Options| Options { threads: 0, ..options };
    let ways: [(&str, Option<Options>); 5] = [
        ("unchecked-1-thread", Some(one(Options::unchecked()))),
        ("unchecked-all-threads", Some(all(Options::unchecked()))),
        ("checked-1-thread", Some(one(Options::default()))),
        ("checked-all-threads", Some(all(Options::default()))),
        ("races", None),
    ];
    let launches = [
        ("integer", Launch::of_loop("integer", 300)),
        ("single", Launch::of_loop("single", 300)),
        ("shared", Launch::of_loop("shared_traffic", 50)),
        ("mma", Launch::of_product(256)),
    ];
    let mut rows = Vec::new();
    for (name, mut launch) in launches {
        let instructions = launch.run(Some(Options::default()));
        let mut row = vec![name.to_owned()];
        for (way, options) in ways {
            let work = Throughput::Elements(instructions);
            let seconds = bench.time(&format!("emulator/{name}"), way, work, |iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    std::hint::black_box(launch.run(options));
                }
                start.elapsed()
            });
            row.push(seconds.map_or("-".into(), |seconds| format!("{:.0}", instructions as f64 / seconds / 1e6)));
        }
        rows.push(row);
    }
    rows.retain(|row: &Vec<String>| row[1..].iter().any(|cell| cell != "-"));
    let columns = format!("kernel | {}", ways.map(|(way, _)| way).join(" | "));
    let note = "An instruction of a warp counts once for each of its threads.";
    bench.table("Million thread-instructions per second", &columns, rows, &[note]);
}
