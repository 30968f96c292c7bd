//! Two partial attentions of the same queries to disjoint keys, made into one. The model reads the whole cache in one pass
//! and does not need it; whoever prefills a long prompt in chunks, or splits a context over devices, does.

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Result, Tensor};

const OPERATOR: &str = "merge";

/// `lse = ln(exp(lse_a) + exp(lse_b))`, `out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b`: attention to a chunk
/// and to the cache before it.
///
/// out_a, out_b, out \[..,v\]; lse_a, lse_b, lse f32 \[..\], natural logarithms. What has seen nothing (lse = -inf)
/// counts nothing; if neither has, the result is 0 and -inf. The results may be stored over a or b.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn merge(
    variant: Variant,
    out_a: &Tensor,
    lse_a: &Tensor,
    out_b: &Tensor,
    lse_b: &Tensor,
    out: &Tensor,
    lse: &Tensor,
) -> Result<()> {
    let element = out_a.element();
    let shape = out_a.shape();
    Operand::new(OPERATOR, "out_a", out_a).real()?.contiguous()?;
    for (name, tensor) in [("out_b", out_b), ("out", out)] {
        Operand::new(OPERATOR, name, tensor).element(element)?.shape(shape)?.contiguous()?;
    }
    let (width, rows) = shape.split_last().map_or((1, shape), |(width, rows)| (*width, rows));
    for (name, tensor) in [("lse_a", lse_a), ("lse_b", lse_b), ("lse", lse)] {
        Operand::new(OPERATOR, name, tensor).element(Element::F32)?.shape(rows)?.contiguous()?;
    }
    let rows: usize = rows.iter().product();
    if rows == 0 {
        return Ok(());
    }
    let args = Arguments::default().tensors([out_a, lse_a, out_b, lse_b, out, lse]).sizes([rows, width]);
    // A warp for each row.
    let grid = Grid::linear(rows.div_ceil(4) as u32, 128);
    args.launch(out, OPERATOR, format!("merge_{variant}_{element}"), grid)
}
