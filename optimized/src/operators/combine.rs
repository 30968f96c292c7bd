//! The end of a mixture of experts: the weighted sum over a token's experts, and the shared experts (paper eq. 20).

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

/// As many experts of a token as a block has room to sort.
const MOST_SELECTED: usize = 1024;

/// `out = sum_j weights[.., j] * rows[places[.., j]] + shared`: rows \[P,D\] in sorted order, places \[N k\] (or
/// \[N,k\]), weights \[N,k\] in fp32, shared \[N,D\] -> out \[N,D\].
///
/// The sum is fp32, by rising place and so by rising expert, as Transformers adds; then the shared row; then one
/// rounding. A place of -1 counts nothing.
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
    for (name, tensor) in shared.map(|shared| ("shared", shared)).into_iter().chain([("out", out)]) {
        Operand::new(operator, name, tensor).element(rows.element())?.shape(&[tokens, width])?.contiguous()?;
    }
    if out.is_empty() {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear((tokens * width).div_ceil(128) as u32, 128),
        Variant::Tuned => Grid::linear(tokens as u32, 256),
    };
    let args = Arguments::default().tensors([rows, places, weights]).optional(shared).tensors([out]);
    let entry = format!("{operator}_{variant}_{}", rows.element());
    args.sizes([tokens, width, k]).launch(rows, "combine", entry, grid)
}
