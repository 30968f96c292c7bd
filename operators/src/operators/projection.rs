//! The absorbed up-projections (C, eq. 41-47): one matrix for each head.

use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::matmul;
use ndarray::{Array3, Axis, Ix3};

use super::draw::Draw;
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{Tensor, Tensors};

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

/// Heads and weights that neither shrink nor grow them.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, heads, from, to] = ["num_tokens", "num_heads", "dim_in", "dim_out"].map(|axis| workload.axis(axis));
    let x = draw.normal("x", &[tokens, heads, from], 1.0);
    let weight = draw.normal("weight", &[heads, from, to], 1.0 / (from as f64).sqrt());
    Tensors::from_iter([
        ("x".to_owned(), Tensor::real(workload.dtype, x)),
        ("weight".to_owned(), Tensor::real(workload.dtype, weight)),
    ])
}
