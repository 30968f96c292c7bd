//! Arithmetic through whole kernels against formulas in Rust. The formulas of `numeric` have exhaustive tests of their
//! own; here it is that every opcode reaches the right one, with the right operands and widths.

use crate::common::{ARITHMETIC, Bench, Number, Random};
use ptx_emulator::Grid;

/// Numbers of all sizes, and the special ones first.
fn integers(seed: u64) -> Vec<u64> {
    let mut random = Random(seed);
    let mut out = vec![0, 1, u64::MAX, 1 << 63, (1 << 63) - 1, 0x8000_0000, 0x7fff_ffff, 0xffff_ffff, 0x8000, 0xff];
    out.resize_with(256, || random.bits() >> (random.bits() % 64));
    out
}

fn run<A: Number, D: Number>(kernel: &str, inputs: &[&[A]], slots: usize) -> Vec<Vec<D>> {
    let mut bench = Bench::new(ARITHMETIC);
    let count = inputs[0].len();
    let mut args: Vec<ptx_emulator::Arg> = inputs.iter().map(|input| bench.put(input).into()).collect();
    let out = bench.room::<D>(count * slots);
    args.push(out.into());
    bench.run(kernel, Grid::linear(1, count as u32), &args);
    bench.get::<D>(out).chunks(slots).map(<[D]>::to_vec).collect()
}

#[test]
fn integers_of_32_bits() {
    let a: Vec<u32> = integers(1).iter().map(|x| *x as u32).collect();
    let b: Vec<u32> = integers(2).iter().rev().map(|x| *x as u32).collect();
    for ((x, y), o) in a.iter().zip(&b).zip(run::<u32, u32>("integers", &[&a, &b], 40)) {
        let (x, y, sx, sy) = (*x, *y, *x as i32, *y as i32);
        let (ux, uy, wx, wy) = (u64::from(x), u64::from(y), i64::from(sx), i64::from(sy));
        let bytes = |n: u32| n.to_le_bytes();
        let both = [bytes(x), bytes(y)].concat();
        let dot: i32 = bytes(x).iter().zip(bytes(y)).map(|(a, b)| i32::from(*a as i8) * i32::from(b as i8)).sum();
        let mul24 = |n: i32| i64::from(n << 8 >> 8);
        let wanted = [
            x.wrapping_add(y),
            x.wrapping_mul(y),
            ((ux * uy) >> 32) as u32,
            ((wx * wy) >> 32) as u32,
            x / (y | 1),
            x % (y | 1),
            sx.wrapping_div(sy | 1) as u32,
            sx.wrapping_rem(sy | 1) as u32,
            x << (y & 31),
            x >> (y & 31),
            (sx >> (y & 31)) as u32,
            (x & y) ^ (!x | y),
            x.reverse_bits(),
            x.leading_zeros(),
            x.count_ones(),
            u32::from_le_bytes([both[5], both[1], both[7], both[3]]),
            x.min(y),
            sx.max(sy) as u32,
            sx.wrapping_abs() as u32,
            x.abs_diff(y).wrapping_add(7),
            sx.abs_diff(sy).wrapping_add(7),
            ((uy << 32 | ux) >> 23) as u32,
            ((uy << 32 | ux) >> (y & 63).min(32)) as u32,
            if x == 0 { 0 } else { x.trailing_zeros() + 1 },
            dot.wrapping_add(11) as u32,
            if x < y { x.wrapping_sub(y) } else { y.wrapping_sub(x) },
            u32::from(sx < sy && x != 3),
            (i32::from(x as i8)).wrapping_add(i32::from(y as i16)) as u32,
            (mul24(sx) * mul24(sy)) as u32,
            (ux.wrapping_mul(uy) >> 17) as u32,
            (wx.wrapping_mul(wy) >> 17) as u32,
            wx.wrapping_mul(wy).wrapping_add(uy as i64) as u32,
            u32::from(x == y),
            x >> 5 & 0x1ff,
            y & !(0xfff << 7) | (x & 0xfff) << 7,
            ((sx >> 5) << 23 >> 23) as u32,
            x.rotate_left(16),
            if sx < sy { u32::MAX } else { 0 },
            if sx >= 0 { x } else { y },
            x.wrapping_add(u32::from(ux + uy > 0xffff_ffff)),
        ];
        for (slot, (got, wanted)) in o.iter().zip(wanted).enumerate() {
            assert_eq!(*got, wanted, "slot {slot} of {x:#x} {y:#x}");
        }
    }
}

