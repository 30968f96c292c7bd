//! RMSNorm, with and without an addition to the residual stream.

use ptx_emulator::{Arg, Grid};

use super::{Operand, Variant};
use crate::{Kernel, Result, Tensor};

/// `y = w x / sqrt(mean(x²) + eps)`, row by row: x \[N,D\] (rows may be apart), weight \[D\] -> y \[N,D\].
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn rms_norm(variant: Variant, x: &Tensor, weight: &Tensor, eps: f32, y: &Tensor) -> Result<()> {
    let [rows, width] = check("rms_norm", x, weight, &[("y", y)])?;
    let args = [
        x.arg(),
        (x.strides()[0] as i64).into(),
        weight.arg(),
        y.arg(),
        (rows as i32).into(),
        (width as i32).into(),
        eps.into(),
    ];
    launch("rms_norm", variant, x, rows, &args)
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
    let args = [
        x.arg(),
        (x.strides()[0] as i64).into(),
        residual.arg(),
        weight.arg(),
        h.arg(),
        y.arg(),
        (rows as i32).into(),
        (width as i32).into(),
        eps.into(),
    ];
    launch("add_rms_norm", variant, x, rows, &args)
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
fn launch(operator: &'static str, variant: Variant, x: &Tensor, rows: usize, args: &[Arg]) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear(rows.div_ceil(128) as u32, 128),
        Variant::Tuned => Grid::linear(rows as u32, 256),
    };
    let entry = format!("{operator}_{variant}_{}", x.element());
    x.device().launch(&Kernel::new("rms_norm", entry), grid, args)
}
