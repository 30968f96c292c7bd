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
use ptx_emulator::{Arg, Grid};

use super::{Arguments, Operand, Variant, activation};
use crate::{Element, Error, Result, Tensor};

/// Rows of a block of the tuned kernels, and columns of the result, which are half as many if two products make one.
const BLOCK: [usize; 2] = [64, 128];

/// Dynamic shared memory of that block: three tiles of (64 + 128) rows of 128 bytes.
const SHARED: u32 = 3 * (64 + 128) * 128;

/// `act(gate) * up` of each pair of token and expert: x \[N,D\] (rows may be apart), weights \[E,2I,D\] (an expert's
/// gate rows, then its up rows), offsets \[E+1\], order \[N k\] -> out \[P,I\], a row for each place of `order`, or at least
/// for each of the first `offsets[E]`, which have an expert.
///
/// Row i is made of row `order[i] / top_k` of x. Rows from `offsets[E]` on (pairs without an expert) are not written. The host
/// does not see the offsets: who knows that some pairs have no expert, and gives fewer rows, must have counted them.
///
/// `shared` is an expert that every token visits: its weight \[2I',D\] and its results \[N,I'\], in the order of x.
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
    shared: Option<[&Tensor; 2]>,
) -> Result<()> {
    let operator = "gate_up";
    let [tokens, depth] = Operand::new(operator, "x", x).real()?.contiguous_rows()?.axes()?;
    let [experts, both, _] = Operand::new(operator, "weights", weights).element(x.element())?.contiguous()?.axes()?;
    if both % 2 != 0 {
        return Err(Error::operand(operator, "weights", "as many gate as up rows", format!("{:?}", weights.shape())));
    }
    let (pairs, width) = (tokens * top_k, both / 2);
    let rows = out.shape().first().map_or(pairs, |rows| pairs.min(*rows));
    Operand::new(operator, "weights", weights).shape(&[experts, both, depth])?;
    Operand::new(operator, "offsets", offsets).element(Element::I32)?.shape(&[experts + 1])?.contiguous()?;
    Operand::new(operator, "order", order).element(Element::I32)?.shape(&[pairs])?.contiguous()?;
    Operand::new(operator, "out", out).element(x.element())?.shape(&[rows, width])?.contiguous()?;
    let shared = match shared {
        None => None,
        Some([weights, out]) => {
            let [both, _] =
                Operand::new(operator, "shared weights", weights).element(x.element())?.contiguous()?.axes()?;
            if both % 2 != 0 {
                let found = format!("{:?}", weights.shape());
                return Err(Error::operand(operator, "shared weights", "as many gate as up rows", found));
            }
            Operand::new(operator, "shared weights", weights).shape(&[both, depth])?;
            Operand::new(operator, "shared out", out).element(x.element())?.shape(&[tokens, both / 2])?.contiguous()?;
            Some(Shared { x, weights, out, sizes: [tokens, depth, both / 2] })
        }
    };
    let Some(grid) = grid(variant, [rows, experts, width], BLOCK[1] / 2, shared.as_ref()) else { return Ok(()) };
    let args = Arguments::default().strided(x, 1).tensors([order]).sizes([top_k]).tensors([weights, offsets, out]);
    let args = args.sizes([experts, depth, width]).and(activation::number(act)).and(Shared::arg(shared.as_ref()));
    args.launch(x, "experts", format!("{operator}_{variant}_{}", x.element()), grid)
}

/// The last product of each expert: h \[P,I\] in sorted order (rows may be apart), weights \[E,D,I\], offsets \[E+1\]
/// -> out \[P,D\] in sorted order.
///
/// Rows from `offsets[E]` on are neither read nor written. `shared` is an expert that every token visits: its h \[N,I'\], its
/// weight \[D,I'\], and its results \[N,D\].
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn down(
    variant: Variant,
    h: &Tensor,
    weights: &Tensor,
    offsets: &Tensor,
    out: &Tensor,
    shared: Option<[&Tensor; 3]>,
) -> Result<()> {
    let operator = "down";
    let [pairs, depth] = Operand::new(operator, "h", h).real()?.contiguous_rows()?.axes()?;
    let [experts, width, _] = Operand::new(operator, "weights", weights).element(h.element())?.contiguous()?.axes()?;
    Operand::new(operator, "weights", weights).shape(&[experts, width, depth])?;
    Operand::new(operator, "offsets", offsets).element(Element::I32)?.shape(&[experts + 1])?.contiguous()?;
    Operand::new(operator, "out", out).element(h.element())?.shape(&[pairs, width])?.contiguous()?;
    let shared = match shared {
        None => None,
        Some([h, weights, out]) => {
            let [rows, depth] = Operand::new(operator, "shared h", h).element(out.element())?.contiguous()?.axes()?;
            Operand::new(operator, "shared weights", weights)
                .element(h.element())?
                .shape(&[width, depth])?
                .contiguous()?;
            Operand::new(operator, "shared out", out).element(h.element())?.shape(&[rows, width])?.contiguous()?;
            Some(Shared { x: h, weights, out, sizes: [rows, depth, width] })
        }
    };
    let Some(grid) = grid(variant, [pairs, experts, width], BLOCK[1], shared.as_ref()) else { return Ok(()) };
    let args = Arguments::default().strided(h, 1).tensors([weights, offsets, out]).sizes([experts, depth, width]);
    let args = args.and(Shared::arg(shared.as_ref()));
    args.launch(h, "experts", format!("{operator}_{variant}_{}", h.element()), grid)
}

/// The operands of an expert that every token visits: rows, depth and width.
struct Shared<'a> {
    x: &'a Tensor,
    weights: &'a Tensor,
    out: &'a Tensor,
    sizes: [usize; 3],
}

impl Shared<'_> {
    /// `struct Shared` of experts.cu.
    fn arg(shared: Option<&Self>) -> Arg {
        let (words, sizes) = shared.map_or(([0; 4], [0; 3]), |Shared { x, weights, out, sizes }| {
            ([x.address(), x.strides()[0] as u64, weights.address(), out.address()], *sizes)
        });
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(sizes.iter().chain(&[0]).flat_map(|size| (*size as i32).to_le_bytes()));
        Arg::bytes(&bytes)
    }
}

/// A thread for each element; or a block for each tile, of which each expert with rows may have one that is not full. None if
/// there is nothing to do.
fn grid(
    variant: Variant,
    [pairs, experts, width]: [usize; 3],
    columns: usize,
    shared: Option<&Shared>,
) -> Option<Grid> {
    let routed = if experts == 0 { 0 } else { pairs };
    let [rows, _, of_shared] = shared.map_or([0; 3], |shared| shared.sizes);
    if routed * width + rows * of_shared == 0 {
        return None;
    }
    Some(match variant {
        Variant::Naive => Grid::linear((routed * width + rows * of_shared).div_ceil(128) as u32, 128),
        Variant::Tuned => {
            let x = width.div_ceil(columns).max(1);
            let before = (rows.div_ceil(BLOCK[0]) * of_shared.div_ceil(columns)).div_ceil(x);
            let tiles = if routed * width == 0 { 0 } else { routed / BLOCK[0] + experts.min(routed) };
            Grid { blocks: [x as u32, (before + tiles) as u32, 1], threads: [128, 1, 1], shared: SHARED }
        }
    })
}
