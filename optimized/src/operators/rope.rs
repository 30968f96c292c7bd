//! Rotary position embedding of queries or keys.

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Error, Result, Tensor};

/// Heads that a block turns at once.
const HEADS: usize = 32;
/// From so many tokens on there are blocks enough without spreading the heads of a token: two for each multiprocessor.
const MANY: usize = 256;

/// Turns the pair of neighbours (2i, 2i+1) of every head by the angle i of its token (paper eq. 14 and 15): x
/// \[N,H,r\], cos and sin \[N,r/2\] f32 -> out \[N,H,r\].
///
/// `x` and `out` may be views (tokens and heads at any stride), and `out` may be `x` itself; otherwise they must not
/// overlap.
///
/// # Errors
/// If shapes or types do not fit, `r` is odd, or the launch fails.
pub fn rope(variant: Variant, x: &Tensor, cos: &Tensor, sin: &Tensor, out: &Tensor) -> Result<()> {
    const OPERATOR: &str = "rope";
    let [tokens, heads, width] = Operand::new(OPERATOR, "x", x).real()?.contiguous_rows()?.axes()?;
    if width % 2 == 1 {
        return Err(Error::operand(OPERATOR, "x", "an even last axis, for pairs", format!("{:?}", x.shape())));
    }
    let half = width / 2;
    for (name, table) in [("cos", cos), ("sin", sin)] {
        Operand::new(OPERATOR, name, table).element(Element::F32)?.shape(&[tokens, half])?.contiguous()?;
    }
    Operand::new(OPERATOR, "out", out).element(x.element())?.shape(&[tokens, heads, width])?.contiguous_rows()?;
    if x.is_empty() {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear((x.len() / 2).div_ceil(128) as u32, 128),
        Variant::Tuned => {
            let blocks = if tokens < MANY { heads.div_ceil(HEADS) } else { 1 };
            Grid { blocks: [tokens as u32, blocks as u32, 1], ..Grid::linear(1, 256) }
        }
    };
    let args = Arguments::default().strided(x, 2).tensors([cos, sin]).strided(out, 2).sizes([tokens, heads, half]);
    args.launch(x, OPERATOR, format!("{OPERATOR}_{variant}_{}", x.element()), grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn what_is_no_row_of_pairs_is_refused() {
        let table = tensor(Element::F32, &[2, 2]);
        let odd = tensor(Element::Bf16, &[2, 3, 5]);
        let error = rope(Variant::Tuned, &odd, &table, &table, &odd).unwrap_err();
        assert_eq!(error.to_string(), "rope: x: expected an even last axis, for pairs, found [2, 3, 5]");
        let columns = tensor(Element::Bf16, &[2, 4, 3]).permute(&[0, 2, 1]).unwrap();
        let error = rope(Variant::Tuned, &columns, &table, &table, &columns).unwrap_err();
        let expected = "rope: x: expected rows of neighbouring elements, found strides [12, 1, 3]";
        assert_eq!(error.to_string(), expected);
    }
}
