//! Approximate functions against series and identities, their special values, and comparisons, `min`, `max` and
//! `testp`.

use crate::common::Random;
use crate::numeric_oracle::{F32, F64, specials};
use ptx_emulator::numeric::NAN_F32;
use ptx_emulator::numeric::approx::*;
use ptx_emulator::numeric::compare::*;
use ptx_emulator::numeric::format::Half;
use ptx_emulator::numeric::minmax::*;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;
const TINY: f32 = f32::from_bits(1);

/// Checks special values: a NaN result has to be the canonical one, zeros their sign.
fn table(name: &str, function: impl Fn(u32) -> u32, rows: &[(f32, f32)]) {
    for (input, expected) in rows {
        let expected = if expected.is_nan() { NAN_F32 } else { expected.to_bits() };
        assert_eq!(function(input.to_bits()), expected, "{name}({input:e})");
    }
}

#[test]
fn special_values_are_those_of_the_manuals_tables() {
    let log = [(-INF, NAN), (-1.0, NAN), (-0.0, -INF), (0.0, -INF), (INF, INF), (NAN, NAN), (1.0, 0.0)];
    table("ex2", |a| ex2_f32(a, false), &[(-INF, 0.0), (-0.0, 1.0), (0.0, 1.0), (INF, INF), (NAN, NAN)]);
    table("lg2", |a| lg2_f32(a, false), &log);
    table("rcp", |a| rcp_f32(a, false), &[(-INF, -0.0), (-0.0, -INF), (0.0, INF), (INF, 0.0), (NAN, NAN)]);
    let root = [(-INF, NAN), (-1.0, NAN), (-0.0, -0.0), (0.0, 0.0), (INF, INF), (NAN, NAN)];
    table("sqrt", |a| sqrt_f32(a, false), &root);
    let inverse = [(-INF, NAN), (-1.0, NAN), (-0.0, -INF), (0.0, INF), (INF, 0.0), (NAN, NAN)];
    table("rsqrt", |a| rsqrt_f32(a, false), &inverse);
    table("sin", |a| sin_f32(a, false), &[(-INF, NAN), (-0.0, -0.0), (0.0, 0.0), (INF, NAN), (NAN, NAN)]);
    table("cos", |a| cos_f32(a, false), &[(-INF, NAN), (-0.0, 1.0), (0.0, 1.0), (INF, NAN), (NAN, NAN)]);
    table("tanh", tanh_f32, &[(-INF, -1.0), (-0.0, -0.0), (0.0, 0.0), (INF, 1.0), (NAN, NAN), (TINY, TINY)]);
    // Subnormal inputs and results with .ftz.
    table("ex2.ftz", |a| ex2_f32(a, true), &[(TINY, 1.0), (-126.0, f32::MIN_POSITIVE), (-127.0, 0.0)]);
    table("lg2.ftz", |a| lg2_f32(a, true), &[(TINY, -INF), (-TINY, -INF)]);
    table("lg2", |a| lg2_f32(a, false), &[(TINY, -149.0), (-TINY, NAN)]);
    table("rcp.ftz", |a| rcp_f32(a, true), &[(-TINY, -INF), (f32::MAX, 0.0), (-f32::MAX, -0.0)]);
    table("rsqrt.ftz", |a| rsqrt_f32(a, true), &[(TINY, INF), (-TINY, -INF)]);
    table("sin.ftz", |a| sin_f32(a, true), &[(-TINY, -0.0)]);
    table("cos.ftz", |a| cos_f32(a, true), &[(-TINY, 1.0)]);
    table("sqrt.ftz", |a| sqrt_f32(a, true), &[(-TINY, -0.0)]);
}

