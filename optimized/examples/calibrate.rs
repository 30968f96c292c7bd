//! What tensor cores and approximate instructions of this GPU give, bit by bit, beside what the emulator says.
//!
//! ```text
//! calibrate                       on a GPU
//! calibrate --device emulated     the emulator beside itself
//! ```
//!
//! Nobody documents how tensor cores add up, nor the last bits of approximations. So each way of adding that the emulator
//! knows is tried on the same numbers, and those that explain every bit are named. Exit status 1: something is further off
//! than any such way allows, or than the PTX manual does.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use dsv2_optimized::{Arg, Cuda, Device, Emulated, Grid, Kernel, Library, Result};
use dsv2_reference::weights::generator::splitmix64;
use half::bf16;
use ptx_emulator::numeric::mma::Summation;
use ptx_emulator::{DevicePointer, Emulator, Module, Options};

/// Compares bits with the emulator's.
#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value_t = On::Cuda)]
    device: On,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum On {
    Cuda,
    Emulated,
}

const PTX: &str = include_str!("calibrate.ptx");
const MODULE: &str = "calibrate";

/// Warps, each with numbers of its own.
const WARPS: usize = 64;

/// Ways in which products may be added up.
const WAYS: [Summation; 10] = {
    const fn aligned(terms: u32, extra_bits: u32) -> Summation {
        Summation::Aligned { terms, extra_bits }
    }
    [
        Summation::Wide,
        Summation::Sequential,
        aligned(4, 0),
        aligned(4, 1),
        aligned(8, 0),
        aligned(8, 1),
        aligned(8, 2),
        aligned(16, 1),
        aligned(16, 2),
        aligned(16, 3),
    ]
};

/// Instructions with one operand, the range of operands, and how many units in the last place the manual allows.
const APPROXIMATE: [(&str, [f32; 2], u32); 3] = [
    ("ex2_approx_f32", [-120.0, 30.0], 2),
    ("ex2_approx_ftz_f32", [-120.0, 30.0], 2),
    ("rcp_approx_ftz_f32", [1e-3, 1e6], 1),
];
const OPERANDS: usize = 1 << 16;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let library = Library::embedded().with(MODULE, PTX);
    let device: Arc<dyn Device> = match arguments.device {
        On::Cuda => Cuda::new(library)?,
        On::Emulated => Emulated::new(library),
    };
    println!("{}", device.name());
    let mut right = true;
    let mut explains = [true; WAYS.len()];
    println!(
        "\nmma.m16n8k16 bf16, sums in fp32: elements of {} that differ from the emulator's, by its way to add",
        WARPS * 128
    );
    println!("{:>28} {}", "numbers, steps", WAYS.map(|way| format!("{:>9}", name(way))).concat());
    for (what, spread, cancel) in [("alike", 1, false), ("2^-8 to 2^8", 8, false), ("that cancel", 4, true)] {
        for steps in [1, 4, 36] {
            let chain = Chain::new(steps, spread, cancel);
            let found = chain.on(&device)?;
            let sums: Vec<Vec<f32>> = WAYS.iter().map(|way| chain.emulated(*way)).collect::<Result<_>>()?;
            let counts: Vec<usize> = sums.iter().map(|sums| differing(&found, sums)).collect();
            explains.iter_mut().zip(&counts).for_each(|(explains, count)| *explains &= *count == 0);
            let cells: String = counts.iter().map(|count| format!("{count:>9}")).collect();
            println!("{:>28} {cells}", format!("{what}, {steps}"));
            if let Some(off) = chain.too_far(&found, &sums[0]) {
                println!("  {off}");
                right = false;
            }
        }
    }
    let ways: Vec<String> =
        WAYS.iter().zip(explains).filter(|(_, explains)| *explains).map(|(way, _)| name(*way)).collect();
    match ways.is_empty() {
        true => println!("no way explains every bit"),
        false => println!("every bit is explained by: {}", ways.join(", ")),
    }
    println!("\napproximations: the emulator rounds correctly");
    for (entry, range, allowed) in APPROXIMATE {
        let operands = operands(range);
        let (found, expected) = (approximate(&device, entry, &operands)?, emulated_approximation(entry, &operands)?);
        let apart = |(a, b): (&f32, &f32)| u64::from(a.to_bits().abs_diff(b.to_bits()));
        let differ = found.iter().zip(&expected).filter(|pair| apart(*pair) > 0).count();
        let most = found.iter().zip(&expected).map(apart).max().unwrap_or(0);
        println!(
            "{entry:>28}: {differ} of {OPERANDS} differ, by {most} units in the last place at most ({allowed} allowed)"
        );
        // The emulator's own rounding is half a unit.
        right &= most <= u64::from(allowed) + 1;
    }
    println!("\n{}", if right { "within what is allowed" } else { "NOT within what is allowed" });
    Ok(right)
}

fn name(way: Summation) -> String {
    match way {
        Summation::Wide => "wide".into(),
        Summation::Sequential => "serial".into(),
        Summation::Aligned { terms, extra_bits } => format!("{terms}+{extra_bits}"),
    }
}

