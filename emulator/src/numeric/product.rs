//! The products of `mma.sync` in all shapes and types of sm_80 and sm_89 ("Multiply-and-Accumulate Instruction: mma" in
//! the PTX manual), and who holds which element.
//!
//! Every shape has 8 columns, and 8 or 16 rows. A register of 32 bits holds 1 to 32 neighbours along k, and with them
//! the layouts of all shapes are one formula: see [`Shape`]. (`m8n8k4` of `.f16`, which came with sm_70, is another
//! thing and not here.)
//!
//! Floating-point sums follow [`Summation`], as in [`mma`](super::mma); integers are exact, and wrap or saturate at the
//! end; `.f64` is a chain of fused multiply-adds in the order of k.

use super::Rounding;
use super::double::fma_f64;
use super::float::canonical_f32;
use super::format::Half;
use super::fp8::Fp8;
use super::fragment::{LANES, N};
use super::mma::{Register, Summation, aligned};

/// The rows and the depth of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of A, C and D: 8 or 16.
    pub m: usize,
    /// Columns of A, rows of B.
    pub k: usize,
}

impl Shape {
    /// Row and column of an element of A, where a register holds `per` elements.
    pub fn a_position(self, per: usize, lane: usize, element: usize) -> (usize, usize) {
        let (register, bands) = (element / per, self.m / 8);
        let column = lane % 4 * per + element % per + 4 * per * (register / bands);
        (lane / 4 + 8 * (register % bands), column)
    }

    /// Row and column of an element of B.
    pub fn b_position(self, per: usize, lane: usize, element: usize) -> (usize, usize) {
        (lane % 4 * per + element % per + 4 * per * (element / per), lane / 4)
    }

    /// Row and column of an element of C and D.
    pub fn c_position(self, lane: usize, element: usize) -> (usize, usize) {
        (lane / 4 + 8 * (element / 2), lane % 4 * 2 + element % 2)
    }

    /// How many elements of A, B and C a lane holds.
    pub fn elements(self) -> [usize; 3] {
        [self.m * self.k / LANES, self.k * N / LANES, self.m * N / LANES]
    }
}

/// The type of a floating-point factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// `.f16` or `.bf16`
    Half(Half),
    /// `.tf32`: the upper 19 bits of a word.
    Tf32,
    /// `.e4m3` or `.e5m2`
    Fp8(Fp8),
}

impl Factor {
    /// The width of an element in its register.
    pub fn bits(self) -> u32 {
        match self {
            Self::Half(_) => 16,
            Self::Tf32 => 32,
            Self::Fp8(_) => 8,
        }
    }

    /// An element's value, exactly. The lower 13 bits of a `.tf32` are not looked at.
    pub fn value(self, bits: u32) -> f32 {
        match self {
            Self::Half(half) => half.value(bits as u16),
            Self::Tf32 if f32::from_bits(bits).is_nan() => f32::NAN,
            Self::Tf32 => f32::from_bits(bits & !0x1fff),
            Self::Fp8(format) => Half::F16.value(format.to_f16(bits as u8)),
        }
    }
}

/// Element `index` of a lane's registers.
fn element(registers: &[Register], lane: usize, index: usize, bits: u32) -> u32 {
    let per = 32 / bits as usize;
    let word = registers[index / per][lane] >> ((index % per) as u32 * bits % 32);
    if bits == 32 { word } else { word & ((1 << bits) - 1) }
}

fn put(registers: &mut [Register], lane: usize, index: usize, bits: u32, value: u32) {
    let per = 32 / bits as usize;
    let word = &mut registers[index / per][lane];
    let shift = (index % per) as u32 * bits % 32;
    let ones = if bits == 32 { u32::MAX } else { ((1 << bits) - 1) << shift };
    *word = *word & !ones | value << shift & ones;
}

/// A matrix by rows.
type Rows<T> = Vec<Vec<T>>;

/// The elements of A by rows, and of B by columns.
fn factors<T: Copy + Default>(
    shape: Shape,
    bits: u32,
    [a, b]: [&[Register]; 2],
    value: [impl Fn(u32) -> T; 2],
) -> [Rows<T>; 2] {
    let per = 32 / bits as usize;
    let [count_a, count_b, _] = shape.elements();
    let mut rows = vec![vec![T::default(); shape.k]; shape.m];
    let mut columns = vec![vec![T::default(); shape.k]; N];
    for lane in 0..LANES {
        for index in 0..count_a {
            let (row, k) = shape.a_position(per, lane, index);
            rows[row][k] = value[0](element(a, lane, index, bits));
        }
        for index in 0..count_b {
            let (k, column) = shape.b_position(per, lane, index);
            columns[column][k] = value[1](element(b, lane, index, bits));
        }
    }
    [rows, columns]
}

/// The types of a floating-point product: both factors (of one width), and whether C and D are `.f16` and not `.f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floats {
    /// The types of A and B.
    pub factors: [Factor; 2],
    /// Whether C and D are `.f16`.
    pub half: [bool; 2],
}

