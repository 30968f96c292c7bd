//! The embedding of tokens.

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Result, Tensor};

/// `out[n] = table[tokens[n]]`: tokens \[N\] i32, table \[V,D\] (rows may be apart) -> out \[N,D\].
///
/// The host does not see the tokens. One outside of the vocabulary gets a row of NaN, and the other rows are as they
/// would be without it.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn embedding(variant: Variant, tokens: &Tensor, table: &Tensor, out: &Tensor) -> Result<()> {
    const OPERATOR: &str = "embedding";
    let [count] = Operand::new(OPERATOR, "tokens", tokens).element(Element::I32)?.contiguous()?.axes()?;
    let [vocab, width] = Operand::new(OPERATOR, "table", table).real()?.contiguous_rows()?.axes()?;
    Operand::new(OPERATOR, "out", out).element(table.element())?.shape(&[count, width])?.contiguous()?;
    if out.is_empty() {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear(out.len().div_ceil(128) as u32, 128),
        // A block for every 128 times 16 bytes of a row.
        Variant::Tuned => {
            let stretches = (width * table.element().bytes()).div_ceil(128 * 16);
            Grid { blocks: [count as u32, stretches as u32, 1], ..Grid::linear(1, 128) }
        }
    };
    let args = Arguments::default().tensors([tokens]).strided(table, 1).tensors([out]).sizes([count, vocab, width]);
    args.launch(tokens, OPERATOR, format!("{OPERATOR}_{variant}_{}", table.element()), grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn an_output_of_another_type_is_refused() {
        let (tokens, table) = (tensor(Element::I32, &[3]), tensor(Element::Bf16, &[7, 8]));
        let error = embedding(Variant::Tuned, &tokens, &table, &tensor(Element::F32, &[3, 8])).unwrap_err();
        assert_eq!(error.to_string(), "embedding: out: expected bf16, found f32");
    }
}
