//! `.f16` and `.bf16`: widening and narrowing over all values, arithmetic against the definition of rounding.

use crate::common::Random;
use crate::numeric_oracle::{BF16, F16, F32, F64, Format, NOTHING, Value, specials};
use ptx_emulator::numeric::compare::{Comparison, compare_f32};
use ptx_emulator::numeric::format::{Half, f32_to_tf32, pack};
use ptx_emulator::numeric::half_ops::{self, HalfMode};
use ptx_emulator::numeric::minmax::{Extreme, ExtremeMode, extreme_f32};
use ptx_emulator::numeric::{NAN_F16, NAN_F32, Rounding};

const BOTH: [(Half, Format); 2] = [(Half::F16, F16), (Half::Bf16, BF16)];
const PLAIN: HalfMode = HalfMode { ftz: false, saturate: false, relu: false };

#[test]
fn widening_is_exact_for_every_value() {
    for bits in 0..=u16::MAX {
        let f16 = half::f16::from_bits(bits).to_f32();
        let bf16 = half::bf16::from_bits(bits).to_f32();
        assert_eq!(Half::F16.widen(bits), if f16.is_nan() { NAN_F32 } else { f16.to_bits() });
        assert_eq!(Half::Bf16.widen(bits), if bf16.is_nan() { NAN_F32 } else { bf16.to_bits() });
    }
}

#[test]
fn narrowing_agrees_with_the_half_crate() {
    for bits in (0..=u32::MAX).step_by(1009) {
        let value = f32::from_bits(bits);
        let (f16, bf16) = (half::f16::from_f32(value), half::bf16::from_f32(value));
        assert_eq!(Half::F16.nearest(bits), if value.is_nan() { 0x7fff } else { f16.to_bits() }, "{bits:08x}");
        assert_eq!(Half::Bf16.nearest(bits), if value.is_nan() { 0x7fff } else { bf16.to_bits() }, "{bits:08x}");
    }
}

/// Every number of the format, every midpoint between two of them, and the closest `f32`s on both sides of those, in
/// all modes.
#[test]
fn narrowing_rounds_by_definition_at_every_value_and_midpoint() {
    for (half, format) in BOTH {
        for bits in 0..=half.infinity() {
            let (this, next) = (half.value(bits), half.value(bits + 1));
            let middle = this + (if next.is_nan() || next.is_infinite() { 0.0 } else { next - this }) / 2.0;
            for value in [this, middle].map(f32::to_bits).into_iter().flat_map(|x| [x.wrapping_sub(1), x, x + 1]) {
                for signed in [value, value ^ 0x8000_0000] {
                    if !F32.is_finite(u64::from(signed)) {
                        continue;
                    }
                    let x = F32.value(u64::from(signed));
                    let wide = f64::from(f32::from_bits(signed)).to_bits();
                    for rounding in Rounding::ALL {
                        let result = half.narrow(signed, rounding);
                        let correct = format.is_rounded_sum(result.into(), rounding, [x, NOTHING]);
                        assert!(correct, "{half:?} {signed:08x} {rounding:?} {result:04x}");
                        assert_eq!(half.narrow_f64(wide, rounding), result);
                        assert!(result & 0x8000 == (signed >> 16) as u16 & 0x8000, "sign of {signed:08x}");
                    }
                }
            }
        }
    }
}

#[test]
fn narrowing_from_double_rounds_once() {
    let mut random = Random(5);
    for (half, format) in BOTH {
        for _ in 0..20_000 {
            // Just beside a midpoint of the narrow format: rounding to f32 on the way would land on the midpoint.
            let bits = (random.bits() % u64::from(half.infinity() - 1)) as u16;
            let middle = (f64::from(half.value(bits)) + f64::from(half.value(bits + 1))) / 2.0;
            if !middle.is_finite() {
                continue;
            }
            for beside in [middle.to_bits() - 1, middle.to_bits(), middle.to_bits() + 1] {
                let result = half.narrow_f64(beside, Rounding::Nearest).into();
                let correct = format.is_rounded_sum(result, Rounding::Nearest, [F64.value(beside), NOTHING]);
                assert!(correct, "{half:?} {beside:x} {result:x}");
            }
        }
    }
}

