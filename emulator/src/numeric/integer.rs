//! Integer arithmetic that is more than one operator of Rust: `mul.hi`, `mad.hi`, `mul24`, `div`, `rem`, `sad`, `dp4a`,
//! saturation and carries ("Integer Arithmetic Instructions" and "Extended-Precision Integer Arithmetic Instructions"
//! in the PTX manual).
//!
//! `add`, `sub`, `mul.lo`, `neg` and `abs` wrap around: `wrapping_add` and its kin say all of it.

/// `mul.hi.u16`: the upper half of the product.
#[inline(always)]
pub fn mul_hi_u16(a: u16, b: u16) -> u16 {
    ((u32::from(a) * u32::from(b)) >> 16) as u16
}

/// `mul.hi.s16`
#[inline(always)]
pub fn mul_hi_s16(a: u16, b: u16) -> u16 {
    ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16
}

/// `mul.hi.u32`
#[inline(always)]
pub fn mul_hi_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

/// `mul.hi.s32`
#[inline(always)]
pub fn mul_hi_s32(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

/// `mul.hi.u64`
#[inline(always)]
pub fn mul_hi_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// `mul.hi.s64`
#[inline(always)]
pub fn mul_hi_s64(a: u64, b: u64) -> u64 {
    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
}

/// `mad.hi.sat.s32`: the upper half of the product plus `c`, clamped. Plain `mad.hi` is [`mul_hi_u32`] and its kin
/// followed by a wrapping addition.
#[inline(always)]
pub fn mad_hi_sat_s32(a: u32, b: u32, c: u32) -> u32 {
    add_sat_s32(mul_hi_s32(a, b), c)
}

/// `mul24.lo.u32`: the lower 32 bits of the 48-bit product of the lower 24 bits.
#[inline(always)]
pub fn mul24_lo_u32(a: u32, b: u32) -> u32 {
    (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)
}

/// `mul24.lo.s32`
#[inline(always)]
pub fn mul24_lo_s32(a: u32, b: u32) -> u32 {
    let signed = |x: u32| (x << 8) as i32 >> 8;
    signed(a).wrapping_mul(signed(b)) as u32
}

/// `mul24.hi.u32`: bits 47:16 of the 48-bit product of the lower 24 bits.
#[inline(always)]
pub fn mul24_hi_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 16) as u32
}

/// `mul24.hi.s32`
#[inline(always)]
pub fn mul24_hi_s32(a: u32, b: u32) -> u32 {
    let signed = |x: u32| i64::from((x << 8) as i32 >> 8);
    ((signed(a) * signed(b)) >> 16) as u32
}

/// `add.sat.s32`
#[inline(always)]
pub fn add_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_add(b as i32) as u32
}

/// `sub.sat.s32`
#[inline(always)]
pub fn sub_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_sub(b as i32) as u32
}

/// `sad.u32`: `c + |a - b|`. The 16-bit and 64-bit forms follow the same rule.
#[inline(always)]
pub fn sad_u32(a: u32, b: u32, c: u32) -> u32 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s32`: `c + |a - b|`
#[inline(always)]
pub fn sad_s32(a: u32, b: u32, c: u32) -> u32 {
    c.wrapping_add((a as i32).abs_diff(b as i32))
}

/// `sad.u64`
#[inline(always)]
pub fn sad_u64(a: u64, b: u64, c: u64) -> u64 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s64`
#[inline(always)]
pub fn sad_s64(a: u64, b: u64, c: u64) -> u64 {
    c.wrapping_add((a as i64).abs_diff(b as i64))
}

/// `sad.u16`
#[inline(always)]
pub fn sad_u16(a: u16, b: u16, c: u16) -> u16 {
    c.wrapping_add(a.abs_diff(b))
}

/// `sad.s16`
#[inline(always)]
pub fn sad_s16(a: u16, b: u16, c: u16) -> u16 {
    c.wrapping_add((a as i16).abs_diff(b as i16))
}

