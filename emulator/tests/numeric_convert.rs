//! `cvt` in all combinations of types, and the 8-bit formats, against definitions.

use crate::common::Random;
use crate::numeric_oracle::{self, NOTHING, Value, sign_of_sum, specials};
use ptx_emulator::numeric::convert::*;
use ptx_emulator::numeric::format::{Half, pack};
use ptx_emulator::numeric::fp8::{Fp8, f16x2_from_fp8x2, fp8x2_from_f16x2, fp8x2_from_f32};
use ptx_emulator::numeric::{NAN_F64, Rounding};

fn oracle(float: Float) -> numeric_oracle::Format {
    match float {
        Float::F16 => numeric_oracle::F16,
        Float::Bf16 => numeric_oracle::BF16,
        Float::F32 => numeric_oracle::F32,
        Float::F64 => numeric_oracle::F64,
    }
}

/// The number that a register holds, by the definition of two's complement.
fn number(bits: u64, integer: Integer) -> i128 {
    let modulus = 1i128 << integer.width();
    let low = i128::from(bits) % modulus;
    if integer.signed() && low >= modulus / 2 { low - modulus } else { low }
}

fn range(integer: Integer) -> std::ops::RangeInclusive<i128> {
    let count = 1i128 << integer.width();
    if integer.signed() { -count / 2..=count / 2 - 1 } else { 0..=count - 1 }
}

/// Integers at the ends of all types, powers of two and their neighbours, and random ones.
fn integers() -> Vec<u64> {
    let mut random = Random(7);
    let powers = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
    powers.clone().chain(powers.map(u64::wrapping_neg)).chain((0..300).map(|_| random.bits())).collect()
}

#[test]
fn integers_to_integers() {
    for bits in integers() {
        for from in Integer::ALL {
            for to in Integer::ALL {
                let value = number(bits, from);
                let wrapped = int_to_int(bits, from, to, false);
                assert_eq!(i128::from(wrapped), value.rem_euclid(1 << to.width()));
                let clamped = number(int_to_int(bits, from, to, true), to);
                assert_eq!(clamped, value.clamp(*range(to).start(), *range(to).end()), "{bits:x} {from:?} {to:?}");
            }
            assert_eq!(from.extend(bits), number(bits, from) as u64);
        }
    }
}

#[test]
fn integers_to_floats_round_by_definition() {
    for bits in integers() {
        for from in Integer::ALL {
            let exact = Value(number(bits, from), 0);
            for to in Float::ALL {
                for rounding in Rounding::ALL {
                    let result = int_to_float(bits, from, to, rounding);
                    let correct = oracle(to).is_rounded_sum(result, rounding, [exact, NOTHING]);
                    assert!(correct, "{bits:x} {from:?} {to:?} {rounding:?}: {result:x}");
                }
                assert_eq!(int_to_float(0, from, to, Rounding::Down), 0, "an integer zero has no sign");
            }
        }
    }
}

/// The integer next to `mantissa * 2^exponent` in the given direction; beyond all types it may be too small.
fn integral(Value(mantissa, exponent): Value, rounding: Rounding) -> i128 {
    if exponent >= 0 {
        return mantissa << exponent.min(70);
    }
    let shift = exponent.unsigned_abs().min(120);
    let (floor, rest, half) = (mantissa >> shift, mantissa & ((1 << shift) - 1), 1i128 << (shift - 1));
    match rounding {
        Rounding::Down => floor,
        Rounding::Up => floor + i128::from(rest != 0),
        Rounding::Zero => floor + i128::from(rest != 0 && mantissa < 0),
        Rounding::Nearest => floor + i128::from(rest > half || (rest == half && floor & 1 == 1)),
    }
}

fn check_to_integers(from: Float, bits: u64) {
    let format = oracle(from);
    for to in Integer::ALL {
        for rounding in Rounding::ALL {
            let result = number(float_to_int(bits, from, to, rounding), to);
            let (low, high) = (*range(to).start(), *range(to).end());
            let expected = if format.is_nan(bits) {
                let top_bit = from == Float::F64 || to.width() == 64;
                if top_bit { number(1 << (to.width() - 1), to) } else { 0 }
            } else if !format.is_finite(bits) {
                if bits & format.sign_bit() != 0 { low } else { high }
            } else {
                integral(format.value(bits), rounding).clamp(low, high)
            };
            assert_eq!(result, expected, "{from:?} {bits:x} {to:?} {rounding:?}");
        }
    }
}

#[test]
fn floats_to_integers_by_definition() {
    for bits in (0..=u16::MAX).map(u64::from) {
        check_to_integers(Float::F16, bits);
        check_to_integers(Float::Bf16, bits);
    }
    let mut random = Random(8);
    for float in [Float::F32, Float::F64] {
        specials(oracle(float)).into_iter().for_each(|bits| check_to_integers(float, bits));
        (0..20_000).for_each(|_| check_to_integers(float, random.float(oracle(float))));
        // Halves and quarters around the ends of the integer types.
        for end in [0.0, 127.0, 128.0, 255.0, 32767.0, 65535.0, 2147483647.0, 4294967295.0, 9.2e18, 1.9e19f64] {
            for quarter in -8..=8 {
                for value in [end + f64::from(quarter) / 4.0, -end + f64::from(quarter) / 4.0] {
                    let bits = if float == Float::F32 { u64::from((value as f32).to_bits()) } else { value.to_bits() };
                    check_to_integers(float, bits);
                }
            }
        }
    }
}

