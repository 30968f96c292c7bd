//! Integer arithmetic, shifts and bit fields against the manual's pseudo-code, bit by bit.

use crate::common::Random;
use ptx_emulator::numeric::bits::*;
use ptx_emulator::numeric::integer::*;

/// Operands at the ends of the types, powers of two, and random ones.
fn words() -> Vec<u64> {
    let mut random = Random(12);
    let edges = [0, 1, 2, 3, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    let wide = [0x1_0000_0000, i64::MAX as u64, i64::MIN as u64, u64::MAX, u64::MAX - 1];
    edges.into_iter().chain(wide).chain((0..40).map(|_| random.bits() >> (random.bits() % 64))).collect()
}

#[test]
fn products() {
    for a in words() {
        for b in words() {
            let signed = |x: u64, width: u32| i128::from((x << (64 - width)) as i64 >> (64 - width));
            let unsigned = |x: u64, width: u32| u128::from(x << (64 - width) >> (64 - width));
            let high_s = |width: u32| (signed(a, width) * signed(b, width)) >> width;
            let high_u = |width: u32| (unsigned(a, width) * unsigned(b, width)) >> width;
            assert_eq!(mul_hi_u16(a as u16, b as u16), high_u(16) as u16);
            assert_eq!(mul_hi_s16(a as u16, b as u16), high_s(16) as u16);
            assert_eq!(mul_hi_u32(a as u32, b as u32), high_u(32) as u32);
            assert_eq!(mul_hi_s32(a as u32, b as u32), high_s(32) as u32);
            // The 64-bit products by parts of 32 bits.
            let (a1, a0, b1, b0) = (a >> 32, a & 0xffff_ffff, b >> 32, b & 0xffff_ffff);
            let low = |x: u64| x & 0xffff_ffff;
            let middle = ((a0 * b0) >> 32) + low(a1 * b0) + low(a0 * b1);
            let high = a1 * b1 + ((a1 * b0) >> 32) + ((a0 * b1) >> 32) + (middle >> 32);
            assert_eq!(mul_hi_u64(a, b), high);
            let minus_b = if (a as i64) < 0 { b } else { 0 };
            let minus_a = if (b as i64) < 0 { a } else { 0 };
            assert_eq!(mul_hi_s64(a, b), high.wrapping_sub(minus_a).wrapping_sub(minus_b));
            let product24_u = unsigned(a, 24) * unsigned(b, 24);
            let product24_s = signed(a, 24) * signed(b, 24);
            assert_eq!(mul24_lo_u32(a as u32, b as u32), product24_u as u32);
            assert_eq!(mul24_hi_u32(a as u32, b as u32), (product24_u >> 16) as u32);
            assert_eq!(mul24_lo_s32(a as u32, b as u32), product24_s as u32);
            assert_eq!(mul24_hi_s32(a as u32, b as u32), (product24_s >> 16) as u32);
            let clamp = |x: i128| x.clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as u32;
            assert_eq!(add_sat_s32(a as u32, b as u32), clamp(signed(a, 32) + signed(b, 32)));
            assert_eq!(sub_sat_s32(a as u32, b as u32), clamp(signed(a, 32) - signed(b, 32)));
            assert_eq!(mad_hi_sat_s32(a as u32, b as u32, a as u32), clamp(high_s(32) + signed(a, 32)));
        }
    }
}

#[test]
fn quotients_truncate_and_never_panic() {
    for a in words() {
        for b in words() {
            macro_rules! check {
                ($bits:ty, $number:ty, $div:ident, $rem:ident) => {
                    let (x, y) = (a as $number as i128, b as $number as i128);
                    let (quotient, rest) = ($div(a as $bits, b as $bits), $rem(a as $bits, b as $bits));
                    if y == 0 {
                        assert_eq!((quotient, rest), (<$bits>::MAX, <$bits>::MAX));
                    } else {
                        assert_eq!((quotient, rest), ((x / y) as $bits, (x % y) as $bits), "{x} / {y}");
                    }
                };
            }
            check!(u16, u16, div_u16, rem_u16);
            check!(u16, i16, div_s16, rem_s16);
            check!(u32, u32, div_u32, rem_u32);
            check!(u32, i32, div_s32, rem_s32);
            check!(u64, u64, div_u64, rem_u64);
            check!(u64, i64, div_s64, rem_s64);
        }
    }
}

#[test]
fn sums_of_differences_and_dot_products() {
    let list = words();
    for (index, &a) in list.iter().enumerate() {
        for &b in &list {
            let c = list[index / 2];
            let distance = |x: i128, y: i128| (x - y).abs() + i128::from(c);
            assert_eq!(sad_u16(a as u16, b as u16, c as u16), distance((a as u16).into(), (b as u16).into()) as u16);
            assert_eq!(sad_s16(a as u16, b as u16, c as u16), distance((a as i16).into(), (b as i16).into()) as u16);
            assert_eq!(sad_u32(a as u32, b as u32, c as u32), distance((a as u32).into(), (b as u32).into()) as u32);
            assert_eq!(sad_s32(a as u32, b as u32, c as u32), distance((a as i32).into(), (b as i32).into()) as u32);
            assert_eq!(sad_u64(a, b, c), distance(a.into(), b.into()) as u64);
            assert_eq!(sad_s64(a, b, c), distance((a as i64).into(), (b as i64).into()) as u64);
            for (a_signed, b_signed) in [(false, false), (false, true), (true, false), (true, true)] {
                let byte = |x: u8, signed: bool| if signed { i64::from(x as i8) } else { i64::from(x) };
                let (x, y) = ((a as u32).to_le_bytes(), (b as u32).to_le_bytes());
                let dot: i64 = (0..4).map(|i| byte(x[i], a_signed) * byte(y[i], b_signed)).sum();
                assert_eq!(dp4a(a as u32, a_signed, b as u32, b_signed, c as u32), dot.wrapping_add(c as i64) as u32);
                let word = |x: u32, signed: bool| if signed { i64::from(x as u16 as i16) } else { i64::from(x as u16) };
                for upper in [false, true] {
                    let first = usize::from(upper) * 2;
                    let dot = word(a as u32, a_signed) * byte(y[first], b_signed)
                        + word(a as u32 >> 16, a_signed) * byte(y[first + 1], b_signed);
                    let actual = dp2a(a as u32, a_signed, b as u32, b_signed, c as u32, upper);
                    assert_eq!(actual, dot.wrapping_add(c as i64) as u32);
                }
            }
        }
    }
}

#[test]
fn carries_chain_into_wide_sums() {
    for a in words() {
        for b in words() {
            for carry in [false, true] {
                let (low, out) = add_carry_u32(a as u32, b as u32, carry);
                let (high, top) = add_carry_u32((a >> 32) as u32, (b >> 32) as u32, out);
                let wide = u128::from(a) + u128::from(b) + u128::from(carry);
                assert_eq!((u64::from(high) << 32 | u64::from(low), top), (wide as u64, wide >> 64 != 0));
                assert_eq!(add_carry_u64(a, b, carry), (wide as u64, wide >> 64 != 0));
                let (low, out) = sub_borrow_u32(a as u32, b as u32, carry);
                let (high, top) = sub_borrow_u32((a >> 32) as u32, (b >> 32) as u32, out);
                let less = u128::from(a) < u128::from(b) + u128::from(carry);
                let difference = a.wrapping_sub(b).wrapping_sub(u64::from(carry));
                assert_eq!((u64::from(high) << 32 | u64::from(low), top), (difference, less));
                assert_eq!(sub_borrow_u64(a, b, carry), (difference, less));
            }
        }
    }
}

const AMOUNTS: [u32; 16] = [0, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 1 << 31, u32::MAX];

#[test]
fn shifts_clamp_at_the_width() {
    for a in words() {
        for amount in AMOUNTS {
            // A shift by n is n shifts by one.
            let repeat = |mut x: i128, step: fn(i128) -> i128| {
                (0..amount.min(64)).for_each(|_| x = step(x));
                x
            };
            let (left, right) = (|x| x << 1 & u64::MAX as i128, |x| x >> 1);
            assert_eq!(shl_b16(a as u16, amount), repeat((a as u16).into(), left) as u16);
            assert_eq!(shl_b32(a as u32, amount), repeat((a as u32).into(), left) as u32);
            assert_eq!(shl_b64(a, amount), repeat(a.into(), left) as u64);
            assert_eq!(shr_u16(a as u16, amount), repeat((a as u16).into(), right) as u16);
            assert_eq!(shr_u32(a as u32, amount), repeat((a as u32).into(), right) as u32);
            assert_eq!(shr_u64(a, amount), repeat(a.into(), right) as u64);
            assert_eq!(shr_s16(a as u16, amount), repeat((a as i16).into(), right) as u16);
            assert_eq!(shr_s32(a as u32, amount), repeat((a as i32).into(), right) as u32);
            assert_eq!(shr_s64(a, amount), repeat((a as i64).into(), right) as u64);
            for (mode, n) in [(Funnel::Clamp, amount.min(32)), (Funnel::Wrap, amount & 31)] {
                let (low, high) = (a as u32, (a >> 32) as u32);
                let bit = |position: u32| if position < 32 { low >> position & 1 } else { high >> (position - 32) & 1 };
                let left = (0..32).fold(0, |d, i| d | bit(32 + i - n) << i);
                let right = (0..32).fold(0, |d, i| d | if i + n < 64 { bit(i + n) } else { 0 } << i);
                assert_eq!(shf_l(low, high, amount, mode), left);
                assert_eq!(shf_r(low, high, amount, mode), right);
            }
        }
    }
}

/// `bfe` as the manual writes it, for a width of 32 or 64.
fn bfe(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let sign = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(width - 1) & 1 };
    (0..width).fold(0, |d, i| {
        let inside = i < length && position + i < width;
        d | if inside { a >> (position + i) & 1 } else { sign } << i
    })
}

