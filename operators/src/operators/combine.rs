//! What the experts of each token return, as one (section 2.2.1, eq. 20).

use dsv2_reference::Real;
use ndarray::{Array2, Axis, Ix2, Ix3, s};

use super::draw::{Draw, int32, scalar};
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

/// `factor * sum_k x_k` of rows \[N,k,D\] that are weighted already.
pub fn sum<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let factor: T = call.scalar("routed_scaling_factor");
    let summed = call.real::<T, Ix3>("expert_outputs").sum_axis(Axis(1)).mapv_into(|x| x * factor);
    Ok(vec![("output", summed.into())])
}

/// `shared + sum_k weight_k x_k` of rows \[N,k,D\]; an expert of -1 is one that another device has, and adds nothing, whatever
/// its row and its weight hold.
pub fn combine<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (outputs, weights) = (call.real::<T, Ix3>("expert_outputs"), call.real::<T, Ix2>("topk_weights"));
    let mut combined: Array2<T> = Array2::zeros((outputs.len_of(Axis(0)), outputs.len_of(Axis(2))));
    for ((token, slot), _) in call.index::<Ix2>("topk_indices").indexed_iter().filter(|(_, expert)| **expert != -1) {
        combined.row_mut(token).scaled_add(weights[[token, slot]], &outputs.slice(s![token, slot, ..]));
    }
    Ok(vec![("output", (combined + call.real::<T, Ix2>("shared_output")).into())])
}

/// Rows of several experts.
fn rows(workload: &Workload, draw: &Draw) -> ndarray::ArrayD<f64> {
    let [tokens, k, hidden] = ["num_tokens", "top_k", "hidden_size"].map(|axis| workload.axis(axis));
    draw.normal("expert_outputs", &[tokens, k, hidden], workload.number("std", 1.0))
}

/// [`rows`], and a factor.
pub fn sum_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    Tensors::from_iter([
        ("expert_outputs".to_owned(), Tensor::real(workload.dtype, rows(workload, draw))),
        ("routed_scaling_factor".to_owned(), scalar(workload.number("routed_scaling_factor", 1.0))),
    ])
}

/// [`rows`], which expert each is of, its weight, and the shared experts' rows. `elsewhere`: every other choice is an expert of
/// another device: its row and its weight are NaN.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, k, hidden] = ["num_tokens", "top_k", "hidden_size"].map(|axis| workload.axis(axis));
    let elsewhere = |choice: usize| workload.has("elsewhere") && choice % 2 == 1;
    let mut outputs = rows(workload, draw);
    let mut weights = draw.about("topk_weights", &[tokens, k], 0.5, 0.1);
    let mut experts = Vec::new();
    for choice in 0..tokens * k {
        let (token, slot) = (choice / k, choice % k);
        if elsewhere(choice) {
            outputs.slice_mut(s![token, slot, ..]).fill(f64::NAN);
            weights[[token, slot]] = f64::NAN;
        }
        experts.push(if elsewhere(choice) { -1 } else { (choice * 7 % 64) as i64 });
    }
    Tensors::from_iter([
        ("expert_outputs".to_owned(), Tensor::real(workload.dtype, outputs)),
        ("topk_weights".to_owned(), Tensor::real(ElementType::Float32, weights)),
        ("topk_indices".to_owned(), int32((tokens, k), experts)),
        ("shared_output".to_owned(), Tensor::real(workload.dtype, draw.normal("shared", &[tokens, hidden], 1.0))),
    ])
}