/// `mma.sync` of floating-point numbers: D on fragments.
pub fn floats(
    shape: Shape,
    types: Floats,
    a: &[Register],
    b: &[Register],
    c: &[Register],
    how: Summation,
) -> Vec<Register> {
    let [left, right] = types.factors;
    let value = |factor: Factor| move |bits| factor.value(bits);
    let [rows, columns] = factors(shape, left.bits(), [a, b], [value(left), value(right)]);
    let [c_half, d_half] = types.half;
    let width = |half: bool| if half { 16 } else { 32 };
    let count = shape.elements()[2];
    let mut d = vec![[0; LANES]; count * width(d_half) as usize / 32];
    for lane in 0..LANES {
        for index in 0..count {
            let (row, column) = shape.c_position(lane, index);
            let bits = element(c, lane, index, width(c_half));
            let start = if c_half { Half::F16.value(bits as u16) } else { f32::from_bits(bits) };
            let result = dot(&rows[row], &columns[column], start, d_half, how);
            put(&mut d, lane, index, width(d_half), result);
        }
    }
    d
}

/// The bits of one element of D.
fn dot(row: &[f32], column: &[f32], c: f32, half: bool, how: Summation) -> u32 {
    let finish = |sum: f32| {
        if half { u32::from(Half::F16.nearest(canonical_f32(sum))) } else { canonical_f32(sum) }
    };
    match how {
        Summation::Wide => {
            let sum = row.iter().zip(column).fold(0.0f64, |sum, (a, b)| sum + f64::from(*a) * f64::from(*b));
            let sum = sum + f64::from(c);
            if half {
                u32::from(Half::F16.narrow_f64(sum.to_bits(), Rounding::Nearest))
            } else {
                canonical_f32(sum as f32)
            }
        }
        // Each sum is rounded to the type of D.
        Summation::Sequential => finish(row.iter().zip(column).fold(c, |sum, (a, b)| {
            let sum = a.mul_add(*b, sum);
            if half { Half::F16.value(Half::F16.nearest(sum.to_bits())) } else { sum }
        })),
        Summation::Aligned { terms, extra_bits } => {
            finish(aligned(row, column, c, terms.max(1) as usize, extra_bits.min(16)))
        }
    }
}

/// The types of an integer product: the width of a factor (8 or 4 bits), which of them are signed, `.satfinite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integers {
    /// The width of an element of A and B.
    pub bits: u32,
    /// Whether A and B are signed.
    pub signed: [bool; 2],
    /// Whether a sum beyond `.s32` becomes its largest or smallest number; otherwise it wraps.
    pub saturate: bool,
}

/// `mma.sync` of integers, summed in `.s32`.
pub fn integers(shape: Shape, types: Integers, a: &[Register], b: &[Register], c: &[Register]) -> Vec<Register> {
    let unused = 32 - types.bits;
    let value = |signed: bool| {
        move |bits: u32| if signed { i64::from((bits << unused) as i32 >> unused) } else { i64::from(bits) }
    };
    let [rows, columns] = factors(shape, types.bits, [a, b], types.signed.map(value));
    by_element(shape, c, |row, column, c| {
        let sum = rows[row].iter().zip(&columns[column]).fold(i64::from(c as i32), |sum, (a, b)| sum + a * b);
        if types.saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32 } else { sum as u32 }
    })
}

/// `mma.sync...b1...{and,xor}.popc`: how many bits of the "and" or the "exclusive or" are set.
pub fn single_bits(shape: Shape, and: bool, a: &[Register], b: &[Register], c: &[Register]) -> Vec<Register> {
    let words = Shape { k: shape.k / 32, ..shape };
    let [rows, columns] = factors(words, 32, [a, b], [|bits: u32| bits; 2]);
    by_element(words, c, |row, column, c| {
        rows[row]
            .iter()
            .zip(&columns[column])
            .fold(c, |sum, (a, b)| sum.wrapping_add(if and { a & b } else { a ^ b }.count_ones()))
    })
}

fn by_element(shape: Shape, c: &[Register], value: impl Fn(usize, usize, u32) -> u32) -> Vec<Register> {
    let element = |index: usize| {
        std::array::from_fn(|lane| {
            let (row, column) = shape.c_position(lane, index);
            value(row, column, c[index][lane])
        })
    };
    (0..shape.elements()[2]).map(element).collect()
}

/// One 64-bit register of every lane.
pub type WideRegister = [u64; LANES];

/// `mma.sync` of `.f64`.
pub fn doubles(
    shape: Shape,
    rounding: Rounding,
    a: &[WideRegister],
    b: &[WideRegister],
    c: &[WideRegister],
) -> Vec<WideRegister> {
    let (mut rows, mut columns) = (vec![vec![0; shape.k]; shape.m], vec![vec![0; shape.k]; N]);
    for lane in 0..LANES {
        for (index, register) in a.iter().enumerate() {
            let (row, k) = shape.a_position(1, lane, index);
            rows[row][k] = register[lane];
        }
        for (index, register) in b.iter().enumerate() {
            let (k, column) = shape.b_position(1, lane, index);
            columns[column][k] = register[lane];
        }
    }
    let element = |index: usize| {
        std::array::from_fn(|lane| {
            let (row, column) = shape.c_position(lane, index);
            let pairs = rows[row].iter().zip(&columns[column]);
            pairs.fold(c[index][lane], |sum, (a, b)| fma_f64(*a, *b, sum, rounding))
        })
    };
    (0..shape.elements()[2]).map(element).collect()
}
