//! The gated MLP and the routed experts (section 2.2.1, eq. 20).

use dsv2_reference::Real;
use dsv2_reference::arithmetic::activation::Activation;
use dsv2_reference::arithmetic::matmul::matmul_t;
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, Ix2, s};

use super::draw::{Draw, int32};
use super::fp8;
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

/// `silu(gate) * up` of rows \[N,2I\] that hold the gate first.
pub fn silu_and_mul<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let gate_up = call.real::<T, Ix2>("gate_up");
    if !gate_up.ncols().is_multiple_of(2) {
        return Err(contract.mismatch(
            "input",
            "gate_up",
            "rows of a gate and as much beside it",
            &gate_up.ncols().to_string(),
        ));
    }
    Ok(vec![("output", gated(gate_up.view()).into())])
}

/// `sum_k weight_k W2_e(silu(W1_e x) * W3_e x)` for the experts e of each token: w13 \[E,2I,D\] holds W1 over W3, w2 is \[E,D,I\].
/// An expert of -1 is one that another device has, and adds nothing.
pub fn grouped<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let weights = [call.real("w13"), call.real("w2")];
    routed(contract, call, call.real("hidden_states"), weights, |gated| call.operand(gated))
}

/// The same of weights in fp8, with a scale for each 128 x 128. What is multiplied may be rounded to fp8 too, each 128 numbers
/// of a row with a scale of their own.
pub fn grouped_fp8<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let weights = [fp8::scaled(contract, call, "w13", fp8::BLOCK)?, fp8::scaled(contract, call, "w2", fp8::BLOCK)?];
    let x = fp8::operand(call, call.real("hidden_states"));
    routed(contract, call, x, weights, |gated| fp8::operand(call, call.operand(gated)))
}

fn routed<T: Real>(
    contract: &Contract,
    call: &Call,
    x: Array2<T>,
    [w13, w2]: [Array3<T>; 2],
    operand: impl Fn(Array2<T>) -> Array2<T>,
) -> Result<Outputs<T>> {
    if w13.len_of(Axis(1)) != 2 * w2.len_of(Axis(2)) {
        let expected = format!("matrices of {} rows", 2 * w2.len_of(Axis(2)));
        return Err(contract.mismatch("input", "w13", &expected, &w13.len_of(Axis(1)).to_string()));
    }
    let (chosen, weights) = (call.index::<Ix2>("topk_indices"), call.real::<T, Ix2>("topk_weights"));
    let experts = w13.len_of(Axis(0)) as i64;
    if let Some(bad) = chosen.iter().find(|&&expert| !(-1..experts).contains(&expert)) {
        let expected = format!("-1, or experts 0 to {}", experts - 1);
        return Err(contract.mismatch("input", "topk_indices", &expected, &bad.to_string()));
    }
    let mut output: Array2<T> = Array2::zeros(x.raw_dim());
    for (token, (chosen, weights)) in chosen.rows().into_iter().zip(weights.rows()).enumerate() {
        let row = x.slice(s![token..token + 1, ..]);
        for (&expert, &weight) in chosen.iter().zip(weights).filter(|(expert, _)| **expert >= 0) {
            let gate_up = matmul_t(row, w13.index_axis(Axis(0), expert as usize));
            let between = operand(gated(gate_up.view()));
            let out: Array1<T> = matmul_t(between.view(), w2.index_axis(Axis(0), expert as usize)).row(0).to_owned();
            output.row_mut(token).scaled_add(weight, &call.operand(out));
        }
    }
    Ok(vec![("output", output.into())])
}

/// `W_down(silu(W_gate x) * W_up x)`: gate_up_proj \[2I,D\] holds W_gate over W_up, down_proj is \[D,I\].
pub fn swiglu_mlp<T: Real>(contract: &Contract, call: &Call) -> Result<Outputs<T>> {
    let (gate_up, down) = (call.real::<T, Ix2>("gate_up_proj"), call.real::<T, Ix2>("down_proj"));
    if gate_up.nrows() != 2 * down.ncols() {
        let expected = format!("{} rows", 2 * down.ncols());
        return Err(contract.mismatch("input", "gate_up_proj", &expected, &gate_up.nrows().to_string()));
    }
    let between = call.operand(gated(matmul_t(call.real::<T, Ix2>("hidden_states").view(), gate_up.view()).view()));
    Ok(vec![("output", matmul_t(between.view(), down.view()).into())])
}

