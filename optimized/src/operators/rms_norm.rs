//! RMSNorm, with and without an addition to the residual stream, and behind a linear layer.

use ptx_emulator::Grid;

use super::gemm::product::{Product, Tuned};
use super::scratch::Scratch;
use super::{Arguments, Operand, Variant};
use crate::{Result, Tensor};

/// `y = w x / sqrt(mean(x²) + eps)`, row by row: x \[N,D\] (rows may be apart), weight \[D\] -> y \[N,D\].
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn rms_norm(variant: Variant, x: &Tensor, weight: &Tensor, eps: f32, y: &Tensor) -> Result<()> {
    let [rows, width] = check("rms_norm", x, weight, &[("y", y)])?;
    let args = Arguments::default().strided(x, 1).tensors([weight, y]).sizes([rows, width]).and(eps);
    launch("rms_norm", variant, x, rows, args)
}

/// `h = x + residual`, `y = rms_norm(h)`: the end of a sub-layer and the beginning of the next in one pass.
///
/// x \[N,D\] (rows may be apart), residual \[N,D\], weight \[D\] -> h \[N,D\] (may be `residual` itself), y \[N,D\].
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn add_rms_norm(
    variant: Variant,
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
    h: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let [rows, width] = check("add_rms_norm", x, weight, &[("residual", residual), ("h", h), ("y", y)])?;
    let args = Arguments::default().strided(x, 1).tensors([residual, weight, h, y]).sizes([rows, width]).and(eps);
    launch("add_rms_norm", variant, x, rows, args)
}

/// [`linear_shared`](super::gemm::linear_shared) and then [`rms_norm`] of its first columns, to the bit; in one launch for few
/// rows: x \[M,K\], weight \[N,K\], bias \[N\] -> out \[M,N\] (rows may be apart); gain \[W\] -> y \[M,W\].
///
/// # Errors
/// As those.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn linear_rms_norm(
    scratch: &Scratch,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    out: &Tensor,
    gain: &Tensor,
    eps: f32,
    y: &Tensor,
) -> Result<()> {
    const OPERATOR: &str = "linear_rms_norm";
    let product = Product::linear(OPERATOR, x, weight, bias, out)?;
    Operand::new(OPERATOR, "out", out).element(x.element())?;
    let [width] = Operand::new(OPERATOR, "gain", gain).axes()?;
    let first = out.narrow(1, 0..width)?;
    check(OPERATOR, &first, gain, &[("y", y)])?;
    match product.going_on(scratch)? {
        Some((tuned, counter)) => scratch.after(go_on(tuned, x, None, gain, eps, y, counter)),
        None => {
            product.launch(Variant::Tuned, Some(scratch))?;
            rms_norm(Variant::Tuned, &first, gain, eps, y)
        }
    }
}

/// [`linear_shared`](super::gemm::linear_shared) and then [`add_rms_norm`], to the bit; in one launch for few rows: x \[M,K\],
/// weight \[N,K\], bias \[N\], residual \[M,N\], gain \[N\] -> h \[M,N\] (may be `residual` itself), y
/// \[M,N\] (none of the others: with more rows the product has its place there first).
///
/// # Errors
/// As those.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn linear_add_rms_norm(
    scratch: &Scratch,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: &Tensor,
    gain: &Tensor,
    eps: f32,
    h: &Tensor,
    y: &Tensor,
) -> Result<()> {
    const OPERATOR: &str = "linear_add_rms_norm";
    // Apart, the product has its place where the norm will be: a block has read a row before it stores its norm.
    let product = Product::linear(OPERATOR, x, weight, bias, y)?;
    Operand::new(OPERATOR, "y", y).element(x.element())?;
    check(OPERATOR, y, gain, &[("residual", residual), ("h", h), ("y", y)])?;
    match Product::linear(OPERATOR, x, weight, bias, h)?.going_on(scratch)? {
        Some((tuned, counter)) => scratch.after(go_on(tuned, x, Some(residual), gain, eps, y, counter)),
        None => {
            product.launch(Variant::Tuned, Some(scratch))?;
            add_rms_norm(Variant::Tuned, y, residual, gain, eps, h, y)
        }
    }
}

/// A product whose last block goes on with the norm.
fn go_on(
    Tuned { name, grid, product }: Tuned,
    on: &Tensor,
    residual: Option<&Tensor>,
    gain: &Tensor,
    eps: f32,
    y: &Tensor,
    counter: u64,
) -> Result<()> {
    let args = Arguments::default().and(product).optional(residual).tensors([gain, y]).sizes([gain.len()]);
    args.and(eps).and(counter).launch(on, "linear_norm", format!("linear_norm_{name}"), grid)
}

/// N and D.
fn check(
    operator: &'static str,
    x: &Tensor,
    weight: &Tensor,
    others: &[(&'static str, &Tensor)],
) -> Result<[usize; 2]> {
    let [rows, width] = Operand::new(operator, "x", x).real()?.contiguous_rows()?.axes()?;
    Operand::new(operator, "weight", weight).element(x.element())?.shape(&[width])?.contiguous()?;
    for (name, tensor) in others {
        Operand::new(operator, name, tensor).element(x.element())?.shape(&[rows, width])?.contiguous()?;
    }
    Ok([rows, width])
}

/// A thread, or a block, for each row.
fn launch(operator: &'static str, variant: Variant, x: &Tensor, rows: usize, args: Arguments) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear(rows.div_ceil(128) as u32, 128),
        Variant::Tuned => Grid::linear(rows as u32, 256),
    };
    args.launch(x, "rms_norm", format!("{operator}_{variant}_{}", x.element()), grid)
}
