//! `mma.sync.aligned.m16n8k16` and `.m16n8k8`, `.row.col`, with `.f16` or `.bf16` factors and `.f32` accumulation
//! ("Multiply-and-Accumulate Instruction: mma" in the PTX manual).
//!
//! The manual promises that elements are multiplied and accumulated "with at least single precision", and leaves the
//! order of accumulation, the rounding and the handling of subnormal inputs unspecified. Real tensor cores differ
//! between generations. What is done here is therefore a *model*, chosen by [`Summation`], so that it can be fitted to
//! a card by measurement. For every choice the result is deterministic, products are exact, a NaN result is
//! [`NAN_F32`](super::NAN_F32), and subnormal numbers are kept.

use super::Rounding;
use super::exact::{Exact, Format, Number, decode};
use super::float::canonical_f32;
use super::format::Half;
use super::fragment::{LANES, M, N, a_position, b_position, c_position};

/// One register of every lane.
pub type Register = [u32; LANES];

/// How an element of the result is summed up. This is a modelling choice, not a documented fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Summation {
    /// Products and sum in `f64`, in the order of k with C last, rounded to `.f32` once, to nearest. Closest to the
    /// exact result: use it to judge a kernel, not a card.
    #[default]
    Wide,
    /// Exact products added to C one after the other in the order of k, each sum rounded to `.f32`: what a plain loop
    /// of `fma.rn.f32` gives (unless a product is below the range of `.f32`).
    Sequential,
    /// What published measurements suggest for tensor cores: C and a block of products are aligned to the largest
    /// exponent among them, cut off below `24 + extra_bits` bits, added exactly, and the sum is cut off to `.f32`. Then
    /// follows the next block, with the sum as its C. The exponent of a product is the sum of its factors' exponents.
    Aligned {
        /// Products per block; zero is taken as one.
        terms: u32,
        /// Bits kept below the last place of the largest addend, at most 16.
        extra_bits: u32,
    },
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32`: `D = A * B + C` on fragments.
pub fn m16n8k16(half: Half, a: &[Register; 4], b: &[Register; 2], c: &[Register; 4], how: Summation) -> [Register; 4] {
    match half {
        Half::F16 => multiply::<16>(|bits| Half::F16.value(bits), a, b, c, how),
        Half::Bf16 => multiply::<16>(|bits| Half::Bf16.value(bits), a, b, c, how),
    }
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.{f16,bf16}.{f16,bf16}.f32`: `D = A * B + C` on fragments.
pub fn m16n8k8(half: Half, a: &[Register; 2], b: &[Register; 1], c: &[Register; 4], how: Summation) -> [Register; 4] {
    match half {
        Half::F16 => multiply::<8>(|bits| Half::F16.value(bits), a, b, c, how),
        Half::Bf16 => multiply::<8>(|bits| Half::Bf16.value(bits), a, b, c, how),
    }
}

/// The elements of a register of 16-bit floats: all those in the low halves, then those in the high ones.
#[inline(always)]
fn halves(register: &Register, value: impl Fn(u16) -> f32) -> [[f32; LANES]; 2] {
    [0, 16].map(|shift| register.map(|bits| value((bits >> shift) as u16)))
}

/// Gathers the fragments into matrices, multiplies, and scatters the result. `value` is what 16 bits are.
#[inline(always)]
fn multiply<const K: usize>(
    value: impl Fn(u16) -> f32 + Copy,
    a: &[Register],
    b: &[Register],
    c: &[Register; 4],
    how: Summation,
) -> [Register; 4] {
    let (mut left, mut right, mut sum) = ([[0.0f32; K]; M], [[0.0f32; N]; K], [[0.0f32; N]; M]);
    // A register holds two elements: the half of a register is the element's number modulo two.
    for (number, register) in a.iter().enumerate() {
        for (half, values) in halves(register, value).iter().enumerate() {
            for (lane, value) in values.iter().enumerate() {
                let (row, column) = a_position(lane, 2 * number + half);
                left[row][column] = *value;
            }
        }
    }
    for (number, register) in b.iter().enumerate() {
        for (half, values) in halves(register, value).iter().enumerate() {
            for (lane, value) in values.iter().enumerate() {
                let (row, column) = b_position(lane, 2 * number + half);
                right[row][column] = *value;
            }
        }
    }
    for (element, register) in c.iter().enumerate() {
        for (lane, bits) in register.iter().enumerate() {
            let (row, column) = c_position(lane, element);
            sum[row][column] = f32::from_bits(*bits);
        }
    }
    // Once, and not for every row.
    let right_f64 = right.map(|row| row.map(f64::from));
    for (row, sum) in left.iter().zip(&mut sum) {
        match how {
            Summation::Wide => wide(row, &right_f64, sum),
            Summation::Sequential => sequential(row, &right, sum),
            Summation::Aligned { terms, extra_bits } => {
                for (n, value) in sum.iter_mut().enumerate() {
                    *value = aligned(row, &right.map(|b| b[n]), *value, terms.max(1) as usize, extra_bits.min(16));
                }
            }
        }
    }
    std::array::from_fn(|element| {
        std::array::from_fn(|lane| {
            let (row, column) = c_position(lane, element);
            canonical_f32(sum[row][column])
        })
    })
}