#[test]
fn floats_to_integral_floats() {
    for float in [Float::F16, Float::Bf16, Float::F32, Float::F64] {
        let format = oracle(float);
        let mut random = Random(9);
        for bits in specials(format).into_iter().chain((0..5_000).map(|_| random.float(format))) {
            for rounding in Rounding::ALL {
                let result = float_to_integral(bits, float, rounding);
                if format.is_nan(bits) {
                    assert!(format.is_nan(result));
                } else if !format.is_finite(bits) || format.value(bits).1 >= 0 {
                    assert_eq!(result, bits);
                } else {
                    let (expected, actual) = (integral(format.value(bits), rounding), format.value(result));
                    assert_eq!(sign_of_sum(&[Value(expected, 0), actual.negated()]), 0, "{float:?} {bits:x}");
                    // The sign is kept, also of a zero.
                    assert_eq!(result & format.sign_bit(), bits & format.sign_bit());
                }
            }
        }
    }
}

#[test]
fn floats_to_floats_round_by_definition() {
    let mut random = Random(10);
    for from in Float::ALL {
        let list: Vec<u64> =
            specials(oracle(from)).into_iter().chain((0..4_000).map(|_| random.float(oracle(from)))).collect();
        for to in Float::ALL {
            for (&bits, rounding) in list.iter().flat_map(|bits| Rounding::ALL.map(|rounding| (bits, rounding))) {
                let result = float_to_float(bits, from, to, rounding);
                if oracle(from).is_nan(bits) {
                    let canonical = [0x7fff, 0x7fff, 0x7fff_ffff, NAN_F64];
                    assert_eq!(result, canonical[Float::ALL.iter().position(|float| *float == to).unwrap()]);
                } else if !oracle(from).is_finite(bits) {
                    assert_eq!(result & !oracle(to).sign_bit(), oracle(to).infinity());
                } else {
                    let correct = oracle(to).is_rounded_sum(result, rounding, [oracle(from).value(bits), NOTHING]);
                    assert!(correct, "{from:?} {to:?} {rounding:?} {bits:x}: {result:x}");
                }
                if !oracle(from).is_nan(bits) {
                    assert_eq!(bits & oracle(from).sign_bit() != 0, result & oracle(to).sign_bit() != 0);
                }
            }
        }
    }
}

/// A `cvt` without modifiers.
fn plain(from: Type, to: Type, rounding: Option<Rounding>) -> Conversion {
    Conversion { from, to, rounding, ftz: false, saturate: false, relu: false, satfinite: false }
}

#[test]
fn whole_instructions_apply_their_modifiers() {
    let [f16, bf16, f32, f64] = [Float::F16, Float::Bf16, Float::F32, Float::F64].map(Type::Float);
    let bits = |x: f32| u64::from(x.to_bits());
    let rn = Some(Rounding::Nearest);
    let ftz = Conversion { ftz: true, ..plain(f32, Type::Integer(Integer::S32), Some(Rounding::Up)) };
    assert_eq!(ftz.apply(1), 0, "cvt.rpi.ftz.s32.f32 of a subnormal number");
    assert_eq!(Conversion { ftz: false, ..ftz }.apply(1), 1);
    let narrow = Conversion { ftz: true, ..plain(f64, f32, rn) };
    assert_eq!(narrow.apply((-1e-40f64).to_bits()), 0x8000_0000, "a subnormal result");
    let saturate = Conversion { saturate: true, ..plain(f64, f32, rn) };
    assert_eq!([f64::NAN, -1.0, 0.5, 2.0].map(|x| saturate.apply(x.to_bits())), [0.0, 0.0, 0.5, 1.0].map(bits));
    let saturate = Conversion { saturate: true, ..plain(f32, f64, None) };
    assert_eq!(saturate.apply(bits(-0.0)), 0);
    assert_eq!(saturate.apply(bits(3.0)), 1.0f64.to_bits());
    let saturate =
        Conversion { saturate: true, ..plain(Type::Integer(Integer::S32), Type::Integer(Integer::U8), None) };
    assert_eq!([300u64, 0xffff_ff00, 7].map(|x| saturate.apply(x)), [255, 0, 7]);
    for half in [f16, bf16] {
        let relu = Conversion { relu: true, ..plain(f32, half, rn) };
        assert_eq!([-1.0, -0.0, f32::NAN].map(|x| relu.apply(bits(x))), [0, 0, 0x7fff]);
        let finite = Conversion { satfinite: true, ..plain(f32, half, rn) };
        let largest = if half == f16 { 0x7bff } else { 0x7f7f };
        assert_eq!([f32::MAX, f32::INFINITY].map(|x| finite.apply(bits(x))), [largest; 2]);
        assert_eq!(finite.apply(bits(f32::NEG_INFINITY)), largest | 0x8000);
    }
    let rint = plain(f32, f32, rn);
    assert_eq!([2.5, 3.5, -0.25].map(|x| rint.apply(bits(x))), [2.0, 4.0, -0.0].map(bits));
    let copy = Conversion { saturate: true, ..plain(f32, f32, None) };
    assert_eq!([2.5, 0.3].map(|x| copy.apply(bits(x))), [1.0, 0.3].map(bits));
}