fn gated<T: Real>(gate_up: ArrayView2<T>) -> Array2<T> {
    let (gate, up) = gate_up.split_at(Axis(1), gate_up.ncols() / 2);
    gate.mapv(|x| Activation::Silu.apply(x)) * up
}

/// Tokens and weights that neither shrink nor grow them. `one sign`: all products are positive.
pub fn mlp_inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, hidden, inner] = ["num_tokens", "hidden_size", "intermediate_size"].map(|axis| workload.axis(axis));
    let tensor = |name: &str, shape: [usize; 2], std: f64| {
        (name.to_owned(), Tensor::real(workload.dtype, draw.normal(name, &shape, std)))
    };
    if workload.has("one sign") {
        let weight = |name: &str, shape: [usize; 2]| {
            (name.to_owned(), Tensor::real(workload.dtype, draw.one_sign(name, &shape, 0, 1.0 / shape[1] as f64)))
        };
        let x = draw.about("hidden_states", &[tokens, hidden], 1.0, 0.05);
        return Tensors::from_iter([
            ("hidden_states".to_owned(), Tensor::real(workload.dtype, x)),
            weight("gate_up_proj", [2 * inner, hidden]),
            weight("down_proj", [hidden, inner]),
        ]);
    }
    Tensors::from_iter([
        tensor("hidden_states", [tokens, hidden], workload.number("std", 1.0)),
        tensor("gate_up_proj", [2 * inner, hidden], 1.0 / (hidden as f64).sqrt()),
        tensor("down_proj", [hidden, inner], 1.0 / (inner as f64).sqrt()),
    ])
}

/// Rows of a gate and an up-projection. `overflowing`: gates of up to 200, whose exponential no fp16 holds.
pub fn gate_up(workload: &Workload, draw: &Draw) -> Tensors {
    let shape = [workload.axis("num_tokens"), workload.axis("gate_up_size")];
    let std = if workload.has("overflowing") { 60.0 } else { 2.0 };
    Tensors::from_iter([("gate_up".to_owned(), Tensor::real(workload.dtype, draw.normal("gate_up", &shape, std)))])
}

/// Tokens, experts, and which token goes where. `one expert`: all go to the same; `elsewhere`: every other choice is an expert
/// of another device. Else any k experts, so that of many some have no token. `fp8`: weights in fp8 with scales.
/// `one sign`: all products are positive.
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let [tokens, experts, k, hidden, inner] =
        ["num_tokens", "num_experts", "top_k", "hidden_size", "intermediate_size"].map(|axis| workload.axis(axis));
    let chosen = |token: usize| -> Vec<i64> {
        let order = if workload.has("one expert") {
            (0..experts).rev().collect()
        } else {
            draw.permutation(&format!("token {token}"), experts)
        };
        let elsewhere = |slot: usize| workload.has("elsewhere") && (token + slot) % 2 == 1;
        (0..k).map(|slot| if elsewhere(slot) { -1 } else { order[slot] as i64 }).collect()
    };
    let (mean, std) = if workload.has("one sign") { (1.0, 0.05) } else { (0.0, 1.0) };
    let mut tensors = Tensors::new();
    for (name, shape) in [("w13", [experts, 2 * inner, hidden]), ("w2", [experts, hidden, inner])] {
        let mut weight = match workload.has("one sign") {
            true => draw.one_sign(name, &shape, 1, 1.0 / shape[2] as f64),
            false => draw.normal(name, &shape, 1.0 / (shape[2] as f64).sqrt()),
        };
        if workload.has("fp8") {
            fp8::uneven(&mut weight, fp8::BLOCK, draw, name);
            tensors.extend(fp8::quantized(name, weight, fp8::BLOCK));
        } else {
            tensors.insert(name.to_owned(), Tensor::real(workload.dtype, weight));
        }
    }
    let weights = draw.about("topk_weights", &[tokens, k], 0.5, 0.1);
    tensors.extend([
        (
            "hidden_states".to_owned(),
            Tensor::real(workload.dtype, draw.about("hidden_states", &[tokens, hidden], mean, std)),
        ),
        ("topk_indices".to_owned(), int32((tokens, k), (0..tokens).flat_map(chosen).collect())),
        ("topk_weights".to_owned(), Tensor::real(ElementType::Float32, weights)),
    ]);
    tensors
}
