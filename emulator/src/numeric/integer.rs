//! Integer arithmetic that is more than one operator of Rust: `mul.hi`, `mad.hi`, `mul24`, `div`, `rem`, `sad`, `dp4a`,
//! saturation and carries ("Integer Arithmetic Instructions" and "Extended-Precision Integer Arithmetic Instructions"
//! in the PTX manual).
//!
//! `add`, `sub`, `mul.lo`, `neg` and `abs` wrap around: `wrapping_add` and its kin say all of it.

/// What every integer type has. Registers are unsigned; `$number` is how the instruction reads them, `$wide` holds a
/// product.
///
/// "Division by zero yields an unspecified, machine-specific value", says the manual. Here it is the value with all
/// bits set, for `div` and `rem` alike, and never a panic; a checking caller can report the zero before it calls. The
/// most negative number divided by -1 wraps around to itself, remainder zero.
macro_rules! arithmetic {
    ($bits:ty, $number:ty, $wide:ty, $mul_hi:ident, $div:ident, $rem:ident, $sad:ident, $name:literal) => {
        #[doc = concat!("`mul.hi.", $name, "`: the upper half of the product.")]
        #[inline(always)]
        pub fn $mul_hi(a: $bits, b: $bits) -> $bits {
            ((<$wide>::from(a as $number) * <$wide>::from(b as $number)) >> <$bits>::BITS) as $bits
        }

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

        #[doc = concat!("`sad.", $name, "`: `c + |a - b|`")]
        #[inline(always)]
        pub fn $sad(a: $bits, b: $bits, c: $bits) -> $bits {
            c.wrapping_add((a as $number).abs_diff(b as $number))
        }
    };
}

arithmetic!(u16, u16, u32, mul_hi_u16, div_u16, rem_u16, sad_u16, "u16");
arithmetic!(u16, i16, i32, mul_hi_s16, div_s16, rem_s16, sad_s16, "s16");
arithmetic!(u32, u32, u64, mul_hi_u32, div_u32, rem_u32, sad_u32, "u32");
arithmetic!(u32, i32, i64, mul_hi_s32, div_s32, rem_s32, sad_s32, "s32");
arithmetic!(u64, u64, u128, mul_hi_u64, div_u64, rem_u64, sad_u64, "u64");
arithmetic!(u64, i64, i128, mul_hi_s64, div_s64, rem_s64, sad_s64, "s64");

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

/// An operation of the SIMD video instructions `vadd2`, `vadd4` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Video {
    /// `vadd`
    Add,
    /// `vsub`
    Subtract,
    /// `vavrg`: the mean, rounded away from zero.
    Average,
    /// `vabsdiff`
    Difference,
    /// `vmin`
    Min,
    /// `vmax`
    Max,
}

/// The types of a SIMD video instruction: its parts are 8 or 16 bits wide, and D, A and B are signed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VideoMode {
    /// The width of a part.
    pub bits: u32,
    /// Whether D, A and B are signed.
    pub signed: [bool; 3],
    /// `.sat`: a result that does not fit becomes the nearest that does.
    pub saturate: bool,
    /// `.add`: the results are added to C, as a word; otherwise D is made of them.
    pub accumulate: bool,
}

/// `v{add,sub,avrg,absdiff,min,max}{2,4}.dtype.atype.btype{.sat}{.add} d, a, b, c`
#[inline]
pub fn video(operation: Video, mode: VideoMode, a: u32, b: u32, c: u32) -> u32 {
    let VideoMode { bits, signed: [d_signed, a_signed, b_signed], saturate, accumulate } = mode;
    let number = |word: u32, part: u32, signed: bool| {
        let bits = piece(word, part, bits, signed);
        if signed { i64::from(bits as i32) } else { i64::from(bits) }
    };
    let (low, high) = if d_signed { (-(1i64 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    (0..32 / bits).fold(if accumulate { c } else { 0 }, |out, part| {
        let (x, y) = (number(a, part, a_signed), number(b, part, b_signed));
        let result = match operation {
            Video::Add => x + y,
            Video::Subtract => x - y,
            Video::Average => (x + y + i64::from(x + y >= 0)) >> 1,
            Video::Difference => (x - y).abs(),
            Video::Min => x.min(y),
            Video::Max => x.max(y),
        };
        let result = if saturate { result.clamp(low, high) } else { result };
        if accumulate {
            out.wrapping_add(result as u32)
        } else {
            out | (result as u32 & ((1 << bits) - 1)) << (part * bits)
        }
    })
}

/// Sums and differences of one width with a carry.
macro_rules! carries {
    ($bits:ty, $add:ident, $sub:ident) => {
        /// `add.cc` and `addc{.cc}`: the sum with a carry in (`false` for `add.cc`), and the carry out.
        #[inline(always)]
        pub fn $add(a: $bits, b: $bits, carry: bool) -> ($bits, bool) {
            let (sum, first) = a.overflowing_add(b);
            let (sum, second) = sum.overflowing_add(carry.into());
            (sum, first | second)
        }

        /// `sub.cc` and `subc{.cc}`: the difference with a borrow in (`false` for `sub.cc`), and the borrow out.
        #[inline(always)]
        pub fn $sub(a: $bits, b: $bits, borrow: bool) -> ($bits, bool) {
            let (difference, first) = a.overflowing_sub(b);
            let (difference, second) = difference.overflowing_sub(borrow.into());
            (difference, first | second)
        }
    };
}

carries!(u32, add_carry_u32, sub_borrow_u32);
carries!(u64, add_carry_u64, sub_borrow_u64);
