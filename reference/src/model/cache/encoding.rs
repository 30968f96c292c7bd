//! How a vector of numbers becomes bytes: codes first, then the scales that its groups of numbers share.
//!
//! ```text
//! scale = max |x| / top      over a group; top: the largest number that a code can be
//! code  = round(x / scale)   to nearest, ties to even
//! x'    = code * scale
//! ```
//!
//! All in fp32. Two rules are ours: a scale that is not a normal number (of a group of zeros, say) is 1, and a group
//! that holds a NaN or an infinity gets the scale NaN, so that all of it reads as NaN and nothing is hidden.
//!
//! **Encoding twice gives the same bytes.** The largest number of a group always gets the code `top`, so the second
//! scale is `(top * scale) / top`. For integers that product is exact (8 bits times 8 bits). For e4m3 it is rounded to
//! fp32; that the division finds the same scale nevertheless is tested for every mantissa.
//!
//! **Trap.** FlashMLA's tests round the fp8 scales up to powers of two. A largest number just above 224 scales then gets
//! the code 224, and the second scale is half of the first: equal numbers, other bytes.

use float8::F8E4M3;
use half::bf16;

use crate::Real;

/// The format of one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Each number on its own, in bf16. NaN and infinity stay what they are.
    Bf16,
    /// 8-bit floating point (4 bits of exponent, 3 of fraction, largest 448), an fp32 scale for each `tile` of numbers.
    E4m3 { tile: usize },
    /// Two's complement of `bits` bits (at most 8), from -top to top = 2^(bits-1) - 1, a bf16 scale for each `group`.
    /// Code i has the bits `i bits` to `(i+1) bits` of the codes, counted from the lowest bit of the first byte.
    Integers { bits: usize, group: usize },
}

impl Encoding {
    /// How many bytes `length` numbers take: whole bytes of codes, then the scales. The last group may be shorter.
    pub(super) fn bytes(self, length: usize) -> usize {
        match self {
            Encoding::Bf16 => 2 * length,
            Encoding::E4m3 { tile } => length + 4 * length.div_ceil(tile),
            Encoding::Integers { bits, group } => (bits * length).div_ceil(8) + 2 * length.div_ceil(group),
        }
    }

    /// Writes `numbers` to `bytes`, which has exactly [`Encoding::bytes`].
    pub(super) fn encode<T: Real>(self, numbers: &[T], bytes: &mut [u8]) {
        let numbers: Vec<f32> = numbers.iter().map(|&x| saturated(x)).collect();
        bytes.fill(0);
        match self {
            Encoding::Bf16 => {
                for (x, bytes) in numbers.iter().zip(bytes.as_chunks_mut::<2>().0) {
                    *bytes = if x.is_nan() { bf16::NAN } else { bf16::from_f32(*x) }.to_le_bytes();
                }
            }
            Encoding::E4m3 { tile } => {
                let (codes, scales) = bytes.split_at_mut(numbers.len());
                let tiles = numbers.chunks(tile).zip(codes.chunks_mut(tile));
                for ((numbers, codes), kept) in tiles.zip(scales.as_chunks_mut::<4>().0) {
                    let scale = scale(numbers, 448.0, |scale| scale);
                    for (x, code) in numbers.iter().zip(codes) {
                        *code = if scale.is_nan() { F8E4M3::NAN } else { F8E4M3::from_f32(x / scale) }.to_bits();
                    }
                    *kept = scale.to_le_bytes();
                }
            }
            Encoding::Integers { bits, group } => {
                let (codes, scales) = bytes.split_at_mut((bits * numbers.len()).div_ceil(8));
                let top = top(bits);
                for (g, (numbers, kept)) in numbers.chunks(group).zip(scales.as_chunks_mut::<2>().0).enumerate() {
                    let scale = scale(numbers, top, |scale| bf16::from_f32(scale).to_f32());
                    for (i, x) in numbers.iter().enumerate() {
                        let code = (x / scale).round_ties_even().clamp(-top, top); // NaN becomes 0 below
                        put_bits(codes, group * g + i, bits, code as i8);
                    }
                    *kept = bf16::from_f32(scale).to_le_bytes();
                }
            }
        }
    }

