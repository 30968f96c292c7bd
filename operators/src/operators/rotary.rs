//! The rotary embedding (section 2.1.3), in both layouts that kernels use.

use dsv2_reference::Real;
use dsv2_reference::model::rope::RotaryTables;
use ndarray::{Array3, Array4, Axis, Ix2, Ix3, s};

use super::draw::Draw;
use crate::call::{Call, Outputs};
use crate::contract::{Contract, Workload};
use crate::error::Result;
use crate::tensor::{ElementType, Tensor, Tensors};

/// Turns the pairs (x_2i, x_2i+1) of each head \[N,H,r\] by the angle i of its token: DeepSeek's own layout.
pub fn interleaved<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    Ok(vec![("output", rotated(call, call.real::<T, Ix3>("x")).into())])
}

/// Turns the pairs (x_i, x_i+r/2): the layout of `rotate_half`.
///
/// **Trap**: DeepSeek's weights are made for pairs side by side. A kernel for halves is right behind a permutation of the last
/// axis of q and k, and wrong without it.
pub fn halves<T: Real>(_: &Contract, call: &Call) -> Result<Outputs<T>> {
    let x = call.real::<T, Ix3>("x");
    let half = x.len_of(Axis(2)) / 2;
    let mut pairs = Array3::zeros(x.raw_dim());
    pairs.slice_mut(s![.., .., 0..;2]).assign(&x.slice(s![.., .., ..half]));
    pairs.slice_mut(s![.., .., 1..;2]).assign(&x.slice(s![.., .., half..]));
    let turned = rotated(call, pairs);
    let mut output = Array3::zeros(x.raw_dim());
    output.slice_mut(s![.., .., ..half]).assign(&turned.slice(s![.., .., 0..;2]));
    output.slice_mut(s![.., .., half..]).assign(&turned.slice(s![.., .., 1..;2]));
    Ok(vec![("output", output.into())])
}

/// \[N,H,r\] as the one sequence of N tokens that it is to the model: \[1,H,N,r\].
fn rotated<T: Real>(call: &Call, x: Array3<T>) -> Array3<T> {
    let mut heads: Array4<T> = x.permuted_axes([1, 0, 2]).insert_axis(Axis(0));
    given(call).rotate(&mut heads);
    heads.index_axis_move(Axis(0), 0).permuted_axes([1, 0, 2]).as_standard_layout().into_owned()
}

/// The tables of a call, for the one sequence that its tokens are.
pub(super) fn given<T: Real>(call: &Call) -> RotaryTables<T> {
    let table = |name| call.real::<T, Ix2>(name).insert_axis(Axis(0));
    RotaryTables { cos: table("cos"), sin: table("sin") }
}

/// Heads, and [`tables`].
pub fn inputs(workload: &Workload, draw: &Draw) -> Tensors {
    let (tokens, heads, width) = (workload.axis("num_tokens"), workload.axis("num_heads"), workload.axis("rope_dim"));
    let mut tensors = tables(tokens, width, draw);
    let x = draw.normal("x", &[tokens, heads, width], workload.number("std", 1.0));
    tensors.insert("x".to_owned(), Tensor::real(workload.dtype, x));
    tensors
}

/// Cosines and sines for positions far apart: 0, 1, and up to 163,839, the longest of DeepSeek-V2.
pub(super) fn tables(tokens: usize, width: usize, draw: &Draw) -> Tensors {
    let position = |token: usize| if token < 2 { token } else { draw.below("position", token, 163_840) };
    let angle = |token: usize, i: usize| position(token) as f64 * 10_000f64.powf(-2.0 * i as f64 / width as f64);
    let table = |of: fn(f64) -> f64| {
        let values = ndarray::Array2::from_shape_fn((tokens, width / 2), |(token, i)| of(angle(token, i)));
        Tensor::real(ElementType::Float32, values.into_dyn())
    };
    Tensors::from_iter([("cos".to_owned(), table(f64::cos)), ("sin".to_owned(), table(f64::sin))])
}