#[test]
fn approximate_division_loses_huge_divisors() {
    let divide = |a: f32, b: f32| f32::from_bits(div_f32(a.to_bits(), b.to_bits(), false));
    let limit = 2f32.powi(126);
    assert_eq!(divide(limit, limit), 1.0);
    let beyond = f32::from_bits(limit.to_bits() + 1);
    assert_eq!(divide(f32::MAX, beyond).to_bits(), 0);
    assert_eq!(divide(f32::MAX, -beyond).to_bits(), 0x8000_0000);
    assert_eq!(divide(-1.0, -f32::MAX).to_bits(), 0);
    assert!(divide(INF, beyond).is_nan());
    assert_eq!(divide(1.0, INF), 0.0);
    assert_eq!(divide(1.0, -0.0), -INF);
    assert_eq!(div_full_f32(f32::MAX.to_bits(), beyond.to_bits(), false), (f32::MAX / beyond).to_bits());
    assert_eq!(divide(1.0, 3.0), 1.0 / 3.0);
}

/// `exp(x)` by its series, after halving the argument ten times.
fn series_exp(x: f64) -> f64 {
    let small = x / 1024.0;
    let sum = (1..20).rev().fold(1.0, |sum, n| 1.0 + sum * small / f64::from(n));
    (0..10).fold(sum, |y, _| y * y)
}

/// `sin(x)` by its series; `x` within a few periods.
fn series_sin(x: f64) -> f64 {
    (1..60).rev().fold(1.0, |sum, n| 1.0 - sum * x * x / f64::from(2 * n * (2 * n + 1))) * x
}

/// Whether a result is within `ulps` units in the last place of the value.
fn within(result: u32, value: f64, ulps: f64) -> bool {
    let result = f32::from_bits(result);
    let unit = f64::from(f32::from_bits((value.abs() as f32).to_bits() + 1)) - f64::from((value.abs()) as f32);
    (f64::from(result) - value).abs() <= ulps * unit
}

#[test]
fn values_are_within_half_a_unit_of_independent_series() {
    let mut random = Random(13);
    for _ in 0..20_000 {
        let uniform = (random.bits() >> 40) as f32 / (1 << 24) as f32;
        let x = uniform * 20.0 - 10.0;
        let exact = f64::from(x);
        assert!(within(ex2_f32(x.to_bits(), false), series_exp(exact * std::f64::consts::LN_2), 0.5001), "2^{x}");
        let tanh = (series_exp(2.0 * exact) - 1.0) / (series_exp(2.0 * exact) + 1.0);
        assert!(within(tanh_f32(x.to_bits()), tanh, 0.5001) || x.abs() < 1e-3, "tanh {x}");
        let angle = uniform * 6.0 - 3.0;
        assert!(within(sin_f32(angle.to_bits(), false), series_sin(angle.into()), 0.5001), "sin {angle}");
        let shifted = std::f64::consts::FRAC_PI_2 - f64::from(angle);
        assert!(within(cos_f32(angle.to_bits(), false), series_sin(shifted), 0.6), "cos {angle}");
        // The logarithm is right if two to that power leads back, up to the rounding of the logarithm.
        let positive = uniform * 100.0 + 1e-3;
        let log = f64::from(f32::from_bits(lg2_f32(positive.to_bits(), false)));
        let back = series_exp(log * std::f64::consts::LN_2) / f64::from(positive);
        assert!((back - 1.0).abs() <= log.abs() * 2f64.powi(-24) + 1e-12, "lg2 {positive}");
        // 1 / (r r a) is one, up to twice the rounding of r.
        let inverse = f64::from(f32::from_bits(rsqrt_f32(positive.to_bits(), false)));
        assert!((inverse * inverse * f64::from(positive) - 1.0).abs() <= 2f64.powi(-23), "rsqrt {positive}");
    }
    for exponent in -149..=127 {
        let power = f32::from_bits(ex2_f32((exponent as f32).to_bits(), false));
        assert_eq!(f64::from(power), 2f64.powi(exponent));
        assert_eq!(lg2_f32(power.to_bits(), false), (exponent as f32).to_bits());
    }
}

