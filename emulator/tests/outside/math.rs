//! Mathematical functions: each within the error that the CUDA programming guide gives for it ("Mathematical Functions
//! Appendix"), in units of the last place, and one half for the rounding of the formula.

use super::Outside;
use crate::common::Random;
use ptx_emulator::Grid;

pub const PTX: &str = include_str!("math.ptx");
const GRID: Grid = Grid { blocks: [2, 1, 1], threads: [64, 1, 1], shared: 0 };
const COUNT: usize = 128;

type Function = fn(f64, f64) -> f64;

/// A kernel, the range of its inputs, the error that it may have, and its formula.
type Row = (&'static str, f64, f64, f64, fn(f64) -> f64);

/// The distance to the next float, where `value` lies.
fn last_place(value: f64, fraction: i32, lowest: i32) -> f64 {
    let exponent = value.abs().log2().floor().clamp(-2000.0, 2000.0) as i32;
    2f64.powi((exponent - fraction).max(lowest))
}

fn close(kernel: &str, inputs: [f64; 2], got: f64, wanted: f64, ulp: f64, unit: f64) {
    let same = got == wanted || got.is_nan() && wanted.is_nan();
    assert!(same || (got - wanted).abs() <= ulp * unit, "{kernel} of {inputs:?}: {got:e}, not {wanted:e}");
}

/// Numbers from a range, by their logarithm where it spans many binades, and the special ones.
fn inputs(random: &mut Random, low: f64, high: f64, count: usize) -> Vec<f64> {
    let special = [0.0, -0.0, 1.0, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.5];
    let mut all = special.to_vec();
    all.resize_with(count, || {
        let x = low + (high - low) * (random.unit() + 1.0) / 2.0;
        if random.bits().is_multiple_of(4) { x * 2f64.powi(-((random.bits() % 20) as i32)) } else { x }
    });
    all
}

#[test]
fn of_one_f32() {
    let rows: [Row; 28] = [
        ("f32_sin", -200.0, 200.0, 2.0, f64::sin),
        ("f32_cos", -200.0, 200.0, 2.0, f64::cos),
        ("f32_tan", -60000.0, 60000.0, 4.0, f64::tan),
        ("f32_asin", -1.0, 1.0, 2.0, f64::asin),
        ("f32_acos", -1.0, 1.0, 2.0, f64::acos),
        ("f32_atan", -50.0, 50.0, 2.0, f64::atan),
        ("f32_sinh", -80.0, 80.0, 3.0, f64::sinh),
        ("f32_cosh", -80.0, 80.0, 2.0, f64::cosh),
        ("f32_tanh", -9.0, 9.0, 2.0, f64::tanh),
        ("f32_asinh", -1e6, 1e6, 3.0, |x| if x == 0.0 { x } else { x.asinh() }),
        ("f32_acosh", 1.0, 1e6, 4.0, f64::acosh),
        ("f32_atanh", -1.0, 1.0, 3.0, |x| if x == 0.0 { x } else { x.atanh() }),
        ("f32_exp", -100.0, 88.0, 2.0, f64::exp),
        ("f32_exp2", -140.0, 127.0, 2.0, f64::exp2),
        ("f32_expm1", -20.0, 88.0, 1.0, f64::exp_m1),
        ("f32_log", 0.0, 1e30, 1.0, f64::ln),
        ("f32_log2", 0.0, 10.0, 1.0, f64::log2),
        ("f32_log10", 0.0, 1e10, 2.0, f64::log10),
        ("f32_log1p", -1.0, 1e5, 1.0, f64::ln_1p),
        ("f32_sqrt", 0.0, 1e30, 0.0, f64::sqrt),
        ("f32_rsqrt", 0.0, 1e30, 2.0, |x| 1.0 / x.sqrt()),
        ("f32_cbrt", -1e9, 1e9, 1.0, f64::cbrt),
        ("f32_erf", -3.0, 3.0, 2.0, erf),
        ("f32_erfc", -3.0, 3.0, 4.0, |x| 1.0 - erf(x)),
        ("f32_round", -300.0, 300.0, 0.0, f64::round),
        ("f32_rint", -300.0, 300.0, 0.0, f64::round_ties_even),
        ("f32_trunc", -300.0, 300.0, 0.0, f64::trunc),
        ("f32_fast_exp", -10.0, 10.0, 2.0 + 11.0, f64::exp),
    ];
    let (mut module, mut random) = (Outside::new(PTX), Random(31));
    for (kernel, low, high, ulp, formula) in rows {
        let x: Vec<f32> = inputs(&mut random, low, high, COUNT).into_iter().map(|x| x as f32).collect();
        let out: Vec<f32> = module.run(kernel, GRID, &x, &[0.0; COUNT], None);
        for (x, got) in x.iter().zip(out) {
            let wanted = formula(f64::from(*x));
            let unit = last_place(wanted, 23, -149);
            close(kernel, [f64::from(*x), 0.0], f64::from(got), wanted, ulp + 0.5, unit);
        }
    }
    // The error of `__logf` is an absolute one near 1.
    let x: Vec<f32> = (1..=COUNT).map(|i| 0.5 + i as f32 / 90.0).collect();
    for (x, got) in x.iter().zip(module.run("f32_fast_log", GRID, &x, &[0f32; COUNT], None)) {
        assert!((f64::from(got) - f64::from(*x).ln()).abs() <= 2f64.powf(-21.41));
    }
}

/// The series, which converges well enough where it is used.
fn erf(x: f64) -> f64 {
    if x.is_infinite() || x.is_nan() {
        return x.signum() * if x.is_nan() { f64::NAN } else { 1.0 };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn of_two_f32() {
    let rows: [(&str, f64, f64, Function); 6] = [
        ("f32_pow", 4.0, 8.0, f64::powf),
        ("f32_atan2", 3.0, 100.0, f64::atan2),
        ("f32_hypot", 3.0, 100.0, f64::hypot),
        ("f32_fmod", 0.0, 100.0, |x, y| x % y),
        ("f32_divide", 0.0, 100.0, |x, y| x / y),
        ("f32_fast_divide", 2.0, 100.0, |x, y| x / y),
    ];
    let (mut module, mut random) = (Outside::new(PTX), Random(32));
    for (kernel, ulp, reach, formula) in rows {
        let numbers: Vec<f32> = (0..2 * COUNT).map(|_| (random.unit() * reach) as f32).collect();
        let out: Vec<f32> = module.run(kernel, GRID, &numbers, &[0.0; COUNT], None);
        for (pair, got) in numbers.chunks(2).zip(out) {
            let (x, y) = (f64::from(pair[0]), f64::from(pair[1]));
            let wanted = formula(x, y);
            close(kernel, [x, y], f64::from(got), wanted, ulp + 0.5, last_place(wanted, 23, -149));
        }
    }
    let numbers: Vec<f32> = (0..2 * COUNT).map(|_| (random.unit() * 50.0) as f32).collect();
    for (pair, got) in numbers.chunks(2).zip(module.run("f32_remainder", GRID, &numbers, &[0f32; COUNT], None)) {
        let (x, y) = (f64::from(pair[0]), f64::from(pair[1]));
        let wanted = x - (x / y).round_ties_even() * y;
        assert_eq!(got, wanted as f32, "remainder of {x} and {y}");
    }
    for (pair, got) in numbers.chunks(2).zip(module.run("f32_nextafter", GRID, &numbers, &[0f32; COUNT], None)) {
        assert_eq!(got, if pair[1] > pair[0] { pair[0].next_up() } else { pair[0].next_down() });
    }
}

#[test]
fn of_f64() {
    let rows: [Row; 6] = [
        ("f64_sin", -200.0, 200.0, 2.0, f64::sin),
        ("f64_exp", -700.0, 700.0, 1.0, f64::exp),
        ("f64_log", 0.0, 1e100, 1.0, f64::ln),
        ("f64_sqrt", 0.0, 1e100, 0.0, f64::sqrt),
        ("f64_cbrt", -1e9, 1e9, 1.0, f64::cbrt),
        ("f64_tanh", -9.0, 9.0, 1.0, f64::tanh),
    ];
    let (mut module, mut random) = (Outside::new(PTX), Random(33));
    // The host's own functions are off by one unit, too.
    let host = |ulp: f64| if ulp == 0.0 { 0.0 } else { ulp + 1.0 };
    for (kernel, low, high, ulp, formula) in rows {
        let x = inputs(&mut random, low, high, COUNT);
        let out: Vec<f64> = module.run(kernel, GRID, &x, &[0.0; COUNT], None);
        for (x, got) in x.iter().zip(out) {
            let wanted = formula(*x);
            close(kernel, [*x, 0.0], got, wanted, host(ulp), last_place(wanted, 52, -1074));
        }
    }
    for (kernel, ulp, formula) in [("f64_pow", 2.0, f64::powf as Function), ("f64_divide", 0.0, |x, y| x / y)] {
        let numbers: Vec<f64> = (0..2 * COUNT).map(|_| random.unit().abs() * 20.0).collect();
        let out: Vec<f64> = module.run(kernel, GRID, &numbers, &[0.0; COUNT], None);
        for (pair, got) in numbers.chunks(2).zip(out) {
            let wanted = formula(pair[0], pair[1]);
            close(kernel, [pair[0], pair[1]], got, wanted, host(ulp), last_place(wanted, 52, -1074));
        }
    }
}

type Wide = fn(u64, u64) -> u64;
type Words<'a> = &'a dyn Fn(u32, u32) -> u32;

#[test]
fn of_integers() {
    let (mut module, mut random) = (Outside::new(PTX), Random(34));
    let wide: Vec<u64> = (0..2 * COUNT).map(|_| random.bits() >> (random.bits() % 60) | 1).collect();
    let rows: [(&str, Wide); 3] = [
        ("i64_divide", |x, y| (x as i64).wrapping_div(y as i64) as u64),
        ("i64_remainder", |x, y| (x as i64).wrapping_rem(y as i64) as u64),
        ("u64_high_product", |x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64),
    ];
    for (kernel, formula) in rows {
        let out: Vec<u64> = module.run(kernel, GRID, &wide, &[0; COUNT], None);
        wide.chunks(2).zip(out).for_each(|(p, got)| assert_eq!(got, formula(p[0], p[1]), "{kernel} of {p:x?}"));
    }
    let bytes = |x: u32, y: u32, f: fn(u8, u8) -> u8| {
        let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
        u32::from_le_bytes(std::array::from_fn(|i| f(x[i], y[i])))
    };
    let rows: [(&str, Words<'_>); 7] = [
        ("u32_popcount_and_brev", &|x, y| x.count_ones().wrapping_add(y.reverse_bits())),
        ("u32_funnel", &|x, y| (((u64::from(y) << 32 | u64::from(x)) << 7) >> 32) as u32),
        ("u32_bytes", &|x, y| x & 0xffff | y << 16),
        ("u32_add_bytes", &|x, y| bytes(x, y, u8::wrapping_add)),
        ("u32_max_halves", &|x, y| {
            let largest = |shift: u32| u32::from(((x >> shift) as i16).max((y >> shift) as i16) as u16) << shift;
            largest(0) | largest(16)
        }),
        ("u32_differences", &|x, y| bytes(x, y, u8::abs_diff)),
        ("i32_dot", &|x, y| {
            let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
            (0..4).fold(17i32, |sum, i| sum + i32::from(x[i] as i8) * i32::from(y[i] as i8)) as u32
        }),
    ];
    let words: Vec<u32> = (0..2 * COUNT).map(|_| random.bits() as u32).collect();
    for (kernel, formula) in rows {
        let out: Vec<u32> = module.run(kernel, GRID, &words, &[0; COUNT], None);
        words.chunks(2).zip(out).for_each(|(p, got)| assert_eq!(got, formula(p[0], p[1]), "{kernel} of {p:x?}"));
    }
}
