//! The experts' gated MLPs: grouped matrix products over rows that are sorted by expert.
//!
//! ```text
//! h = act(W_gate x) * (W_up x)       gate_up: gathers rows of x, fused with the activation
//! y = W_down h                       down
//! ```
//!
//! The host does not know how many rows an expert has, and need not: the grid is as large as it can have to be, and
//! each block finds its expert in `offsets` ([`sort_by_expert`](super::dispatch::sort_by_expert)). A row's result is
//! the same to the bit whatever other rows its expert has.

use dsv2_reference::Activation;
use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant, activation};
use crate::{Element, Error, Result, Tensor};

/// Rows of a block of the tuned kernels, and columns of the result, which are half as many if two products make one.
const BLOCK: [usize; 2] = [64, 128];

/// Dynamic shared memory of that block: three tiles of (64 + 128) rows of 128 bytes.
const SHARED: u32 = 3 * (64 + 128) * 128;

/// `act(gate) * up` of each pair of token and expert: x \[N,D\] (rows may be apart), weights \[E,2I,D\] (an expert's
/// gate rows, then its up rows), offsets \[E+1\], order \[N k\] -> out \[N k,I\], a row for each place of `order`.
///
/// Row i is made of row `order[i] / top_k` of x. Rows from `offsets[E]` on (pairs without an expert) are not written.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
#[expect(clippy::too_many_arguments, reason = "an operator has as many operands as it has")]
pub fn gate_up(
    variant: Variant,
    act: Activation,
    x: &Tensor,
    weights: &Tensor,
    offsets: &Tensor,
    order: &Tensor,
    top_k: usize,
    out: &Tensor,
) -> Result<()> {
    let operator = "gate_up";
    let [tokens, depth] = Operand::new(operator, "x", x).real()?.contiguous_rows()?.axes()?;
    let [experts, both, _] = Operand::new(operator, "weights", weights).element(x.element())?.contiguous()?.axes()?;
    if both % 2 != 0 {
        return Err(Error::operand(operator, "weights", "as many gate as up rows", format!("{:?}", weights.shape())));
    }
    let (pairs, width) = (tokens * top_k, both / 2);
    Operand::new(operator, "weights", weights).shape(&[experts, both, depth])?;
    Operand::new(operator, "offsets", offsets).element(Element::I32)?.shape(&[experts + 1])?.contiguous()?;
    Operand::new(operator, "order", order).element(Element::I32)?.shape(&[pairs])?.contiguous()?;
    Operand::new(operator, "out", out).element(x.element())?.shape(&[pairs, width])?.contiguous()?;
    if out.is_empty() || experts == 0 {
        return Ok(());
    }
    let args = Arguments::default().strided(x, 1).tensors([order]).sizes([top_k]).tensors([weights, offsets, out]);
    let args = args.sizes([experts, depth, width]).and(activation::number(act));
    let grid = grid(variant, pairs, experts, width, BLOCK[1] / 2);
    args.launch(x, "experts", format!("{operator}_{variant}_{}", x.element()), grid)
}

/// The last product of each expert: h \[N k,I\] in sorted order (rows may be apart), weights \[E,D,I\], offsets \[E+1\]
/// -> out \[N k,D\] in sorted order.
///
/// Rows from `offsets[E]` on are neither read nor written.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn down(variant: Variant, h: &Tensor, weights: &Tensor, offsets: &Tensor, out: &Tensor) -> Result<()> {
    let operator = "down";
    let [pairs, depth] = Operand::new(operator, "h", h).real()?.contiguous_rows()?.axes()?;
    let [experts, width, _] = Operand::new(operator, "weights", weights).element(h.element())?.contiguous()?.axes()?;
    Operand::new(operator, "weights", weights).shape(&[experts, width, depth])?;
    Operand::new(operator, "offsets", offsets).element(Element::I32)?.shape(&[experts + 1])?.contiguous()?;
    Operand::new(operator, "out", out).element(h.element())?.shape(&[pairs, width])?.contiguous()?;
    if out.is_empty() || experts == 0 {
        return Ok(());
    }
    let args = Arguments::default().strided(h, 1).tensors([weights, offsets, out]).sizes([experts, depth, width]);
    let grid = grid(variant, pairs, experts, width, BLOCK[1]);
    args.launch(h, "experts", format!("{operator}_{variant}_{}", h.element()), grid)
}

/// A thread for each element; or a block for each tile, of which each expert with rows may have one that is not full.
fn grid(variant: Variant, pairs: usize, experts: usize, width: usize, columns: usize) -> Grid {
    match variant {
        Variant::Naive => Grid::linear((pairs * width).div_ceil(128) as u32, 128),
        Variant::Tuned => Grid {
            blocks: [width.div_ceil(columns) as u32, (pairs / BLOCK[0] + experts.min(pairs)) as u32, 1],
            threads: [128, 1, 1],
            shared: SHARED,
        },
    }
}