#[test]
fn double_precision_approximations() {
    let nan = 0x7fff_ffff_0000_0000;
    let [one, four, inf] = [1.0f64, 4.0, f64::INFINITY].map(f64::to_bits);
    let minus = |bits: u64| bits ^ 1 << 63;
    let rcp = [
        (minus(inf), minus(0)),
        (minus(0), minus(inf)),
        (1 << 51, inf),
        (minus(1 << 51), minus(inf)),
        (0, inf),
        (inf, 0),
        (0x7ff8_0000_0000_0000, nan),
        (one | 0xffff_ffff, one),
        (minus(four), minus(0.25f64.to_bits())),
        (f64::MAX.to_bits(), 0),
    ];
    rcp.iter().for_each(|(input, expected)| assert_eq!(rcp_ftz_f64(*input), *expected, "{input:x}"));
    let rsqrt =
        [(minus(inf), nan), (minus(one), nan), (0, inf), (minus(0), minus(inf)), (inf, 0), (four, 0.5f64.to_bits())];
    rsqrt.iter().for_each(|(input, expected)| assert_eq!(rsqrt_ftz_f64(*input), *expected, "{input:x}"));
    let third = f64::from_bits(rcp_ftz_f64(3.0f64.to_bits()));
    assert!((third * 3.0 - 1.0).abs() < 2f64.powi(-20) && third.to_bits() as u32 == 0);
    assert_eq!(rsqrt_f64(four), 0.5f64.to_bits());
    assert!(f64::from_bits(rsqrt_f64(minus(one))).is_nan());
    assert_eq!(rsqrt_f64(minus(0)), minus(inf));
    assert_eq!(rsqrt_f64(0x7ff0_0000_0000_0001), 0x7ff8_0000_0000_0001);
}

#[test]
fn every_16_bit_argument() {
    for bits in 0..=u16::MAX {
        for half in [Half::F16, Half::Bf16] {
            let value = half.value(bits);
            let (power, tanh) = (half.value(ex2_half(half, bits)), half.value(tanh_half(half, bits)));
            if value.is_nan() {
                assert!(ex2_half(half, bits) == 0x7fff && tanh_half(half, bits) == 0x7fff);
                continue;
            }
            let unit = if half == Half::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
            let exact = f64::from(value).exp2();
            let smallest = f64::from(half.value(1));
            if power.is_infinite() {
                assert!(exact > f64::from(half.value(half.infinity() - 1)));
            } else if half == Half::Bf16 && exact < f64::from(f32::MIN_POSITIVE) {
                assert_eq!(power, 0.0, "subnormal results of ex2.ftz.bf16");
            } else {
                assert!((f64::from(power) - exact).abs() <= exact * unit + smallest / 2.0, "{half:?} 2^{value}");
            }
            let exact = f64::from(value).tanh();
            assert!((f64::from(tanh) - exact).abs() <= exact.abs() * unit + smallest / 2.0, "{half:?} tanh {value}");
            assert_eq!(tanh.is_sign_negative(), value.is_sign_negative());
        }
    }
}

#[test]
fn comparisons_follow_their_definition() {
    use Comparison::*;
    for a in specials(F32) {
        for b in specials(F32) {
            let (x, y) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
            for comparison in Comparison::ALL {
                let expected = comparison.holds(x.partial_cmp(&y));
                assert_eq!(compare_f32(comparison, a as u32, b as u32, false), expected, "{x} {comparison:?} {y}");
                let flush = |x: f32| if x.is_subnormal() { 0.0 } else { x };
                let expected = comparison.holds(flush(x).partial_cmp(&flush(y)));
                assert_eq!(compare_f32(comparison, a as u32, b as u32, true), expected);
            }
        }
    }
    for a in specials(F64) {
        for b in specials(F64) {
            for comparison in Comparison::ALL {
                let expected = comparison.holds(f64::from_bits(a).partial_cmp(&f64::from_bits(b)));
                assert_eq!(compare_f64(comparison, a, b), expected);
            }
        }
    }
    // What a NaN does to each.
    let nan = NAN.to_bits();
    let truths = Comparison::ALL.map(|comparison| compare_f32(comparison, nan, 0, false));
    let unordered = Comparison::ALL.map(|comparison| matches!(comparison, Equ | Neu | Ltu | Leu | Gtu | Geu | Nan));
    assert_eq!(truths, unordered);
}