/// The value of an 8-bit float by its definition; `None` for NaN, infinities included as such.
fn fp8_value(fp8: Fp8, bits: u8) -> Option<f64> {
    let (fraction_bits, bias) = match fp8 {
        Fp8::E4m3 => (3, 7),
        Fp8::E5m2 => (2, 15),
    };
    let (field, fraction) = (i32::from(bits & 0x7f) >> fraction_bits, f64::from(bits & ((1 << fraction_bits) - 1)));
    let step = fraction / f64::from(1 << fraction_bits);
    let magnitude = match (fp8, field) {
        (Fp8::E4m3, _) if bits & 0x7f == 0x7f => return None,
        (Fp8::E5m2, 31) if fraction != 0.0 => return None,
        (Fp8::E5m2, 31) => f64::INFINITY,
        (_, 0) => step * 2f64.powi(1 - bias),
        (_, field) => (1.0 + step) * 2f64.powi(field - bias),
    };
    Some(if bits & 0x80 != 0 { -magnitude } else { magnitude })
}

/// The nearest finite 8-bit float by trying all of them, ties to the even one.
fn nearest_fp8(fp8: Fp8, value: f64) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let distance = |bits: u8| (fp8_value(fp8, bits).unwrap() - value.abs().min(1e9)).abs();
    (0..=fp8.largest()).min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1)))).unwrap() | sign
}

#[test]
fn every_fp8_value_widens_exactly() {
    assert_eq!(fp8_value(Fp8::E4m3, Fp8::E4m3.largest()), Some(448.0));
    assert_eq!(fp8_value(Fp8::E5m2, Fp8::E5m2.largest()), Some(57344.0));
    for fp8 in [Fp8::E4m3, Fp8::E5m2] {
        for bits in 0..=u8::MAX {
            let wide = Half::F16.value(fp8.to_f16(bits));
            match fp8_value(fp8, bits) {
                None => assert_eq!(fp8.to_f16(bits), 0x7fff),
                Some(value) => assert!(f64::from(wide) == value && wide.is_sign_negative() == (bits >= 0x80)),
            }
        }
    }
}

#[test]
fn every_half_and_many_singles_narrow_to_the_nearest_fp8() {
    let mut random = Random(11);
    for fp8 in [Fp8::E4m3, Fp8::E5m2] {
        for bits in (0..=u16::MAX).step_by(7).chain([0x7c00, 0xfc00, 0x7bff]) {
            let expected = nearest_fp8(fp8, f64::from(Half::F16.value(bits)));
            assert_eq!(fp8.from_f16(bits, false), expected, "{fp8:?} {bits:04x}");
        }
        // All midpoints, where ties go to the even number, and their neighbours in f32.
        for bits in 0..fp8.largest() {
            let middle = (fp8_value(fp8, bits).unwrap() + fp8_value(fp8, bits + 1).unwrap()) as f32 / 2.0;
            for value in [middle.to_bits() - 1, middle.to_bits(), middle.to_bits() + 1] {
                for signed in [value, value | 0x8000_0000] {
                    let expected = nearest_fp8(fp8, f64::from(f32::from_bits(signed)));
                    assert_eq!(fp8.from_f32(signed, false), expected, "{fp8:?} {signed:08x}");
                }
            }
        }
        for _ in 0..3_000 {
            let bits = random.float(numeric_oracle::F32) as u32;
            assert_eq!(fp8.from_f32(bits, false), nearest_fp8(fp8, f64::from(f32::from_bits(bits))));
        }
        assert_eq!(fp8.from_f32((-1.0f32).to_bits(), true), 0);
        assert_eq!(fp8.from_f32(0x8000_0000, true), 0);
        assert_eq!(fp8.from_f32(f32::NAN.to_bits(), true), 0x7f);
        assert_eq!(fp8.from_f32(f32::NEG_INFINITY.to_bits(), false), fp8.largest() | 0x80);
    }
}

#[test]
fn packed_fp8_keeps_the_first_operand_in_the_high_byte() {
    let [two, three] = [2.0f32, -3.0].map(f32::to_bits);
    assert_eq!(fp8x2_from_f32(Fp8::E4m3, two, three, false), 0x40c4);
    assert_eq!(fp8x2_from_f32(Fp8::E4m3, two, three, true), 0x4000);
    assert_eq!(fp8x2_from_f16x2(Fp8::E5m2, pack(0x4000, 0xc200), false), 0x40c2);
    assert_eq!(f16x2_from_fp8x2(Fp8::E4m3, 0x40c4, false), pack(0x4000, 0xc200));
    assert_eq!(f16x2_from_fp8x2(Fp8::E4m3, 0x40c4, true), pack(0x4000, 0));
}
