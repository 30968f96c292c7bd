//! RMSNorm, with and without an addition to the residual stream.

use ptx_emulator::Grid;

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