/// One row of the result by [`Summation::Wide`].
fn wide<const K: usize>(row: &[f32; K], right: &[[f64; N]; K], sum: &mut [f32; N]) {
    let mut total = [0.0f64; N];
    for (a, b) in row.iter().zip(right) {
        for (total, b) in total.iter_mut().zip(b) {
            *total += f64::from(*a) * b;
        }
    }
    for (sum, total) in sum.iter_mut().zip(total) {
        *sum = (total + f64::from(*sum)) as f32;
    }
}

/// One row of the result by [`Summation::Sequential`].
fn sequential<const K: usize>(row: &[f32; K], right: &[[f32; N]; K], sum: &mut [f32; N]) {
    for (a, b) in row.iter().zip(right) {
        for (sum, b) in sum.iter_mut().zip(b) {
            // The product of two 16-bit floats is exact in f32, so this is a fused multiply-add.
            *sum += a * b;
        }
    }
}

/// One element of the result by [`Summation::Aligned`].
pub(super) fn aligned(row: &[f32], column: &[f32], c: f32, terms: usize, extra_bits: u32) -> f32 {
    row.chunks(terms).zip(column.chunks(terms)).fold(c, |sum, (row, column)| {
        aligned_block(row, column, sum, extra_bits).unwrap_or_else(|| {
            // Infinities and NaN need no model: every order of summation gives the same.
            row.iter().zip(column).fold(f64::from(sum), |sum, (a, b)| sum + f64::from(*a) * f64::from(*b)) as f32
        })
    })
}

/// The sum of one block, or `None` if an addend is not finite.
fn aligned_block(row: &[f32], column: &[f32], c: f32, extra_bits: u32) -> Option<f32> {
    let addends = || std::iter::once((&c, &1.0)).chain(row.iter().zip(column)).map(|(a, b)| Addend::product(*a, *b));
    let mut top = None;
    for addend in addends() {
        top = top.max(addend?.top);
    }
    // Without any exponent all addends are zeros.
    let Some(top) = top else { return Some(0.0) };
    let last_place = top - 23 - extra_bits as i32;
    let total: i128 = addends().flatten().map(|addend| addend.cut_off(last_place)).sum();
    let exact = Exact { exponent: last_place, ..Exact::integer(total) };
    Some(f32::from_bits(exact.round(Format::F32, Rounding::Zero) as u32))
}

/// A product that takes part in a sum.
struct Addend {
    exact: Exact,
    /// The sum of the exponents of the factors, for factors written as `1.xxx * 2^exponent`; `None` for a zero.
    top: Option<i32>,
}

impl Addend {
    /// The product of two finite numbers.
    fn product(a: f32, b: f32) -> Option<Addend> {
        let part = |value: f32| match decode(Format::F32, u64::from(value.to_bits())) {
            Number::Finite(exact) => Some(exact),
            _ => None,
        };
        let leading = |exact: Exact| exact.exponent + 127 - exact.magnitude.leading_zeros() as i32;
        let (a, b) = (part(a)?, part(b)?);
        let exact = a.times(b);
        Some(Addend { exact, top: (exact.magnitude != 0).then(|| leading(a) + leading(b)) })
    }

    /// The addend in units of `2^last_place`, cut off towards zero.
    fn cut_off(&self, last_place: i32) -> i128 {
        let shift = self.exact.exponent - last_place;
        let magnitude = if shift >= 0 && self.exact.magnitude != 0 {
            self.exact.magnitude << shift
        } else {
            self.exact.magnitude.checked_shr(shift.unsigned_abs()).unwrap_or(0)
        };
        if self.exact.negative { -(magnitude as i128) } else { magnitude as i128 }
    }
}
