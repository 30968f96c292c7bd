//! `.f32` and `.f64` arithmetic against the definition of rounding, and its special values.

use crate::common::Random;
use crate::numeric_oracle::{F32, F64, Format, NOTHING, Value, sign_of_sum, specials};
use ptx_emulator::numeric::Rounding;
use ptx_emulator::numeric::double::*;
use ptx_emulator::numeric::float::*;
use ptx_emulator::numeric::{NAN_F32, NAN_F64};

fn mode(rounding: Rounding) -> F32Mode {
    F32Mode { rounding, ..F32Mode::RN }
}

/// The operations of one format on `u64` bits.
struct Operations {
    format: Format,
    add: fn(u64, u64, Rounding) -> u64,
    sub: fn(u64, u64, Rounding) -> u64,
    mul: fn(u64, u64, Rounding) -> u64,
    div: fn(u64, u64, Rounding) -> u64,
    fma: fn(u64, u64, u64, Rounding) -> u64,
    sqrt: fn(u64, Rounding) -> u64,
}

const SINGLE: Operations = Operations {
    format: F32,
    add: |a, b, r| add_f32(a as u32, b as u32, mode(r)).into(),
    sub: |a, b, r| sub_f32(a as u32, b as u32, mode(r)).into(),
    mul: |a, b, r| mul_f32(a as u32, b as u32, mode(r)).into(),
    div: |a, b, r| div_f32(a as u32, b as u32, mode(r)).into(),
    fma: |a, b, c, r| fma_f32(a as u32, b as u32, c as u32, mode(r)).into(),
    sqrt: |a, r| sqrt_f32(a as u32, mode(r)).into(),
};

const DOUBLE: Operations =
    Operations { format: F64, add: add_f64, sub: sub_f64, mul: mul_f64, div: div_f64, fma: fma_f64, sqrt: sqrt_f64 };

impl Operations {
    /// Checks all pairs of special values, with `c` as the third operand, and random triples.
    fn check_many(&self, c: u64, mut random: Random, count: usize) {
        let edges = specials(self.format);
        edges.iter().for_each(|a| edges.iter().for_each(|b| self.check([*a, *b, c])));
        (0..count).for_each(|_| self.check(std::array::from_fn(|_| random.float(self.format))));
    }

    /// Checks every operation on finite operands by the definition of rounding.
    fn check(&self, [a, b, c]: [u64; 3]) {
        let format = self.format;
        if ![a, b, c].iter().all(|bits| format.is_finite(*bits)) {
            return;
        }
        let [x, y, z] = [a, b, c].map(|bits| format.value(bits));
        for rounding in Rounding::ALL {
            let correct = |name: &str, result: u64, sign: &dyn Fn(Value, Value) -> i32| {
                assert!(format.is_rounded(result, rounding, sign), "{name} {a:x} {b:x} {c:x} {rounding:?}: {result:x}");
            };
            let sum = |name: &str, result: u64, terms: [Value; 2]| {
                let correct = format.is_rounded_sum(result, rounding, terms);
                assert!(correct, "{name} {a:x} {b:x} {c:x} {rounding:?}: {result:x}");
            };
            sum("add", (self.add)(a, b, rounding), [x, y]);
            sum("sub", (self.sub)(a, b, rounding), [x, y.negated()]);
            sum("mul", (self.mul)(a, b, rounding), [x.times(y), NOTHING]);
            sum("fma", (self.fma)(a, b, c, rounding), [x.times(y), z]);
            if y.0 != 0 {
                // 2x/y - (r + s) has the sign of (2x - y(r + s)) times the sign of y.
                correct("div", (self.div)(a, b, rounding), &|r, s| {
                    sign_of_sum(&[x.doubled(), y.times(r).negated(), y.times(s).negated()]) * y.0.signum() as i32
                });
            }
            if x.0 > 0 {
                // 2 sqrt(x) - (r + s), for r + s >= 0, has the sign of 4x - (r + s)^2.
                correct("sqrt", (self.sqrt)(a, rounding), &|r, s| {
                    if r.0 < 0 || s.0 < 0 {
                        return 1;
                    }
                    let squares = [r.times(r), s.times(s), r.times(s).doubled()].map(Value::negated);
                    sign_of_sum(&[x.doubled().doubled(), squares[0], squares[1], squares[2]])
                });
            }
        }
    }
}

#[test]
fn single_precision_rounds_by_definition() {
    SINGLE.check_many(0x3f80_0001, Random(1), 40_000);
}

#[test]
fn double_precision_rounds_by_definition() {
    DOUBLE.check_many(1, Random(2), 25_000);
}

#[test]
fn fused_multiply_add_agrees_with_the_host_in_a_million_hard_cases() {
    let mut random = Random(3);
    for _ in 0..1_000_000 {
        let [a, b, mut c] = std::array::from_fn(|_| random.float(F32) as u32);
        if random.bits().is_multiple_of(4) {
            // Cancel the product but for its rounding error, or nearly.
            let product = f32::from_bits(a) * f32::from_bits(b);
            c = (-product).to_bits() ^ (random.bits() & 1) as u32;
        }
        let expected = f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c));
        let actual = fma_f32(a, b, c, F32Mode::RN);
        assert_eq!(actual, canonical_f32(expected), "{a:08x} {b:08x} {c:08x}");
    }
}

