//! Shifts and bit fields: `shl shr shf bfe bfi bfind bmsk szext fns brev clz popc lop3 prmt` ("Logic and Shift Instructions",
//! "Integer Arithmetic Instructions" and "Data Movement and Conversion Instructions: prmt" in the PTX manual).
//!
//! Unlike the shifts of most languages and machines, `shl` and `shr` clamp the shift amount at the width: shifting by
//! more gives zero, or the sign in every bit.

/// Shifts of one width.
macro_rules! shifts {
    ($bits:ty, $number:ty, $shl:ident, $shr_u:ident, $shr_s:ident, $width:literal) => {
        #[doc = concat!("`shl.b", $width, "`: amounts of the width and above give zero.")]
        #[inline(always)]
        pub fn $shl(a: $bits, amount: u32) -> $bits {
            if amount < <$bits>::BITS { a << amount } else { 0 }
        }

        #[doc = concat!("`shr.u", $width, "` and `shr.b", $width, "`: amounts of the width and above give zero.")]
        #[inline(always)]
        pub fn $shr_u(a: $bits, amount: u32) -> $bits {
            if amount < <$bits>::BITS { a >> amount } else { 0 }
        }

        #[doc = concat!("`shr.s", $width, "`: amounts of the width and above give the sign in every bit.")]
        #[inline(always)]
        pub fn $shr_s(a: $bits, amount: u32) -> $bits {
            (a as $number >> amount.min(<$bits>::BITS - 1)) as $bits
        }
    };
}

shifts!(u16, i16, shl_b16, shr_u16, shr_s16, "16");
shifts!(u32, i32, shl_b32, shr_u32, shr_s32, "32");
shifts!(u64, i64, shl_b64, shr_u64, shr_s64, "64");

/// What `shf` does with an amount of 32 and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Funnel {
    /// `.clamp`: the amount is at most 32.
    Clamp,
    /// `.wrap`: the amount is taken modulo 32.
    Wrap,
}

impl Funnel {
    #[inline(always)]
    fn amount(self, c: u32) -> u32 {
        match self {
            Funnel::Clamp => c.min(32),
            Funnel::Wrap => c & 31,
        }
    }
}

/// `shf.l.mode.b32 d, low, high, amount`: shifts the 64 bits `high:low` left and returns the upper word.
#[inline(always)]
pub fn shf_l(low: u32, high: u32, amount: u32, mode: Funnel) -> u32 {
    let both = u64::from(high) << 32 | u64::from(low);
    ((both << mode.amount(amount)) >> 32) as u32
}

/// `shf.r.mode.b32 d, low, high, amount`: shifts the 64 bits `high:low` right and returns the lower word.
#[inline(always)]
pub fn shf_r(low: u32, high: u32, amount: u32, mode: Funnel) -> u32 {
    let both = u64::from(high) << 32 | u64::from(low);
    (both >> mode.amount(amount)) as u32
}

/// Bit fields of one width. The position and the length are the low 8 bits of their operands.
macro_rules! fields {
    ($bits:ty, $number:ty, $extract_u:ident, $extract_s:ident, $insert:ident, $width:literal) => {
        #[doc = concat!("`bfe.u", $width, " d, a, position, length`: the field, padded with zeros.")]
        #[inline(always)]
        pub fn $extract_u(a: $bits, position: u32, length: u32) -> $bits {
            let (position, length) = (position & 0xff, length & 0xff);
            let shifted = if position < <$bits>::BITS { a >> position } else { 0 };
            if length < <$bits>::BITS { shifted & ((1 << length) - 1) } else { shifted }
        }

        #[doc = concat!("`bfe.s", $width, " d, a, position, length`: the field, padded with its top bit, or with the top bit of `a` if the field reaches beyond it. An empty field is zero.")]
        #[inline(always)]
        pub fn $extract_s(a: $bits, position: u32, length: u32) -> $bits {
            let (position, length) = (position & 0xff, length & 0xff);
            if length == 0 {
                return 0;
            }
            let shifted = a as $number >> position.min(<$bits>::BITS - 1);
            let unused = <$bits>::BITS.saturating_sub(length);
            (shifted << unused >> unused) as $bits
        }

        #[doc = concat!("`bfi.b", $width, " f, a, b, position, length`: the low bits of `a` inserted into `b`; what reaches beyond the top is cut off.")]
        #[inline(always)]
        pub fn $insert(a: $bits, b: $bits, position: u32, length: u32) -> $bits {
            let (position, length) = (position & 0xff, length & 0xff);
            if position >= <$bits>::BITS {
                return b;
            }
            let mask = (if length < <$bits>::BITS { (1 << length) - 1 } else { <$bits>::MAX }) << position;
            (a << position) & mask | b & !mask
        }
    };
}

fields!(u32, i32, bfe_u32, bfe_s32, bfi_b32, "32");
fields!(u64, i64, bfe_u64, bfe_s64, bfi_b64, "64");