/// `bfi` as the manual writes it.
fn bfi(a: u64, b: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    (0..length).filter(|i| position + i < width).fold(b, |f, i| {
        let bit = position + i;
        f & !(1 << bit) | (a >> i & 1) << bit
    })
}

#[test]
fn bit_fields_follow_the_manuals_loops() {
    let list = words();
    for (index, &a) in list.iter().enumerate() {
        let b = list[list.len() - 1 - index];
        for position in AMOUNTS {
            for length in AMOUNTS {
                let low = |x: u64| x & 0xffff_ffff;
                let expected = bfe(low(a), position, length, 32, false);
                assert_eq!(u64::from(bfe_u32(a as u32, position, length)), expected);
                let expected = bfe(low(a), position, length, 32, true);
                assert_eq!(u64::from(bfe_s32(a as u32, position, length)), expected, "{a:x} {position} {length}");
                assert_eq!(bfe_u64(a, position, length), bfe(a, position, length, 64, false));
                assert_eq!(bfe_s64(a, position, length), bfe(a, position, length, 64, true));
                let expected = bfi(low(a), low(b), position, length, 32);
                assert_eq!(u64::from(bfi_b32(a as u32, b as u32, position, length)), expected);
                assert_eq!(bfi_b64(a, b, position, length), bfi(a, b, position, length, 64));
            }
        }
    }
}

