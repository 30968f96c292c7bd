//! Products with weights: one matrix, and the absorbed up-projections (C, eq. 41-47), one matrix for each head.

use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::{matmul, matmul_t};
use ndarray::{Array3, Axis, Ix2, Ix3};

use super::draw::Draw;
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{Tensor, Tensors};

/// `C = A B^T`, as weights lie in a checkpoint.
pub fn gemm<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    Ok(vec![("C", matmul_t(call.real::<T, Ix2>("A").view(), call.real::<T, Ix2>("B").view()).into())])
}

/// `output_h = x_h W_h`: with W^UK \[H,n,c\] the queries \[N,H,n\] become queries of latents \[N,H,c\]; with the transpose of W^UV
/// \[H,c,v\] what was attended to becomes the heads' output.
pub fn absorb<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (x, weight) = (call.real::<T, Ix3>("x"), call.real::<T, Ix3>("weight"));
    let mut output = Array3::zeros((x.len_of(Axis(0)), x.len_of(Axis(1)), weight.len_of(Axis(2))));
    for (head, weight) in weight.outer_iter().enumerate() {
        let projected = matmul(x.index_axis(Axis(1), head).as_standard_layout().view(), weight);
        output.index_axis_mut(Axis(1), head).assign(&projected);
    }
    Ok(vec![("output", output.into())])
}

/// Heads and weights that neither shrink nor grow them. `one sign`: all products are positive.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, heads, from, to] = ["num_tokens", "num_heads", "dim_in", "dim_out"].map(|axis| workload.axis(axis));
    let (x, weight) = if workload.has("one sign") {
        let x = draw.about("x", &[tokens, heads, from], 1.0, 0.05);
        (x, draw.one_sign("weight", &[heads, from, to], 2, 1.0 / from as f64))
    } else {
        let x = draw.normal("x", &[tokens, heads, from], 1.0);
        (x, draw.normal("weight", &[heads, from, to], 1.0 / (from as f64).sqrt()))
    };
    Tensors::from_iter([
        ("x".to_owned(), Tensor::real(workload.dtype, x)),
        ("weight".to_owned(), Tensor::real(workload.dtype, weight)),
    ])
}

/// Rows, and weights that neither shrink nor grow them. `one sign`: all products are positive. `beyond fp16`: sums leave fp16 on the way, and return.
pub fn gemm_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [rows, columns, inner] = ["M", "N", "K"].map(|axis| workload.axis(axis));
    let mut a = draw.normal("A", &[rows, inner], workload.number("std", 1.0));
    let mut b = draw.normal("B", &[columns, inner], 1.0 / (inner as f64).sqrt());
    if workload.has("one sign") {
        a = draw.about("A", &[rows, inner], 1.0, 0.05);
        b = draw.one_sign("B", &[columns, inner], 0, 1.0 / inner as f64);
    }
    if workload.has("beyond fp16") {
        // two products of 2^17 that cancel: the first and the last of a row
        for (at, sign) in [(0, 1.0), (inner - 1, -1.0)] {
            a.index_axis_mut(Axis(1), at).fill(512.0);
            b.index_axis_mut(Axis(1), at).fill(256.0 * sign);
        }
    }
    Tensors::from_iter([
        ("A".to_owned(), Tensor::real(workload.dtype, a)),
        ("B".to_owned(), Tensor::real(workload.dtype, b)),
    ])
}
