//! Launches a CUDA kernel on the emulator: no GPU, no driver, no toolkit. It is right; then an allocation is too small, and
//! then it lacks a barrier.
//!
//! ```text
//! cargo run --release --example emulate_kernel
//! ```
//!
//! The kernel is the project's RMSNorm (`optimized/kernels/rms_norm.cu`), compiled with `-lineinfo`, so that messages name
//! the line of the CUDA source. `Module::parse` takes the text of any PTX for sm_80.

use dsv2_optimized::{Kernel, Library};
use ptx_emulator::race::RaceDetector;
use ptx_emulator::{Arg, Emulator, Error, Grid, Module, Options};

const KERNEL: &str = "rms_norm_tuned_f32";
const ROWS: usize = 2;
const WIDTH: usize = 1000;
const EPSILON: f32 = 1e-6;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let library = Library::embedded();
    let (_, ptx) = library.find(&Kernel::new("rms_norm", KERNEL))?;
    let module = Module::parse(ptx)?;
    let y = launch(&module, ROWS, None)?;
    let furthest = y.iter().zip(expected()).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    println!("right: the furthest of {} numbers is {furthest:.0e} from the formula", y.len());

    // Room for one row less than the kernel writes.
    let error = launch(&module, ROWS - 1, None).expect_err("the second row is out of bounds");
    println!("out of bounds: {error}");

    // Without barriers, warps read each other's partial sums before they are written. On a GPU it may work for years.
    let module = Module::parse(&ptx.replace("bar.sync", "// bar.sync"))?;
    let mut races = RaceDetector::new();
    let outcome = launch(&module, ROWS, Some(&mut races));
    for race in races.races() {
        println!("race: {race}");
    }
    if let Err(error) = outcome {
        println!("and: {error}");
    }
    Ok(())
}

fn x(i: usize) -> f32 {
    (i % 17) as f32 - 8.0
}

/// y = x / sqrt(mean(x²) + epsilon), with weights of 1.
fn expected() -> Vec<f32> {
    let rows = (0..ROWS).map(|row| (0..WIDTH).map(|i| x(row * WIDTH + i)).collect::<Vec<f32>>());
    let norm = |row: Vec<f32>| {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / WIDTH as f32;
        row.into_iter().map(move |x| x / (mean + EPSILON).sqrt())
    };
    rows.flat_map(norm).collect()
}

/// Normalises the rows, with room for so many of them in the result.
fn launch(module: &Module, room: usize, races: Option<&mut RaceDetector>) -> Result<Vec<f32>, Error> {
    let mut gpu = Emulator::new();
    let bytes = |numbers: Vec<f32>| numbers.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let data = gpu.upload(&bytes((0..ROWS * WIDTH).map(x).collect()))?;
    let weight = gpu.upload(&bytes(vec![1.0; WIDTH]))?;
    let y = gpu.allocate_named("y", (room * WIDTH * size_of::<f32>()) as u64)?;

    // rms_norm_tuned_f32(const float* x, long long stride, const float* weight, float* y, int rows, int width, float eps)
    let (stride, rows, width) = (WIDTH as i64, ROWS as i32, WIDTH as i32);
    let args = [data.into(), stride.into(), weight.into(), y.into(), rows.into(), width.into(), Arg::from(EPSILON)];
    let grid = Grid::linear(ROWS as u32, 256);
    match races {
        None => gpu.launch(module, KERNEL, grid, &args, Options::default())?,
        Some(races) => gpu.launch_watched(module, KERNEL, grid, &args, Options::default(), races)?,
    };
    let numbers = gpu.read(y)?;
    Ok(numbers.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect())
}