/// Division and remainder of one integer type.
///
/// "Division by zero yields an unspecified, machine-specific value", says the manual. Here it is the value with all
/// bits set, for `div` and `rem` alike, and never a panic; a checking caller can report the zero before it calls. The
/// most negative number divided by -1 wraps around to itself, remainder zero.
macro_rules! division {
    ($bits:ty, $number:ty, $div:ident, $rem:ident, $name:literal) => {
        #[doc = concat!("`div.", $name, "`, truncating. A zero divisor gives all bits set (unspecified in the manual).")]
        #[inline(always)]
        pub fn $div(a: $bits, b: $bits) -> $bits {
            if b == 0 { <$bits>::MAX } else { (a as $number).wrapping_div(b as $number) as $bits }
        }

        #[doc = concat!("`rem.", $name, "`, with the sign of the dividend. A zero divisor gives all bits set.")]
        #[inline(always)]
        pub fn $rem(a: $bits, b: $bits) -> $bits {
            if b == 0 { <$bits>::MAX } else { (a as $number).wrapping_rem(b as $number) as $bits }
        }
    };
}

division!(u16, u16, div_u16, rem_u16, "u16");
division!(u16, i16, div_s16, rem_s16, "s16");
division!(u32, u32, div_u32, rem_u32, "u32");
division!(u32, i32, div_s32, rem_s32, "s32");
division!(u64, u64, div_u64, rem_u64, "u64");
division!(u64, i64, div_s64, rem_s64, "s64");

/// `dp4a.atype.btype d, a, b, c`: the dot product of four bytes of `a` and `b`, plus `c`, wrapping. Each of `a` and `b`
/// is signed (`.s32`) or not (`.u32`) on its own.
#[inline(always)]
pub fn dp4a(a: u32, a_signed: bool, b: u32, b_signed: bool, c: u32) -> u32 {
    let mut sum = c;
    for byte in 0..4 {
        sum = sum.wrapping_add(piece(a, byte, 8, a_signed).wrapping_mul(piece(b, byte, 8, b_signed)));
    }
    sum
}

/// `dp2a.{lo,hi}.atype.btype d, a, b, c`: the dot product of the two halves of `a` with the lower or upper two bytes of
/// `b`, plus `c`, wrapping.
#[inline(always)]
pub fn dp2a(a: u32, a_signed: bool, b: u32, b_signed: bool, c: u32, upper: bool) -> u32 {
    let first = if upper { 2 } else { 0 };
    let mut sum = c;
    for part in 0..2 {
        sum = sum.wrapping_add(piece(a, part, 16, a_signed).wrapping_mul(piece(b, first + part, 8, b_signed)));
    }
    sum
}

/// The `index`-th piece of `width` bits, extended to 32 bits.
#[inline(always)]
fn piece(bits: u32, index: u32, width: u32, signed: bool) -> u32 {
    let at_top = bits >> (index * width) << (32 - width);
    if signed { (at_top as i32 >> (32 - width)) as u32 } else { at_top >> (32 - width) }
}

/// `add.cc` and `addc{.cc}` on 32 bits: the sum with a carry in (`false` for `add.cc`), and the carry out.
#[inline(always)]
pub fn add_carry_u32(a: u32, b: u32, carry: bool) -> (u32, bool) {
    let sum = u64::from(a) + u64::from(b) + u64::from(carry);
    (sum as u32, sum >> 32 != 0)
}

/// `add.cc` and `addc{.cc}` on 64 bits.
#[inline(always)]
pub fn add_carry_u64(a: u64, b: u64, carry: bool) -> (u64, bool) {
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    (sum as u64, sum >> 64 != 0)
}

/// `sub.cc` and `subc{.cc}` on 32 bits: the difference with a borrow in (`false` for `sub.cc`), and the borrow out.
#[inline(always)]
pub fn sub_borrow_u32(a: u32, b: u32, borrow: bool) -> (u32, bool) {
    let difference = i64::from(a) - i64::from(b) - i64::from(borrow);
    (difference as u32, difference < 0)
}

/// `sub.cc` and `subc{.cc}` on 64 bits.
#[inline(always)]
pub fn sub_borrow_u64(a: u64, b: u64, borrow: bool) -> (u64, bool) {
    let difference = i128::from(a) - i128::from(b) - i128::from(borrow);
    (difference as u64, difference < 0)
}
