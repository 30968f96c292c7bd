//! The end of a mixture of experts: the weighted sum over a token's experts, and the shared experts (paper eq. 20).

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

/// As many experts of a token as a block has room to sort.
const MOST_SELECTED: usize = 1024;

/// `out = sum_j weights[.., j] * rows[places[.., j]] + shared`: rows \[P,D\] in sorted order, places \[N k\] (or
/// \[N,k\]), weights \[N,k\] in fp32, shared \[N,D\] -> out \[N,D\].
///
/// The sum is fp32, by rising place and so by rising expert, as Transformers adds, and rounded; then the shared row is added,
/// and that is rounded. A place of -1 counts nothing.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn combine(
    variant: Variant,
    rows: &Tensor,
    places: &Tensor,
    weights: &Tensor,
    shared: Option<&Tensor>,
    out: &Tensor,
) -> Result<()> {
    let operator = "combine";
    let Terms { args, tokens, width, k } = terms(operator, rows, places, weights, shared)?;
    Operand::new(operator, "out", out).element(rows.element())?.shape(&[tokens, width])?.contiguous()?;
    if out.is_empty() {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear((tokens * width).div_ceil(128) as u32, 128),
        Variant::Tuned => Grid::linear(tokens as u32, 256),
    };
    let entry = format!("{operator}_{variant}_{}", rows.element());
    args.tensors([out]).sizes([tokens, width, k]).launch(rows, "combine", entry, grid)
}

/// The same, then `h = out + residual` and `y = rms_norm(h)`, as [`add_rms_norm`](super::rms_norm::add_rms_norm) makes them:
/// residual \[N,D\], gain \[D\] -> h (may be the residual) and y \[N,D\].
///
/// To the bit what the two operators make one after the other; out itself is not stored.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn combine_add_rms_norm(
    variant: Variant,
    rows: &Tensor,
    places: &Tensor,
    weights: &Tensor,
    shared: Option<&Tensor>,
    residual: &Tensor,
    gain: &Tensor,
    eps: f32,
    h: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let operator = "combine_add_rms_norm";
    let Terms { args, tokens, width, k } = terms(operator, rows, places, weights, shared)?;
    Operand::new(operator, "gain", gain).element(rows.element())?.shape(&[width])?.contiguous()?;
    for (name, tensor) in [("residual", residual), ("h", h), ("y", y)] {
        Operand::new(operator, name, tensor).element(rows.element())?.shape(&[tokens, width])?.contiguous()?;
    }
    if tokens == 0 {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear(tokens.div_ceil(128) as u32, 128),
        Variant::Tuned => Grid::linear(tokens as u32, 256),
    };
    let args = args.tensors([residual, gain, h, y]).sizes([tokens, width, k]).and(eps);
    args.launch(rows, "combine", format!("{operator}_{variant}_{}", rows.element()), grid)
}

/// The terms of all sums, checked, as the first arguments of a kernel.
struct Terms {
    args: Arguments,
    tokens: usize,
    width: usize,
    k: usize,
}

fn terms(
    operator: &'static str,
    rows: &Tensor,
    places: &Tensor,
    weights: &Tensor,
    shared: Option<&Tensor>,
) -> Result<Terms> {
    let [_, width] = Operand::new(operator, "rows", rows).real()?.contiguous()?.axes()?;
    let [tokens, k] = Operand::new(operator, "weights", weights).element(Element::F32)?.contiguous()?.axes()?;
    if k > MOST_SELECTED {
        return Err(Error::operand(operator, "weights", format!("at most {MOST_SELECTED} for each token"), k));
    }
    Operand::new(operator, "rows", rows).shape(&[tokens * k, width])?;
    let table = Operand::new(operator, "places", places).element(Element::I32)?.contiguous()?;
    if places.shape() != [tokens, k] {
        table.shape(&[tokens * k])?;
    }
    if let Some(shared) = shared {
        Operand::new(operator, "shared", shared).element(rows.element())?.shape(&[tokens, width])?.contiguous()?;
    }
    let args = Arguments::default().tensors([rows, places, weights]).optional(shared);
    Ok(Terms { args, tokens, width, k })
}