/// Checks the four operations by the definition of rounding.
fn check(half: Half, format: Format, [a, b, c]: [u16; 3]) {
    if ![a, b, c].iter().all(|bits| format.is_finite(u64::from(*bits))) {
        return;
    }
    let [x, y, z] = [a, b, c].map(|bits| format.value(u64::from(bits)));
    let correct = |name: &str, result: u16, terms: [Value; 2]| {
        let correct = format.is_rounded_sum(u64::from(result), Rounding::Nearest, terms);
        assert!(correct, "{half:?} {name} {a:04x} {b:04x} {c:04x} = {result:04x}");
    };
    correct("add", half_ops::add(half, a, b, PLAIN), [x, y]);
    correct("sub", half_ops::sub(half, a, b, PLAIN), [x, y.negated()]);
    correct("mul", half_ops::mul(half, a, b, PLAIN), [x.times(y), NOTHING]);
    correct("fma", half_ops::fma(half, a, b, c, PLAIN), [x.times(y), z]);
}

#[test]
fn arithmetic_rounds_once_by_definition() {
    for (half, format) in BOTH {
        let edges: Vec<u16> = specials(format).into_iter().map(|bits| bits as u16).collect();
        for &a in &edges {
            for &b in &edges {
                for &c in &edges {
                    check(half, format, [a, b, c]);
                }
            }
        }
        let mut random = Random(6);
        for _ in 0..60_000 {
            check(half, format, std::array::from_fn(|_| random.float(format) as u16));
        }
        // Every value once in every place.
        for bits in 0..=u16::MAX {
            check(half, format, [bits, random.bits() as u16, random.bits() as u16]);
            check(half, format, [random.bits() as u16, random.bits() as u16, bits]);
        }
    }
}

#[test]
fn a_product_that_rounds_twice_would_be_wrong() {
    // (1 + 2^-7)(1 + 2^-4) = 1 + 2^-4 + 2^-7 + 2^-11 as bf16 is a tie's neighbour once 2^-40 is added.
    let (a, b) = (half::bf16::from_f32(1.0078125), half::bf16::from_f32(1.0625));
    let tiny = half::bf16::from_f32(2.0f32.powi(-40));
    let exact = f64::from(a.to_f32()) * f64::from(b.to_f32()) + f64::from(tiny.to_f32());
    let fused = half_ops::fma(Half::Bf16, a.to_bits(), b.to_bits(), tiny.to_bits(), PLAIN);
    assert_eq!(fused, half::bf16::from_f64(exact).to_bits());
}

#[test]
fn products_at_the_lower_end_of_bf16_round_once() {
    // All products of two significands, placed where the result is subnormal or vanishes.
    for a in (0x3f80..0x4000u16).chain([1, 0x7f]) {
        for b in (0x0080..0x0180u16).step_by(3) {
            for c in [0x2000, 0x1f00, 0] {
                check(Half::Bf16, BF16, [a.wrapping_sub(c), b, 0]);
                check(Half::Bf16, BF16, [a.wrapping_sub(c), b + c / 2, 0x8001]);
            }
        }
    }
}

#[test]
fn special_results_of_arithmetic() {
    for (half, _) in BOTH {
        let [inf, one] = [f32::INFINITY, 1.0].map(|x| half.nearest(x.to_bits()));
        let minus = |bits: u16| bits ^ 0x8000;
        assert_eq!(half_ops::add(half, inf, minus(inf), PLAIN), 0x7fff);
        assert_eq!(half_ops::mul(half, 0, inf, PLAIN), 0x7fff);
        assert_eq!(half_ops::fma(half, one, half.infinity() + 1, one, PLAIN), 0x7fff);
        assert_eq!(half_ops::sub(half, one, one, PLAIN), 0);
        assert_eq!(half_ops::add(half, 0x8000, 0x8000, PLAIN), 0x8000);
        assert_eq!(half_ops::sub(half, 0x8000, 0, PLAIN), 0x8000);
        assert_eq!(half_ops::mul(half, 0x8000, one, PLAIN), 0x8000);
        let largest = inf - 1;
        assert_eq!(half_ops::add(half, largest, largest, PLAIN), inf);
        let relu = HalfMode { relu: true, ..PLAIN };
        assert_eq!(half_ops::fma(half, minus(one), one, 0, relu), 0);
        assert_eq!(half_ops::fma(half, one, one, 0, relu), one);
        assert_eq!(half_ops::fma(half, 0, inf, 0, relu), 0x7fff);
    }
    let flush = HalfMode { ftz: true, ..PLAIN };
    assert_eq!(half_ops::add(Half::F16, 0x03ff, 0x8001, flush), 0);
    assert_eq!(half_ops::mul(Half::F16, 0x8400, 0x3800, flush), 0x8000);
    let saturate = HalfMode { saturate: true, ..PLAIN };
    assert_eq!(half_ops::add(Half::F16, 0x4000, 0x4000, saturate), 0x3c00);
    assert_eq!(half_ops::add(Half::F16, 0xc000, 0, saturate), 0);
    assert_eq!(half_ops::mul(Half::F16, 0, 0x7c00, saturate), 0);
}

