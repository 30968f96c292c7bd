//! f16, bf16 and fp8 through CUDA's headers, against one rounding of the exact value.

use super::Outside;
use crate::common::Random;
use half::{bf16, f16};
use ptx_emulator::Grid;

pub const PTX: &str = include_str!("formats.ptx");
const GRID: Grid = Grid { blocks: [2, 1, 1], threads: [64, 1, 1], shared: 0 };
const COUNT: usize = 128;

/// A 16-bit float: its value, and the nearest one to a value.
trait Small: Copy {
    fn value(bits: u16) -> f64;
    fn nearest(value: f64) -> u16;
}

impl Small for f16 {
    fn value(bits: u16) -> f64 {
        f16::from_bits(bits).to_f64()
    }
    fn nearest(value: f64) -> u16 {
        f16::from_f64(value).to_bits()
    }
}

impl Small for bf16 {
    fn value(bits: u16) -> f64 {
        bf16::from_bits(bits).to_f64()
    }
    fn nearest(value: f64) -> u16 {
        bf16::from_f64(value).to_bits()
    }
}

type Formula = fn(f64, f64, f64) -> f64;

/// `steps` is how many neighbouring numbers the result may be away.
fn check<T: Small>(module: &mut Outside, kernel: &str, reach: f64, steps: i32, formula: Formula) {
    let mut random = Random(7);
    let mut bits: Vec<u16> = [0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, -0.0].map(T::nearest).to_vec();
    bits.resize_with(3 * COUNT, || T::nearest(random.unit() * reach));
    let out: Vec<u16> = module.run(kernel, GRID, &bits, &[0u16; COUNT], None);
    for (triple, got) in bits.chunks(3).zip(out) {
        let [x, y, z] = [triple[0], triple[1], triple[2]].map(T::value);
        let wanted = T::nearest(formula(x, y, z));
        if T::value(wanted).is_nan() {
            assert!(T::value(got).is_nan(), "{kernel} of {x}, {y}, {z}: {}, not NaN", T::value(got));
            continue;
        }
        // Numbers of one sign lie in the order of their bits.
        let order = |bits: u16| if bits >> 15 == 1 { -i32::from(bits & 0x7fff) } else { i32::from(bits) };
        let away = (order(got) - order(wanted)).abs();
        assert!(away <= steps, "{kernel} of {x}, {y}, {z}: {}, not {}", T::value(got), T::value(wanted));
    }
}

#[test]
fn halves() {
    let module = &mut Outside::new(PTX);
    check::<f16>(module, "f16_add", 50.0, 0, |x, y, _| x + y);
    check::<f16>(module, "f16_fma", 50.0, 0, |x, y, z| x * y + z);
    check::<f16>(module, "f16_fma_relu", 50.0, 0, |x, y, z| {
        let sum = x * y + z;
        if sum.is_nan() { sum } else { sum.max(0.0) }
    });
    check::<f16>(module, "f16_divide", 50.0, 0, |x, y, _| x / y);
    check::<f16>(module, "f16_max_nan", 50.0, 0, |x, y, _| if x.is_nan() || y.is_nan() { f64::NAN } else { x.max(y) });
    // The header promises the nearest number; it comes by an approximation of f32.
    check::<f16>(module, "f16_exp", 8.0, 0, |x, _, _| x.exp());
    check::<f16>(module, "f16_log", 50.0, 0, |x, _, _| x.ln());
    check::<f16>(module, "f16_rsqrt", 50.0, 0, |x, _, _| 1.0 / x.sqrt());
    check::<f16>(module, "f16_less", 5.0, 0, |x, y, _| if x < y { 1.0 } else { 0.0 });
}

#[test]
fn brain_floats() {
    let module = &mut Outside::new(PTX);
    check::<bf16>(module, "bf16_add", 50.0, 0, |x, y, _| x + y);
    check::<bf16>(module, "bf16_fma", 50.0, 0, |x, y, z| x * y + z);
    check::<bf16>(module, "bf16_multiply", 50.0, 0, |x, y, _| x * y);
    check::<bf16>(module, "bf16_min", 50.0, 0, |x, y, _| x.min(y));
    check::<bf16>(module, "bf16_tanh", 5.0, 1, |x, _, _| x.tanh());
}

