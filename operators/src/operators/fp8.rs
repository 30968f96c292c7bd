//! Numbers in fp8 (e4m3) with scales in fp32, as DeepSeek-V3 stores weights (a scale for each 128 x 128) and activations (for
//! each 128 of a row), and engines the latent cache (one scale).

use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::matmul_t;
use ndarray::{Array, Array2, ArrayD, Dimension, Ix2};

use super::draw::Draw;
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

/// Numbers of a row that share a scale, and rows of a weight.
pub(super) const BLOCK: usize = 128;

/// The largest number of e4m3.
const LARGEST: f64 = 448.0;

/// What a group of zeros is taken to hold.
const LEAST: f64 = 1e-10;

/// Where the scales of a tensor lie: one for each block of `rows` rows and [`BLOCK`] numbers of its last two axes.
struct Blocks {
    /// The scales' shape.
    shape: Vec<usize>,
    rows: usize,
    /// Rows of a matrix, and numbers of a row.
    matrix: [usize; 2],
}

impl Blocks {
    fn of(shape: &[usize], rows: usize) -> Self {
        let [before, last] = [shape.len() - 2, shape.len() - 1];
        let mut blocks = shape.to_vec();
        blocks[before] = blocks[before].div_ceil(rows);
        blocks[last] = blocks[last].div_ceil(BLOCK);
        Blocks { shape: blocks, rows, matrix: [shape[before], shape[last]] }
    }

    /// Goes through the numbers, block by block of each row; `each` is told the place of a block's scale.
    fn each<T>(&self, values: &mut [T], mut each: impl FnMut(usize, &mut [T])) {
        let [rows, width] = self.matrix;
        let in_row = width.div_ceil(BLOCK);
        for (row, values) in values.chunks_mut(width.max(1)).enumerate() {
            let first = (row / rows * rows.div_ceil(self.rows) + row % rows / self.rows) * in_row;
            values.chunks_mut(BLOCK).enumerate().for_each(|(block, values)| each(first + block, values));
        }
    }
}

/// An input in fp8 times the input of its scales.
pub(super) fn scaled<T: Real, D: Dimension>(
    contract: &Contract,
    call: &Call,
    name: &str,
    rows: usize,
) -> Result<Array<T, D>> {
    let scale_name = format!("{name}_scale");
    let (mut values, scales) = (call.real::<T, D>(name), call.real::<T, D>(&scale_name));
    let blocks = Blocks::of(values.shape(), rows);
    if scales.shape() != blocks.shape {
        let found = format!("{:?}", scales.shape());
        return Err(contract.mismatch("input", &scale_name, &format!("scales {:?}", blocks.shape), &found));
    }
    let scales: Vec<T> = scales.iter().copied().collect();
    blocks.each(values.as_slice_mut().expect("row-major"), |block, values| {
        values.iter_mut().for_each(|x| *x *= scales[block]);
    });
    Ok(values)
}

/// `C = (A s_A) (B s_B)^T`, with a scale of A for each 128 of a row, and of B for each 128 x 128.
pub fn gemm<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let a: Array2<T> = scaled(contract, call, "A", 1)?;
    let b: Array2<T> = scaled(contract, call, "B", BLOCK)?;
    Ok(vec![("C", matmul_t(a.view(), b.view()).into())])
}

/// Each 128 numbers of a row by their largest: `s = max|x| / 448`, and x / s.
pub fn quantize<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (mut x, scales) = with_scales(call.real::<T, Ix2>("x"));
    for (mut row, scales) in x.rows_mut().into_iter().zip(scales.rows()) {
        row.iter_mut().enumerate().for_each(|(at, x)| *x /= scales[at / BLOCK]);
    }
    Ok(vec![("x_q", x.into()), ("x_scale", scales.into())])
}