fn differing(a: &[f32], b: &[f32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
}

/// A chain of products of each warp, each added to the sum of those before; as fragments, of which each lane has its words.
struct Chain {
    steps: usize,
    a: Vec<u32>,
    b: Vec<u32>,
    c: Vec<f32>,
}

impl Chain {
    /// Numbers around powers of two from `2^-spread` to `2^spread`; or pairs that cancel each other but for a rest.
    fn new(steps: usize, spread: i32, cancel: bool) -> Self {
        let mut state = 7 + steps as u64 + 1000 * spread as u64;
        let mut next = || {
            state = splitmix64(state);
            state
        };
        let mut number = || {
            let (bits, exponent) = (next(), next());
            let fraction = (bits >> 11) as f32 / (1_u64 << 53) as f32 + 0.5;
            let exponent = (exponent % (2 * spread as u64 + 1)) as i32 - spread;
            let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
            bf16::from_f32(sign * fraction * (exponent as f32).exp2())
        };
        let mut words = |count: usize| -> Vec<u32> {
            let word = |_| {
                let first = number();
                let second = if cancel { -first } else { number() };
                u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
            };
            (0..count).map(word).collect()
        };
        let (a, mut b) = (words(WARPS * steps * 32 * 4), words(WARPS * steps * 32 * 2));
        if cancel {
            // Alike pairs of b, so that pairs of a cancel; one lane in eight leaves a rest.
            b.iter_mut()
                .enumerate()
                .for_each(|(at, word)| *word = if at % 8 == 0 { *word } else { *word & 0xffff | *word << 16 });
        }
        let c = (0..WARPS * 32 * 4).map(|_| number().to_f32()).collect();
        Chain { steps, a, b, c }
    }

    fn bytes(&self) -> [Vec<u8>; 3] {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        [words(&self.a), words(&self.b), self.c.iter().flat_map(|x| x.to_le_bytes()).collect()]
    }

    fn on(&self, device: &Arc<dyn Device>) -> Result<Vec<f32>> {
        let mut places = vec![];
        for bytes in self.bytes() {
            places.push(device.allocate(bytes.len())?);
            device.write(places[places.len() - 1], &bytes)?;
        }
        let mut sums = vec![0; 4 * self.c.len()];
        places.push(device.allocate(sums.len())?);
        device.launch(&Kernel::new(MODULE, "mma_chain"), Grid::linear(WARPS as u32, 32), &self.args(&places))?;
        device.read(places[3], &mut sums)?;
        places.into_iter().for_each(|place| device.free(place));
        Ok(floats(&sums))
    }

    fn emulated(&self, summation: Summation) -> Result<Vec<f32>> {
        let (mut emulator, module) = (Emulator::new(), Module::parse(PTX)?);
        let mut places = vec![];
        for bytes in self.bytes() {
            places.push(emulator.upload(&bytes)?.address());
        }
        let sums = emulator.allocate(4 * self.c.len() as u64)?;
        places.push(sums.address());
        let options = Options { summation, ..Options::default() };
        emulator.launch(&module, "mma_chain", Grid::linear(WARPS as u32, 32), &self.args(&places), options)?;
        Ok(floats(&emulator.read(sums)?))
    }

    fn args(&self, places: &[u64]) -> Vec<Arg> {
        places.iter().map(|place| Arg::from(*place)).chain([Arg::from(self.steps as u32)]).collect()
    }

    /// The first sum that is further from the wide one than cutting off each addend at the largest one's place would bring
    /// it, if there is one.
    fn too_far(&self, found: &[f32], wide: &[f32]) -> Option<String> {
        let largest = |words: &[u32]| {
            let halves = words.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]);
            halves.map(|bits| bf16::from_bits(bits).to_f32().abs()).fold(0.0, f32::max)
        };
        let term = f64::from(largest(&self.a)) * f64::from(largest(&self.b));
        let (terms, sum) =
            (16.0 * self.steps as f64, f64::from(self.c.iter().fold(0.0_f32, |most, x| most.max(x.abs()))));
        let allowed = terms * (terms * term + sum) * f64::from(f32::EPSILON);
        let mut pairs = found.iter().zip(wide).enumerate();
        let (at, (found, wide)) = pairs.find(|(_, (found, wide))| {
            let apart = (f64::from(**found) - f64::from(**wide)).abs();
            apart.is_nan() || apart > allowed
        })?;
        Some(format!("sum {at} is {found}, expected {wide} within {allowed:.1e}"))
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn operands([low, high]: [f32; 2]) -> Vec<f32> {
    (0..OPERANDS).map(|at| low + (high - low) * at as f32 / OPERANDS as f32).collect()
}

fn approximate(device: &Arc<dyn Device>, entry: &str, operands: &[f32]) -> Result<Vec<f32>> {
    let bytes: Vec<u8> = operands.iter().flat_map(|x| x.to_le_bytes()).collect();
    let (from, to) = (device.allocate(bytes.len())?, device.allocate(bytes.len())?);
    device.write(from, &bytes)?;
    device.launch(
        &Kernel::new(MODULE, entry),
        Grid::linear((OPERANDS / 256) as u32, 256),
        &[from.into(), to.into()],
    )?;
    let mut results = vec![0; bytes.len()];
    device.read(to, &mut results)?;
    [from, to].into_iter().for_each(|place| device.free(place));
    Ok(floats(&results))
}

fn emulated_approximation(entry: &str, operands: &[f32]) -> Result<Vec<f32>> {
    let bytes: Vec<u8> = operands.iter().flat_map(|x| x.to_le_bytes()).collect();
    let (mut emulator, module) = (Emulator::new(), Module::parse(PTX)?);
    let (from, to) = (emulator.upload(&bytes)?, emulator.allocate(bytes.len() as u64)?);
    let args = [from, to].map(|place: DevicePointer| place.into());
    emulator.launch(&module, entry, Grid::linear((OPERANDS / 256) as u32, 256), &args, Options::default())?;
    Ok(floats(&emulator.read(to)?))
}