    /// The numbers that `bytes` stand for; each is an fp32 number.
    pub(super) fn decode<T: Real>(self, bytes: &[u8], numbers: &mut [T]) {
        match self {
            Encoding::Bf16 => {
                for (x, &bytes) in numbers.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = T::from_f32(bf16::from_le_bytes(bytes).to_f32());
                }
            }
            Encoding::E4m3 { tile } => {
                let (codes, scales) = bytes.split_at(numbers.len());
                let tiles = numbers.chunks_mut(tile).zip(codes.chunks(tile));
                for ((numbers, codes), &scale) in tiles.zip(scales.as_chunks::<4>().0) {
                    let scale = f32::from_le_bytes(scale);
                    for (x, &code) in numbers.iter_mut().zip(codes) {
                        *x = T::from_f32(F8E4M3::from_bits(code).to_f32() * scale);
                    }
                }
            }
            Encoding::Integers { bits, group } => {
                let (codes, scales) = bytes.split_at((bits * numbers.len()).div_ceil(8));
                for (g, (numbers, &scale)) in numbers.chunks_mut(group).zip(scales.as_chunks::<2>().0).enumerate() {
                    let scale = bf16::from_le_bytes(scale).to_f32();
                    for (i, x) in numbers.iter_mut().enumerate() {
                        *x = T::from_f32(f32::from(get_bits(codes, group * g + i, bits)) * scale);
                    }
                }
            }
        }
    }
}

/// Rounds each number to what fp8 makes of it: e4m3, with an fp32 scale for each `tile` of numbers.
pub(crate) fn as_e4m3<T: Real>(numbers: &mut [T], tile: usize) {
    let encoding = Encoding::E4m3 { tile };
    let mut bytes = vec![0; encoding.bytes(numbers.len())];
    encoding.encode(numbers, &mut bytes);
    encoding.decode(&bytes, numbers);
}

/// The nearest fp32 number. Finite numbers beyond the largest of bf16 (3.39e38) are made that.
fn saturated<T: Real>(x: T) -> f32 {
    let largest = bf16::MAX.to_f32();
    if x.is_finite() { x.to_f32().clamp(-largest, largest) } else { x.to_f32() }
}

/// The scale of a group: see the module.
fn scale(group: &[f32], top: f32, round: impl Fn(f32) -> f32) -> f32 {
    if group.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let largest = group.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let scale = round(largest / top);
    if scale.is_normal() { scale } else { 1.0 }
}

/// The largest integer of so many bits, as a code.
fn top(bits: usize) -> f32 {
    f32::from((1_u8 << (bits - 1)) - 1)
}

/// Adds code `i` to codes of `bits` bits, whose place is still 0.
fn put_bits(codes: &mut [u8], i: usize, bits: usize, code: i8) {
    let (byte, shift) = (i * bits / 8, i * bits % 8);
    let code = u16::from(code as u8) & ((1 << bits) - 1);
    let [low, high] = (code << shift).to_le_bytes();
    codes[byte] |= low;
    if high != 0 {
        codes[byte + 1] |= high;
    }
}