#[test]
fn invalid_operations_give_the_canonical_nan() {
    let [inf, minus_inf, zero, one, minus_one] = [f32::INFINITY, f32::NEG_INFINITY, 0.0, 1.0, -1.0].map(f32::to_bits);
    for rounding in Rounding::ALL {
        let mode = mode(rounding);
        let invalid = [
            add_f32(inf, minus_inf, mode),
            sub_f32(inf, inf, mode),
            mul_f32(zero, minus_inf, mode),
            div_f32(zero, zero, mode),
            div_f32(inf, minus_inf, mode),
            sqrt_f32(minus_one, mode),
            sqrt_f32(minus_inf, mode),
            fma_f32(zero, inf, one, mode),
            fma_f32(inf, one, minus_inf, mode),
            add_f32(0xff80_0001, one, mode),
            fma_f32(one, one, 0x7fc0_1234, mode),
        ];
        assert_eq!(invalid, [NAN_F32; 11], "{rounding:?}");
        let double = |x: u32| f64::from(f32::from_bits(x)).to_bits();
        let invalid = [
            add_f64(double(inf), double(minus_inf), rounding),
            sub_f64(double(inf), double(inf), rounding),
            mul_f64(double(zero), double(inf), rounding),
            div_f64(double(zero), double(zero), rounding),
            sqrt_f64(double(minus_one), rounding),
            fma_f64(double(zero), double(inf), double(one), rounding),
        ];
        assert_eq!(invalid, [NAN_F64; 6], "{rounding:?}");
    }
}

#[test]
fn double_precision_keeps_the_first_nan_operand() {
    let (quiet, signalling) = (0x7ff8_0000_0000_0123, 0xfff0_0000_0000_0456);
    let one = 1.0f64.to_bits();
    for rounding in Rounding::ALL {
        assert_eq!(add_f64(signalling, quiet, rounding), 0xfff8_0000_0000_0456);
        assert_eq!(sub_f64(one, signalling, rounding), 0xfff8_0000_0000_0456);
        assert_eq!(mul_f64(quiet, signalling, rounding), quiet);
        assert_eq!(fma_f64(one, one, quiet, rounding), quiet);
        assert_eq!(sqrt_f64(quiet, rounding), quiet);
        assert_eq!(rcp_f64(signalling, rounding), 0xfff8_0000_0000_0456);
    }
}

#[test]
fn zeros_and_infinities_have_their_signs_in_every_mode() {
    let [inf, zero, one] = [f32::INFINITY, 0.0f32, 1.0].map(f32::to_bits);
    let minus = |bits: u32| bits ^ 0x8000_0000;
    for rounding in Rounding::ALL {
        let mode = mode(rounding);
        let cancelled = if rounding == Rounding::Down { minus(zero) } else { zero };
        assert_eq!(add_f32(one, minus(one), mode), cancelled);
        assert_eq!(sub_f32(zero, zero, mode), cancelled);
        assert_eq!(add_f32(minus(zero), zero, mode), cancelled);
        assert_eq!(fma_f32(one, one, minus(one), mode), cancelled);
        assert_eq!(fma_f32(zero, minus(one), zero, mode), cancelled);
        assert_eq!(add_f32(minus(zero), minus(zero), mode), minus(zero));
        assert_eq!(mul_f32(minus(zero), one, mode), minus(zero));
        assert_eq!(mul_f32(minus(inf), minus(one), mode), inf);
        assert_eq!(div_f32(one, minus(zero), mode), minus(inf));
        assert_eq!(div_f32(minus(one), inf, mode), minus(zero));
        assert_eq!(rcp_f32(minus(inf), mode), minus(zero));
        assert_eq!(sqrt_f32(minus(zero), mode), minus(zero));
        assert_eq!(sqrt_f32(inf, mode), inf);
        assert_eq!(add_f32(inf, one, mode), inf);
    }
    // Overflow stops at the largest number in the modes that point away from infinity.
    let largest = f32::MAX.to_bits();
    let sums = Rounding::ALL.map(|rounding| add_f32(largest, largest, mode(rounding)));
    assert_eq!(sums, [inf, largest, largest, inf]);
    let sums = Rounding::ALL.map(|rounding| add_f32(minus(largest), minus(largest), mode(rounding)));
    assert_eq!(sums, [minus(inf), minus(largest), minus(inf), minus(largest)]);
}

#[test]
fn ftz_flushes_inputs_and_results_and_sat_clamps() {
    let flush = F32Mode { ftz: true, ..F32Mode::RN };
    let (tiny, normal) = (0x0000_0001, 0x0080_0000);
    assert_eq!(add_f32(tiny, normal, flush), normal);
    assert_eq!(add_f32(0x8000_0001, 0x8000_0000, flush), 0x8000_0000);
    assert_eq!(mul_f32(normal, 0.5f32.to_bits(), flush), 0);
    assert_eq!(mul_f32(normal, (-0.5f32).to_bits(), flush), 0x8000_0000);
    assert_eq!(rcp_f32(0x8000_0001, flush), f32::NEG_INFINITY.to_bits());
    assert_eq!(mul_f32(normal, 0.5f32.to_bits(), F32Mode::RN), 0x0040_0000);

    let saturate = F32Mode { saturate: true, ..F32Mode::RN };
    let clamp = |x: f32| f32::from_bits(add_f32(x.to_bits(), (-0.0f32).to_bits(), saturate)).to_bits();
    let cases = [(0.25, 0.25), (-3.0, 0.0), (7.0, 1.0), (f32::INFINITY, 1.0), (f32::NAN, 0.0), (-0.0, 0.0)];
    for (input, expected) in cases {
        assert_eq!(clamp(input), f32::to_bits(expected), "{input}");
    }
    assert_eq!(fma_f32(1, 1, 1, F32Mode { rounding: Rounding::Up, ftz: true, saturate: true }), 0);
}