#[test]
fn pairs() {
    let module = &mut Outside::new(PTX);
    let mut random = Random(8);
    let words: Vec<u32> = (0..3 * COUNT)
        .map(|_| {
            let mut half = || u32::from(f16::nearest(random.unit() * 2.0));
            half() | half() << 16
        })
        .collect();
    let out: Vec<u32> = module.run("f16_pairs", GRID, &words, &[0u32; COUNT], None);
    for (triple, got) in words.chunks(3).zip(out) {
        for shift in [0, 16] {
            let [x, y, z] = [triple[0], triple[1], triple[2]].map(|word| f16::value((word >> shift) as u16));
            let product = f16::value(f16::nearest(x * z)).clamp(0.0, 1.0);
            let sum = f16::nearest(product + if x >= y { 1.0 } else { 0.0 });
            assert_eq!((got >> shift) as u16, sum, "{x} {y} {z}");
        }
    }
    let words: Vec<u32> = (0..3 * COUNT)
        .map(|i| {
            let mut half =
                |at: usize| u32::from(bf16::nearest(if at.is_multiple_of(3) { 1.5 } else { random.unit() * 2.0 }));
            half(i / 3) | half(i / 3 + 1) << 16
        })
        .collect();
    let out: Vec<u32> = module.run("bf16_pairs", GRID, &words, &[0u32; COUNT], None);
    for (triple, got) in words.chunks(3).zip(out) {
        for shift in [0, 16] {
            let [x, y, z] = [triple[0], triple[1], triple[2]].map(|word| bf16::value((word >> shift) as u16));
            let product = bf16::value(bf16::nearest(x * y + z));
            let sum = bf16::nearest(product + if x == y { 1.0 } else { 0.0 });
            assert_eq!((got >> shift) as u16, sum, "{x} {y} {z}");
        }
    }
}

/// The value of an fp8 number with so many bits of exponent and fraction; `None` for what is no number.
fn fp8(bits: u8, exponent: u32, fraction: u32, infinities: bool) -> Option<f64> {
    let (field, rest) = (u32::from(bits) >> fraction & ((1 << exponent) - 1), u32::from(bits) & ((1 << fraction) - 1));
    let top = field == (1 << exponent) - 1;
    if top && (infinities || rest == (1 << fraction) - 1) {
        return None;
    }
    let bias = (1 << (exponent - 1)) - 1;
    let (significand, power) = if field == 0 { (rest, 1) } else { (rest | 1 << fraction, field as i32) };
    let value = f64::from(significand) * 2f64.powi(power - bias - fraction as i32);
    Some(if bits >> 7 == 1 { -value } else { value })
}

/// The nearest number, of two equally near ones the one with the even bits; the largest one beyond it.
fn nearest_fp8(x: f64, exponent: u32, fraction: u32, infinities: bool) -> f64 {
    let numbers = (0..=255u8).filter(|bits| bits >> 7 == u8::from(x.is_sign_negative()));
    let candidates = numbers.filter_map(|bits| Some((fp8(bits, exponent, fraction, infinities)?, bits)));
    let far = |value: f64| (value - x.clamp(-1e6, 1e6)).abs();
    let best = candidates.reduce(|best, other| {
        let closer = far(other.0) < far(best.0) || far(other.0) == far(best.0) && other.1 % 2 == 0;
        if closer { other } else { best }
    });
    best.unwrap().0
}

#[test]
fn eight_bits() {
    let module = &mut Outside::new(PTX);
    let mut random = Random(9);
    let mut x: Vec<f32> = vec![0.0, -0.0, 1e9, -1e9, f32::INFINITY, 0.001, 448.0, 464.0, 465.0, 57344.0, 61440.0];
    x.extend((0..).map(|i| 2f32.powi(-9) * (i as f32 + 0.5)).take(16));
    x.resize_with(2 * COUNT, || (random.unit() * 2f64.powi((random.bits() % 24) as i32 - 10)) as f32);
    let check = |kernel: &str, x: &[f32], out: Vec<f32>, exponent, fraction, infinities| {
        for (x, got) in x.iter().zip(out) {
            let wanted = nearest_fp8(f64::from(*x), exponent, fraction, infinities);
            assert_eq!(f64::from(got).to_bits(), wanted.to_bits(), "{kernel} of {x}: {got}, not {wanted}");
        }
    };
    let one = &x[..COUNT];
    check("e4m3", one, module.run("e4m3_round_trip", GRID, one, &[0f32; COUNT], None), 4, 3, false);
    check("e5m2", one, module.run("e5m2_round_trip", GRID, one, &[0f32; COUNT], None), 5, 2, true);
    check("e4m3", &x, module.run("e4m3_pairs", GRID, &x, &[0f32; 2 * COUNT], None), 4, 3, false);
}