/// The search for the highest bit, of one width; the result has 32 bits.
macro_rules! searches {
    ($bits:ty, $number:ty, $find_u:ident, $find_s:ident, $width:literal) => {
        #[doc = concat!("`bfind{.shiftamt}.u", $width, "`: the position of the highest one, or how far it is below the top; all ones if there is none.")]
        #[inline(always)]
        pub fn $find_u(a: $bits, shift_amount: bool) -> u32 {
            match (a, shift_amount) {
                (0, _) => u32::MAX,
                (_, true) => a.leading_zeros(),
                (_, false) => <$bits>::BITS - 1 - a.leading_zeros(),
            }
        }

        #[doc = concat!("`bfind{.shiftamt}.s", $width, "`: the highest bit that differs from the sign.")]
        #[inline(always)]
        pub fn $find_s(a: $bits, shift_amount: bool) -> u32 {
            $find_u(a ^ (a as $number >> (<$bits>::BITS - 1)) as $bits, shift_amount)
        }
    };
}

searches!(u32, i32, bfind_u32, bfind_s32, "32");
searches!(u64, i64, bfind_u64, bfind_s64, "64");

/// `fns.b32 d, mask, base, offset`: the position of the n-th one of `mask`, counted from `base` upwards for a positive
/// offset and downwards for a negative one; offset zero asks for the bit at `base` itself. All ones if there is none.
#[inline]
pub fn fns(mask: u32, base: u32, offset: u32) -> u32 {
    let offset = offset as i32;
    let (step, mut left) = if offset < 0 { (-1, offset.unsigned_abs()) } else { (1, offset.unsigned_abs().max(1)) };
    let mut position = (base & 31) as i32;
    while (0..32).contains(&position) {
        if mask >> position & 1 == 1 {
            left -= 1;
            if left == 0 {
                return position as u32;
            }
        }
        if offset == 0 {
            break;
        }
        position += step;
    }
    u32::MAX
}

/// `bmsk.mode.b32 d, a, b`: `b` ones from bit `a` on. With `clamp` a position or a width beyond the register is taken
/// as it is, and otherwise modulo 32.
#[inline]
pub fn bmsk(position: u32, width: u32, clamp: bool) -> u32 {
    let (position, width) = if clamp { (position, width) } else { (position & 31, width & 31) };
    shl_b32(if width < 32 { (1 << width) - 1 } else { u32::MAX }, position)
}

/// `szext.mode.type d, a, n`: the low `n` bits, extended by zeros or by the highest of them. With `clamp` 32 bits and
/// more are the whole register, and otherwise `n` is taken modulo 32.
#[inline]
pub fn szext(a: u32, count: u32, signed: bool, clamp: bool) -> u32 {
    let count = if clamp { count.min(32) } else { count & 31 };
    match (count, signed) {
        (0, _) => 0,
        (_, true) => ((a << (32 - count)) as i32 >> (32 - count)) as u32,
        (_, false) => a << (32 - count) >> (32 - count),
    }
}

/// `lop3.b32 d, a, b, c, table`: every bit of the result is the table's bit at the number `abc`.
#[inline(always)]
pub fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    // For each of the eight rows: the places where a, b, c spell the row, if the table has a one there.
    let mut result = 0;
    for row in 0..8 {
        let places = (if row & 4 != 0 { a } else { !a })
            & (if row & 2 != 0 { b } else { !b })
            & (if row & 1 != 0 { c } else { !c });
        result |= if table >> row & 1 != 0 { places } else { 0 };
    }
    result
}

/// The mode of `prmt`: how the selector `c` chooses the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permute {
    /// No modifier: four bits per byte; three choose a byte of `b:a`, the fourth replicates that byte's sign.
    Index,
    /// `.f4e`: four bytes forwards from `c`.
    Forward,
    /// `.b4e`: four bytes backwards from `c`.
    Backward,
    /// `.rc8`: byte `c` four times.
    Replicate8,
    /// `.ecl`: bytes in place, those below `c` replaced by byte `c`.
    EdgeClampLeft,
    /// `.ecr`: bytes in place, those above `c` replaced by byte `c`.
    EdgeClampRight,
    /// `.rc16`: half `c` twice.
    Replicate16,
}

/// `prmt.b32{.mode} d, a, b, c`: four bytes out of the eight of `b:a`. Modes look at the low two bits of `c`.
#[inline(always)]
pub fn prmt(a: u32, b: u32, c: u32, mode: Permute) -> u32 {
    let source = u64::from(b) << 32 | u64::from(a);
    let from = c & 3;
    let mut result = 0;
    for byte in 0..4 {
        let selector = match mode {
            Permute::Index => c >> (4 * byte) & 0xf,
            Permute::Forward => from + byte,
            Permute::Backward => from.wrapping_sub(byte) & 7,
            Permute::Replicate8 => from,
            Permute::EdgeClampLeft => byte.max(from),
            Permute::EdgeClampRight => byte.min(from),
            Permute::Replicate16 => (byte & 1) + 2 * (from & 1),
        };
        let value = (source >> (8 * (selector & 7))) as u8;
        let value = if selector & 8 != 0 { (value as i8 >> 7) as u8 } else { value };
        result |= u32::from(value) << (8 * byte);
    }
    result
}