/// Rows, and the scales of their groups.
fn with_scales<T: Real>(x: Array2<T>) -> (Array2<T>, Array2<T>) {
    let mut scales = Array2::zeros((x.nrows(), x.ncols().div_ceil(BLOCK)));
    for ((row, at), x) in x.indexed_iter() {
        let scale: &mut T = &mut scales[[row, at / BLOCK]];
        *scale = scale.max(x.abs());
    }
    (x, scales.mapv_into(|most: T| most.max(T::from_f64(LEAST)) / T::from_f64(LARGEST)))
}

/// Rows as an implementation holds them that rounds what it multiplies to fp8: each 128 numbers of a row with a scale.
pub(super) fn operand<T: Real>(call: &Call, x: Array2<T>) -> Array2<T> {
    if !call.rounds_operands() {
        return x;
    }
    let (mut x, scales) = with_scales(x);
    for (mut row, scales) in x.rows_mut().into_iter().zip(scales.rows()) {
        let round = |x: T, scale: T| T::from_f64(ElementType::Float8.round((x / scale).to_f64())) * scale;
        row.iter_mut().enumerate().for_each(|(at, x)| *x = round(*x, scales[at / BLOCK]));
    }
    x
}

/// Numbers in fp8 and their scales, one for each block of the last two axes.
pub(super) fn quantized(name: &str, mut values: ArrayD<f64>, rows: usize) -> [(String, Tensor); 2] {
    let blocks = Blocks::of(values.shape(), rows);
    let mut scales: ArrayD<f64> = ArrayD::zeros(blocks.shape.clone());
    let numbers = values.as_slice_mut().expect("row-major");
    let largest = scales.as_slice_mut().expect("row-major");
    blocks.each(numbers, |block, x| largest[block] = x.iter().fold(largest[block], |largest, x| largest.max(x.abs())));
    let scales = Tensor::real(ElementType::Float32, scales.mapv_into(|most| most.max(LEAST) / LARGEST));
    let held: Vec<f64> = scales.as_real().expect("numbers").iter().copied().collect();
    blocks.each(numbers, |block, x| x.iter_mut().for_each(|x| *x /= held[block]));
    [(name.to_owned(), Tensor::real(ElementType::Float8, values)), (format!("{name}_scale"), scales)]
}

/// Rows whose groups differ in size by up to 2^4, and a weight whose blocks do: a scale that is taken from beside shows.
/// `one sign`: all products are positive, and alike in size.
pub fn gemm_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [rows, columns, inner] = ["M", "N", "K"].map(|axis| workload.axis(axis));
    let (mut a, mut b) = if workload.has("one sign") {
        let b = draw.one_sign("B", &[columns, inner], 0, 1.0 / inner as f64);
        (draw.about("A", &[rows, inner], 1.0, 0.05), b)
    } else {
        (draw.normal("A", &[rows, inner], 1.0), draw.normal("B", &[columns, inner], 1.0 / (inner as f64).sqrt()))
    };
    if !workload.has("one sign") {
        uneven(&mut a, 1, draw, "A sizes");
        uneven(&mut b, BLOCK, draw, "B sizes");
    }
    quantized("A", a, 1).into_iter().chain(quantized("B", b, BLOCK)).collect()
}

/// Multiplies each block by a power of 2 of its own.
pub(super) fn uneven(values: &mut ArrayD<f64>, rows: usize, draw: &Draw, name: &str) {
    let blocks = Blocks::of(values.shape(), rows);
    blocks.each(values.as_slice_mut().expect("row-major"), |block, x| {
        let size = (draw.below(name, block, 5) as f64 - 2.0).exp2();
        x.iter_mut().for_each(|x| *x *= size);
    });
}

/// Rows whose groups differ in size.
pub fn quantize_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [rows, width] = ["num_tokens", "hidden_size"].map(|axis| workload.axis(axis));
    let mut x = draw.normal("x", &[rows, width], workload.number("std", 1.0));
    uneven(&mut x, 1, draw, "sizes");
    Tensors::from_iter([("x".to_owned(), Tensor::real(workload.dtype, x))])
}
