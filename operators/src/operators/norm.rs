//! RMSNorm (section 2, figure 2), alone and behind a residual addition.

use dsv2_reference::Real;
use dsv2_reference::model::norm::RmsNorm;
use ndarray::{Array1, Array2, Ix1, Ix2};

use super::draw::Draw;
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{Tensor, Tensors};

/// DeepSeek-V2's `rms_norm_eps`.
pub(super) const EPS: f64 = 1e-6;

/// `weight * x / sqrt(mean(x^2) + eps)` of each row \[N,D\].
pub fn rmsnorm<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let x: Array2<T> = call.real::<_, Ix2>("hidden_states");
    Ok(vec![("output", normalised(call, &x).into())])
}

/// The same of `hidden_states + residual`, which is returned, too: the next layer's residual stream.
///
/// **Trap**: what is normalised is the sum before it is rounded to the type of the residual stream.
pub fn fused_add_rmsnorm<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let sum = call.real::<T, Ix2>("hidden_states") + call.real::<T, Ix2>("residual");
    let output = normalised(call, &sum);
    Ok(vec![("output", output.into()), ("residual_out", sum.into())])
}

fn normalised<T: Real>(call: &Call, x: &Array2<T>) -> Array2<T> {
    let weight: Array1<T> = call.real::<_, Ix1>("weight");
    RmsNorm::new(weight, EPS).forward(x.view())
}

/// So many numbers have the mean square that a workload asks for.
const GROUP: usize = 16;

/// Rows and a weight near 1. `zero row`: the second row is 0. `mean square`: that of every 16 numbers of a row, before they are rounded; between two
/// numbers of a type, so that a sum that is rounded to it moves every row to the same side.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let (rows, width) = (workload.axis("batch_size"), workload.axis("hidden_size"));
    let mut hidden = draw.normal("hidden_states", &[rows, width], workload.number("std", 1.0));
    if workload.has("zero row") {
        hidden.index_axis_mut(ndarray::Axis(0), 1).fill(0.0);
    }
    if let Some(&target) = workload.numbers.get("mean square") {
        for group in hidden.as_slice_mut().expect("row-major").chunks_mut(GROUP) {
            let mean = group.iter().map(|x| x * x).sum::<f64>() / group.len() as f64;
            group.iter_mut().for_each(|x| *x *= (target / mean).sqrt());
        }
    }
    let weight = draw.about("weight", &[width], 1.0, 0.3);
    Tensors::from_iter([
        ("hidden_states".to_owned(), Tensor::real(workload.dtype, hidden)),
        ("weight".to_owned(), Tensor::real(workload.dtype, weight)),
    ])
}

/// The same with a residual stream ten times as large.
pub fn inputs_with_residual(workload: &Workload, draw: &Draw) -> Tensors {
    let mut tensors = inputs(workload, draw);
    let hidden = tensors["hidden_states"].as_real().expect("numbers");
    let residual = if workload.numbers.contains_key("mean square") {
        // the sum is what has this mean square
        let summand = draw.normal("summand", hidden.shape(), 0.1);
        let residual = hidden - &summand;
        tensors.insert("hidden_states".to_owned(), Tensor::real(workload.dtype, summand));
        residual
    } else {
        draw.normal("residual", hidden.shape(), 10.0 * workload.number("std", 1.0))
    };
    tensors.insert("residual".to_owned(), Tensor::real(workload.dtype, residual));
    tensors
}