/// Code `i` of codes of `bits` bits, its highest bit taken as a sign.
fn get_bits(codes: &[u8], i: usize, bits: usize) -> i8 {
    let (byte, shift) = (i * bits / 8, i * bits % 8);
    let window = u16::from_le_bytes([codes[byte], codes.get(byte + 1).copied().unwrap_or(0)]);
    let unused = 8 - bits;
    ((window >> shift) as u8).unbounded_shl(unused as u32) as i8 >> unused
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE_BITS: Encoding = Encoding::Integers { bits: 5, group: 32 };

    fn bytes(encoding: Encoding, numbers: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0xff; encoding.bytes(numbers.len())];
        encoding.encode(numbers, &mut bytes);
        bytes
    }

    fn kept(encoding: Encoding, numbers: &[f32]) -> Vec<f32> {
        let mut kept = vec![0.0; numbers.len()];
        encoding.decode(&bytes(encoding, numbers), &mut kept);
        kept
    }

    #[test]
    fn codes_of_five_bits_follow_each_other_from_the_lowest_bit_on() {
        // scale 1, which is 3f80 in bf16; -1 is 11111
        let [first, second, third, _] = (15_u32 + (0b11111 << 5) + (2 << 10)).to_le_bytes();
        assert_eq!(bytes(FIVE_BITS, &[15.0, -1.0, 2.0, 0.0]), [first, second, third, 0x80, 0x3f]);
    }

    #[test]
    fn codes_round_to_nearest_even_and_the_largest_number_gets_the_largest_code() {
        assert_eq!(kept(FIVE_BITS, &[15.0, 0.5, 1.5, -2.5, -0.6]), [15.0, 0.0, 2.0, -2.0, -1.0]);
        // 1 / 15 rounds to 0x3d89 in bf16, a little more
        let scale = f32::from_bits(0x3d89_0000);
        assert_eq!(kept(FIVE_BITS, &[-1.0, 0.1]), [-15.0 * scale, 1.0 * scale]);
    }

    #[test]
    fn every_code_of_e4m3_is_kept() {
        for code in (0..=0xff).filter(|code| code & 0x7f != 0x7f) {
            let x = F8E4M3::from_bits(code).to_f32();
            assert_eq!(bytes(Encoding::E4m3 { tile: 2 }, &[x, -448.0])[..2], [code, 0xfe], "{x}");
        }
        assert!([0x7f, 0xff].iter().all(|&code| F8E4M3::from_bits(code).to_f32().is_nan()));
    }

    #[test]
    fn e4m3_is_the_nearest_of_its_numbers_for_every_bf16() {
        // sign, 4 bits of exponent with bias 7, 3 bits of fraction; 0 is the exponent of subnormals
        let value = |code: u8| match code >> 3 {
            0 => f64::from(code) / 512.0,
            exponent => (1.0 + f64::from(code & 7) / 8.0) * (f64::from(exponent) - 7.0).exp2(),
        };
        for x in (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).filter(|x| x.abs() <= 448.0) {
            let distance = |code: &u8| (value(*code) - f64::from(x).abs()).abs();
            // of two at the same distance the even one
            let nearest = (0..0x7f).min_by(|a, b| (distance(a), a & 1).partial_cmp(&(distance(b), b & 1)).unwrap());
            let sign = u8::from(x.is_sign_negative()) << 7;
            assert_eq!(F8E4M3::from_f32(x).to_bits(), sign | nearest.unwrap(), "{x}");
        }
    }

    #[test]
    fn the_largest_number_gets_the_largest_code_and_its_scale_is_found_again_from_that() {
        let found_again = |top: f32, round: fn(f32) -> f32| {
            // All mantissas; another exponent changes nothing.
            for x in (0..1 << 23).map(|mantissa| f32::from_bits(0x3f80_0000 | mantissa)) {
                let found = scale(&[x], top, round);
                assert!((x / found - top).abs() < 0.5, "{x}");
                assert_eq!(scale(&[top * found], top, round), found, "{x}");
            }
        };
        found_again(448.0, |scale| scale);
        found_again(127.0, |scale| bf16::from_f32(scale).to_f32());
        found_again(15.0, |scale| bf16::from_f32(scale).to_f32());
    }

    #[test]
    fn zeros_have_the_scale_one_and_keep_their_sign_in_floating_point() {
        assert_eq!(bytes(Encoding::E4m3 { tile: 128 }, &[0.0, -0.0]), [0, 0x80, 0, 0, 0x80, 0x3f]);
        assert_eq!(bytes(FIVE_BITS, &[0.0, -0.0]), [0, 0, 0x80, 0x3f]);
        // too small for a normal scale: zero as well
        assert_eq!(bytes(Encoding::E4m3 { tile: 128 }, &[-1e-40]), [0x80, 0, 0, 0x80, 0x3f]);
    }

    #[test]
    fn the_largest_fp32_numbers_saturate_and_nothing_overflows() {
        for encoding in
            [Encoding::Bf16, Encoding::E4m3 { tile: 128 }, FIVE_BITS, Encoding::Integers { bits: 8, group: 8 }]
        {
            let kept = kept(encoding, &[f32::MAX, -f32::MAX, 1.0]);
            assert!(kept.iter().all(|x| x.is_finite()), "{encoding:?}: {kept:?}");
            assert!(
                (kept[0] / bf16::MAX.to_f32() - 1.0).abs() < 0.005 && kept[1] == -kept[0],
                "{encoding:?}: {kept:?}"
            );
        }
        let mut wide = [0.0_f64; 1];
        let mut bytes = [0; 2];
        Encoding::Bf16.encode(&[1e300_f64], &mut bytes);
        Encoding::Bf16.decode(&bytes, &mut wide);
        assert_eq!(wide, [bf16::MAX.to_f64()]);
    }

    #[test]
    fn a_group_with_a_nan_or_an_infinity_is_nan_and_its_neighbours_are_not() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for encoding in [Encoding::E4m3 { tile: 2 }, Encoding::Integers { bits: 5, group: 2 }] {
                let kept = kept(encoding, &[1.0, bad, 2.0, 3.0]);
                assert_eq!(kept.iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [true, true, false, false]);
            }
        }
        let kept = kept(Encoding::Bf16, &[1.0, f32::NAN, f32::INFINITY]);
        assert!(kept[0] == 1.0 && kept[1].is_nan() && kept[2] == f32::INFINITY);
    }
}