#[test]
fn integers_of_64_bits() {
    let (a, mut b) = (integers(3), integers(4));
    b.reverse();
    for ((x, y), o) in a.iter().zip(&b).zip(run::<u64, u64>("wide_integers", &[&a, &b], 16)) {
        let (x, y, sx, sy) = (*x, *y, *x as i64, *y as i64);
        let wanted = [
            x.wrapping_add(y),
            x.wrapping_mul(y),
            ((u128::from(x) * u128::from(y)) >> 64) as u64,
            ((i128::from(sx) * i128::from(sy)) >> 64) as u64,
            x / (y | 1),
            sx.wrapping_rem(sy | 1) as u64,
            x << (y & 63),
            (sx >> (y & 63)) as u64,
            x.reverse_bits(),
            u64::from(x.leading_zeros() * 100 + x.count_ones()),
            x.min(y),
            sx.max(sy) as u64,
            (x & y) | (x ^ !y),
            u64::from(x < y),
            sx.wrapping_abs() as u64,
            u64::from((x as u16).wrapping_mul(y as u16).wrapping_add(3)),
        ];
        for (slot, (got, wanted)) in o.iter().zip(wanted).enumerate() {
            assert_eq!(*got, wanted, "slot {slot} of {x:#x} {y:#x}");
        }
    }
}

fn floats(seed: u64) -> Vec<f64> {
    let mut random = Random(seed);
    let mut out = vec![0.0, -0.0, 1.0, -1.0, 0.5, 2.5, 3.5, -2.5, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-40];
    out.resize_with(256, || random.unit() * 2f64.powi((random.bits() % 40) as i32 - 20));
    out
}

/// The next number above, for rounding upwards.
fn ceil_to_f32(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) < x { near.next_up() } else { near }
}

fn trunc_to_f32(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near).abs() > x.abs() && x.is_finite() { f32::from_bits(near.to_bits() - 1) } else { near }
}

#[test]
fn floats_of_32_bits() {
    let a: Vec<f32> = floats(5).iter().map(|x| *x as f32).collect();
    let b: Vec<f32> = floats(6).iter().rev().map(|x| *x as f32).collect();
    for ((x, y), o) in a.iter().zip(&b).zip(run::<f32, f32>("floats", &[&a, &b], 32)) {
        let (x, y) = (*x, *y);
        let (dx, dy) = (f64::from(x), f64::from(y));
        let saturate = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 };
        let sum = dx + dy;
        let exact = [
            x + y,
            x - y,
            x * y,
            x.mul_add(y, 1.5),
            x / y,
            x.sqrt(),
            1.0 / x,
            x.min(y),
            x.max(y),
            x.abs(),
            -x,
            // The sum of two such numbers is exact in f64, or so close that truncation does not see it.
            trunc_to_f32(if (sum - dx - dy) == 0.0 { sum } else { f64::NAN }),
            ceil_to_f32(dx * dy),
            saturate,
            x.copysign(y),
            x.floor(),
            x.ceil(),
            x.round_ties_even(),
            x.trunc(),
            (x as i32) as f32,
            (y as u32) as f32,
            if x.is_nan() { 2f32.powi(63) } else { (x as u64) as f32 },
            x,
            (dx * dy) as f32,
            if x < y { 1.0 } else { 2.0 },
            if x.is_nan() { 3.0 } else { 4.0 },
        ];
        for (slot, (got, wanted)) in o.iter().zip(exact).enumerate() {
            if slot == 11 && wanted.is_nan() && !(dx + dy).is_nan() {
                continue;
            }
            let same = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
            let zeros = matches!(slot, 7 | 8) && *got == 0.0 && wanted == 0.0;
            assert!(same || zeros, "slot {slot} of {x} {y}: {got} {wanted}");
        }
        let close = [dx.sqrt().recip(), dx.exp2(), dx.log2(), dx / dy, dx.sin() + dy.cos(), dx.tanh()];
        for (slot, (got, wanted)) in o[26..].iter().zip(close).enumerate() {
            let got = f64::from(*got);
            let tiny = wanted.abs() < 1e-37 && got.abs() < 1e-37;
            let huge = wanted.abs() > 3.4e38 && got.is_infinite();
            let range = slot == 3 && dy.abs() > 2f64.powi(126) || slot == 4 && (dx.abs() > 1e4 || dy.abs() > 1e4);
            let near = (got - wanted).abs() <= 1e-6 * wanted.abs().max(if slot == 4 { 1.0 } else { 0.0 });
            let special = got.is_nan() && wanted.is_nan() || got == wanted;
            assert!(tiny || huge || range || near || special, "slot {} of {x} {y}: {got} {wanted}", slot + 26);
        }
    }
}