#[test]
fn extremes_follow_the_manuals_pseudo_code() {
    // The manual's min_num and max_num, with -0 < +0 written out.
    let pick = |which: Extreme, x: f64, y: f64, nan: bool| {
        if (x.is_nan() && y.is_nan()) || (nan && (x.is_nan() || y.is_nan())) {
            return f64::NAN;
        }
        let less = x < y || (x == y && x.is_sign_negative());
        match (x.is_nan(), y.is_nan()) {
            (true, _) => y,
            (_, true) => x,
            _ if less == (which == Extreme::Min) => x,
            _ => y,
        }
    };
    for a in specials(F32).into_iter().map(|bits| bits as u32) {
        for b in specials(F32).into_iter().map(|bits| bits as u32) {
            for which in [Extreme::Min, Extreme::Max] {
                for (nan, xorsign_abs, ftz) in (0..8).map(|i| (i & 1 != 0, i & 2 != 0, i & 4 != 0)) {
                    let load = |bits: u32| {
                        let value = f32::from_bits(bits);
                        let value = if ftz && value.is_subnormal() { 0f32.copysign(value) } else { value };
                        f64::from(if xorsign_abs { value.abs() } else { value })
                    };
                    let value = pick(which, load(a), load(b), nan) as f32;
                    let sign = if xorsign_abs { (a ^ b) & 0x8000_0000 } else { 0 };
                    let expected = if value.is_nan() { NAN_F32 } else { value.to_bits() | sign };
                    let mode = ExtremeMode { ftz, nan, xorsign_abs };
                    assert_eq!(extreme_f32(which, a, b, mode), expected, "{which:?} {a:08x} {b:08x} {mode:?}");
                }
                let wide = |bits: u32| f64::from(f32::from_bits(bits)).to_bits();
                let actual = f64::from_bits(extreme_f64(which, wide(a), wide(b)));
                let expected = pick(which, f64::from_bits(wide(a)), f64::from_bits(wide(b)), false);
                assert!(actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan()));
            }
        }
    }
}

#[test]
fn signs_and_properties() {
    assert_eq!(copysign_f32((-1.0f32).to_bits(), 2.0f32.to_bits()), (-2.0f32).to_bits());
    assert_eq!(copysign_f64(1.0f64.to_bits(), (-2.0f64).to_bits()), 2.0f64.to_bits());
    assert_eq!([abs_f32(0x8000_0001, false), abs_f32(0x8000_0001, true)], [1, 0]);
    assert_eq!([neg_f32(1, false), neg_f32(1, true)], [0x8000_0001, 0x8000_0000]);
    assert_eq!([abs_f64((-2.0f64).to_bits()), neg_f64(2.0f64.to_bits())], [2.0f64.to_bits(), (-2.0f64).to_bits()]);
    use Property::*;
    let all = [Finite, Infinite, Number, NotANumber, Normal, Subnormal];
    let yes = |list: &[Property]| all.map(|property| list.contains(&property));
    let cases = [
        (1.0, yes(&[Finite, Number, Normal])),
        (-0.0, yes(&[Finite, Number, Normal])),
        (-TINY, yes(&[Finite, Number, Subnormal])),
        (-INF, yes(&[Infinite, Number])),
        (NAN, yes(&[NotANumber])),
    ];
    for (value, expected) in cases {
        assert_eq!(all.map(|property| testp_f32(property, value.to_bits())), expected, "{value}");
        if !expected[5] {
            assert_eq!(all.map(|property| testp_f64(property, f64::from(value).to_bits())), expected);
        }
    }
    assert!(testp_f64(Subnormal, 1) && !testp_f64(Normal, 1));
}