#[test]
fn searches_for_bits() {
    for a in words() {
        for shift_amount in [false, true] {
            let find = |x: u64, width: u32| match (0..width).rev().find(|i| x >> i & 1 == 1) {
                None => u32::MAX,
                Some(i) if shift_amount => width - 1 - i,
                Some(i) => i,
            };
            let low = a & 0xffff_ffff;
            let flipped = |x: u64, width: u32| if x >> (width - 1) & 1 == 1 { !x } else { x };
            assert_eq!(bfind_u32(a as u32, shift_amount), find(low, 32));
            assert_eq!(bfind_s32(a as u32, shift_amount), find(flipped(low, 32), 32));
            assert_eq!(bfind_u64(a, shift_amount), find(a, 64));
            assert_eq!(bfind_s64(a, shift_amount), find(flipped(a, 64), 64));
        }
    }
    // The manual's examples.
    let examples = [(3, 1, 3), (3, -1, 3), (2, 1, 3), (2, -1, 1)];
    for (base, offset, expected) in examples {
        assert_eq!(fns(0xaaaa_aaaa, base, offset as u32), expected);
    }
    assert_eq!([fns(8, 3, 0), fns(8, 2, 0), fns(8, 0, 2), fns(0, 31, u32::MAX)], [3, u32::MAX, u32::MAX, u32::MAX]);
    assert_eq!(fns(1, 0, i32::MIN as u32), u32::MAX);
}

#[test]
fn lop3_is_its_truth_table() {
    // The table of an expression is the expression of these three constants.
    let (a, b, c) = (0xf0u8, 0xcc, 0xaa);
    let [x, y, z] = [0x1234_5678, 0x9abc_def0, 0x0f1e_2d3c];
    assert_eq!(lop3(x, y, z, a & b & c), x & y & z);
    assert_eq!(lop3(x, y, z, a ^ b ^ c), x ^ y ^ z);
    assert_eq!(lop3(x, y, z, (a & b) | !c), (x & y) | !z);
    for table in 0..=u8::MAX {
        let expected = (0..32).fold(0, |d, bit| {
            let row = (x >> bit & 1) << 2 | (y >> bit & 1) << 1 | (z >> bit & 1);
            d | u32::from(table >> row & 1) << bit
        });
        assert_eq!(lop3(x, y, z, table), expected, "{table:02x}");
    }
}

#[test]
fn prmt_follows_the_manuals_tables() {
    let (a, b) = (0x8302_81f0, 0x0786_0504);
    let bytes: Vec<u8> = u32::to_le_bytes(a).into_iter().chain(u32::to_le_bytes(b)).collect();
    // The source bytes of d, from byte 3 to byte 0, for c = 0, 1, 2, 3.
    let tables = [
        (Permute::Forward, [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        (Permute::Backward, [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        (Permute::Replicate8, [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        (Permute::EdgeClampLeft, [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        (Permute::EdgeClampRight, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        (Permute::Replicate16, [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, rows) in tables {
        for (c, row) in rows.into_iter().enumerate() {
            let expected = u32::from_be_bytes(row.map(|byte: usize| bytes[byte]));
            assert_eq!(prmt(a, b, c as u32, mode), expected, "{mode:?} {c}");
            assert_eq!(prmt(a, b, c as u32 | 0xffff_fffc, mode), expected, "upper bits of c are ignored");
        }
    }
    for c in 0..=u32::from(u16::MAX) {
        let expected = u32::from_le_bytes(std::array::from_fn(|i| {
            let selector = c >> (4 * i) & 0xf;
            let byte = bytes[(selector & 7) as usize];
            if selector < 8 { byte } else { [0, 0xff][usize::from(byte >= 0x80)] }
        }));
        assert_eq!(prmt(a, b, c, Permute::Index), expected, "{c:04x}");
    }
}