#[test]
fn floats_of_64_bits() {
    let (a, mut b) = (floats(7), floats(8));
    b.reverse();
    for ((x, y), o) in a.iter().zip(&b).zip(run::<f64, f64>("doubles", &[&a, &b], 12)) {
        let (x, y) = (*x, *y);
        let to_s64 = if x.is_nan() { i64::MIN } else { x as i64 };
        let wanted = [
            x + y,
            x * y,
            x.mul_add(y, 0.25),
            x / y,
            x.sqrt(),
            x.min(y),
            to_s64 as f64,
            f64::from(if y.is_nan() { 1 << 31 } else { y.abs() as u32 }),
            x.floor(),
            1.0 / y,
            if x < y { x } else { -y },
            f64::from(trunc_to_f32(x)),
        ];
        for (slot, (got, wanted)) in o.iter().zip(wanted).enumerate() {
            let same = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
            assert!(same || slot == 5 && x == y, "slot {slot} of {x} {y}: {got} {wanted}");
        }
    }
}

#[test]
fn functions_of_the_cuda_library() {
    let a: Vec<f32> = (0..256).map(|i| (i as f32 - 127.5) * 0.37).collect();
    for (x, o) in a.iter().zip(run::<f32, f32>("library", &[&a], 8)) {
        let x = f64::from(*x);
        let power = x.abs().powf(f64::from(1.7f32));
        let wanted = [x.exp(), x.abs().ln(), x.sin(), x.cos(), x.tanh(), power];
        for (slot, (got, wanted)) in o.iter().zip(wanted).enumerate() {
            let error = (f64::from(*got) - wanted).abs();
            // The CUDA programming guide gives at most 4 units in the last place for these.
            assert!(error <= 4.0 * 1.2e-7 * wanted.abs().max(1e-37), "slot {slot} of {x}: {got} {wanted}");
        }
        assert!((f64::from(o[7]) - (x * 0.125).exp()).abs() <= 1e-7 * (x * 0.125).exp());
        assert!(o[6].abs() <= 1.0 && (o[6] > 0.0) == (x > 0.0));
    }
}

#[test]
fn half_precision() {
    use half::{bf16, f16};
    let pairs = |seed| -> Vec<u32> {
        let mut random = Random(seed);
        let mut one = move || f16::from_f64(random.unit() * 4.0).to_bits();
        (0..256).map(|_| u32::from(one()) << 16 | u32::from(one())).collect()
    };
    let (a, b) = (pairs(9), pairs(10));
    let halves = |word: u32| [word as u16, (word >> 16) as u16];
    let join = |parts: [u16; 2]| u32::from(parts[1]) << 16 | u32::from(parts[0]);
    let each = |x: u32, y: u32, f: &dyn Fn(u16, u16) -> u16| {
        join([f(halves(x)[0], halves(y)[0]), f(halves(x)[1], halves(y)[1])])
    };
    let f = |f: fn(f64, f64) -> f64| {
        move |a: u16, b: u16| f16::from_f64(f(f16::from_bits(a).to_f64(), f16::from_bits(b).to_f64())).to_bits()
    };
    let bf = |f: fn(f64, f64) -> f64| {
        move |a: u16, b: u16| bf16::from_f64(f(bf16::from_bits(a).to_f64(), bf16::from_bits(b).to_f64())).to_bits()
    };
    for ((x, y), o) in a.iter().zip(&b).zip(run::<u32, u32>("halves", &[&a, &b], 16)) {
        let (x, y) = (*x, *y);
        let [l, h] = halves(x);
        let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let sum = f(|a, b| a + b)(l, h);
        let less = f16::from_bits(l) < f16::from_bits(h);
        let wanted = [
            each(x, y, &f(|a, b| a + b)),
            each(x, y, &f(|a, b| a * b)),
            each(x, y, &f(|a, b| a - b)),
            each(x, y, &f(f64::max)),
            each(x, y, &bf(f64::min)),
            each(x, y, &bf(f64::max)),
            each(x, y, &f(|a, b| a * b + a)),
            each(x, y, &bf(|a, b| a * b + a)),
            join([
                bf16::from_f32(f16::from_bits(h).to_f32()).to_bits(),
                bf16::from_f32(f16::from_bits(l).to_f32()).to_bits(),
            ]),
            join([f16::from_f32(wide(h)).to_bits(), f16::from_f32(wide(l)).to_bits()]),
            join([l, f16::from_f32(wide(l)).to_bits()]),
            x ^ 0x8000_8000,
            x & 0x7fff_7fff,
            join([if less { l } else { h }; 2]),
            join([sum, f(|a, b| a * b)(sum, h)]),
            join([bf(|a, b| a * b + a)(l, h); 2]),
        ];
        for (slot, (got, wanted)) in o.iter().zip(wanted).enumerate() {
            assert_eq!(*got, wanted, "slot {slot} of {x:#x} {y:#x}");
        }
    }
}