#[test]
fn extremes_and_comparisons_agree_with_those_of_single_precision() {
    let modes = [false, true].map(|nan| [false, true].map(|xorsign_abs| ExtremeMode { ftz: false, nan, xorsign_abs }));
    for (half, format) in BOTH {
        let edges: Vec<u16> = specials(format).into_iter().map(|bits| bits as u16).collect();
        for a in 0..=u16::MAX {
            for &b in edges.iter().skip(usize::from(a % 5)).step_by(5) {
                // Widening a NaN drops its sign, which .xorsign looks at.
                let wide = [a, b].map(|bits| half.widen(bits) | u32::from(bits & 0x8000) << 16);
                for mode in modes.into_iter().flatten() {
                    for which in [Extreme::Min, Extreme::Max] {
                        let result = half_ops::extreme(half, which, a, b, mode);
                        assert_eq!(half.widen(result), extreme_f32(which, wide[0], wide[1], mode));
                        assert!(!half.is_nan(result) || result == NAN_F16);
                    }
                }
                for comparison in Comparison::ALL {
                    let expected = compare_f32(comparison, wide[0], wide[1], false);
                    assert_eq!(half_ops::compare(half, comparison, a, b, false), expected);
                }
            }
            assert_eq!(half_ops::neg(half, a, false), a ^ 0x8000);
            assert_eq!(half_ops::abs(half, a, false), a & 0x7fff);
        }
    }
    assert!(half_ops::compare(Half::F16, Comparison::Eq, 0x0001, 0x8003, true));
    assert_eq!(half_ops::neg(Half::F16, 0x0001, true), 0x8000);
}

#[test]
fn packed_operations_work_on_each_half() {
    let [a, b, c] = [pack(0x3c00, 0x4000), pack(0x4200, 0x4400), pack(0xbc00, 0x0000)];
    let add = |a, b| half_ops::add(Half::F16, a, b, PLAIN);
    assert_eq!(half_ops::both2(a, b, add), pack(add(0x3c00, 0x4200), add(0x4000, 0x4400)));
    let fma = |a, b, c| half_ops::fma(Half::F16, a, b, c, PLAIN);
    assert_eq!(half_ops::both3(a, b, c, fma), pack(0x4000, 0x4800));
    assert_eq!(half_ops::both1(c, |a| half_ops::neg(Half::F16, a, false)), pack(0x3c00, 0x8000));
}

#[test]
fn clamps_of_the_16_bit_formats() {
    for (half, _) in BOTH {
        for bits in 0..=u16::MAX {
            let value = half.value(bits);
            let saturated = half.value(half.saturate(bits));
            assert_eq!(saturated.to_bits(), if value > 0.0 { value.min(1.0) } else { 0.0 }.to_bits());
            let relu = half.value(half.relu(bits));
            assert!(if value.is_nan() { relu.is_nan() } else { relu.to_bits() == (value.max(0.0) + 0.0).to_bits() });
            let finite = half.value(half.satfinite(bits));
            let largest = half.value(half.infinity() - 1);
            assert!(if value.is_nan() { finite.is_nan() } else { finite == value.clamp(-largest, largest) });
        }
    }
}

#[test]
fn tf32_rounds_ties_away_from_zero() {
    for bits in (0..=u32::MAX).step_by(4093).flat_map(|bits| [bits, bits & !0x1fff | 0x1000]) {
        let value = f64::from(f32::from_bits(bits));
        let result = f64::from(f32::from_bits(f32_to_tf32(bits)));
        assert_eq!(f32_to_tf32(bits) & 0x1fff, if value.is_nan() { 0x1fff } else { 0 });
        if !value.is_finite() || !result.is_finite() {
            assert!(value.is_nan() == result.is_nan() && (value.is_nan() || value.abs() > 3.4e38));
            continue;
        }
        let down = f64::from(f32::from_bits(bits & !0x1fff));
        let up = f64::from(f32::from_bits((bits & !0x1fff) + 0x2000));
        let expected = if (value - down).abs() < (up - value).abs() { down } else { up };
        assert_eq!(result, expected, "{bits:08x}");
    }
}
