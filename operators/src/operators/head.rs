//! The head and the loss.

use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::matmul_t;
use dsv2_reference::arithmetic::softmax::log_sum_exp;
use ndarray::{Array1, Array2, Axis, Ix1, Ix2, Slice};

use super::draw::{Draw, int32};
use crate::call::{Call, Computed, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{Tensor, Tensors};

/// The token of the largest logit of each row, the first of equal ones, and the logits `x W^T`.
pub fn argmax<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let logits = matmul_t(call.real::<T, Ix2>("hidden_states").view(), call.real::<T, Ix2>("weight").view());
    let best = |row: ndarray::ArrayView1<T>| {
        row.iter().enumerate().fold((0, T::neg_infinity()), |best, (at, &z)| if z > best.1 { (at, z) } else { best }).0
    };
    let tokens: Vec<i64> = logits.rows().into_iter().map(|row| best(row) as i64).collect();
    let tokens = Array2::from_shape_vec((tokens.len(), 1), tokens).expect("one for each row").into_dyn();
    Ok(vec![("tokens", Computed::Index(tokens)), ("logits", logits.into())])
}

/// `log sum exp(z) - z_label` of each row; 0 where the label is -100.
pub fn cross_entropy<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let logits = call.real::<T, Ix2>("logits");
    let labels = call.index::<Ix1>("labels");
    let vocabulary = logits.len_of(Axis(1)) as i64;
    if let Some(bad) = labels.iter().find(|&&label| label != -100 && !(0..vocabulary).contains(&label)) {
        let expected = format!("-100, or tokens 0 to {}", vocabulary - 1);
        return Err(contract.mismatch("input", "labels", &expected, &bad.to_string()));
    }
    let of = |(row, &label): (ndarray::ArrayView1<T>, &i64)| {
        if label == -100 { T::zero() } else { log_sum_exp(row) - row[label as usize] }
    };
    let losses: Array1<T> = logits.rows().into_iter().zip(&labels).map(of).collect();
    Ok(vec![("losses", losses.into())])
}

/// Hidden states and a head. `close logits`: the second half of the head is the first half with one column in sixteen a little larger, which bf16 logits do not show. `equal logits`: the best token of each row is there twice, the second time much further on.
pub fn argmax_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, hidden, vocabulary] = ["num_tokens", "hidden_size", "vocab_size"].map(|axis| workload.axis(axis));
    let x = draw.normal("hidden_states", &[tokens, hidden], 1.0);
    let mut weight = draw.normal("weight", &[vocabulary, hidden], 1.0 / (hidden as f64).sqrt());
    if workload.has("equal logits") || workload.has("close logits") {
        let (first, mut second) = weight.view_mut().split_at(Axis(0), vocabulary.div_ceil(2));
        let rows = second.len_of(Axis(0));
        second.assign(&first.slice_axis(Axis(0), (0..rows).into()));
        if workload.has("close logits") {
            second.slice_axis_mut(Axis(1), Slice::new(0, None, 16)).mapv_inplace(|x| x * (1.0 + 1.0 / 128.0));
        }
    }
    Tensors::from_iter([
        ("hidden_states".to_owned(), Tensor::real(workload.dtype, x)),
        ("weight".to_owned(), Tensor::real(workload.dtype, weight)),
    ])
}

/// Logits and labels. `ignored`: every third label is -100. `large`: logits of several hundred, whose exponential overflows.
pub fn labelled(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, vocabulary] = ["num_tokens", "vocab_size"].map(|axis| workload.axis(axis));
    let std = if workload.has("large") { 200.0 } else { 3.0 };
    let label = |token: usize| {
        if workload.has("ignored") && token.is_multiple_of(3) {
            -100
        } else {
            draw.below("labels", token, vocabulary) as i64
        }
    };
    Tensors::from_iter([
        ("logits".to_owned(), Tensor::real(workload.dtype, draw.normal("logits", &[tokens, vocabulary], std))),
        ("labels".to_owned(), int32(tokens, (0..tokens).map(label).collect())),
    ])
}
