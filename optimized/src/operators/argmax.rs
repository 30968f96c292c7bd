//! Greedy decoding.

use ptx_emulator::Grid;

use super::{Operand, Variant};
use crate::{Element, Error, Kernel, Result, Tensor};

/// The token with the largest logit, the first of equal ones: logits \[N,V\] (rows may be apart) -> tokens \[N\] i32.
///
/// NaN counts as larger than every number, as in PyTorch; the result is always a token of the vocabulary.
///
/// # Errors
/// If shapes or types do not fit, the vocabulary is empty, or the launch fails.
pub fn argmax(variant: Variant, logits: &Tensor, tokens: &Tensor) -> Result<()> {
    const OPERATOR: &str = "argmax";
    let [rows, vocab] = Operand::new(OPERATOR, "logits", logits).real()?.contiguous_rows()?.axes()?;
    Operand::new(OPERATOR, "tokens", tokens).element(Element::I32)?.shape(&[rows])?.contiguous()?;
    if vocab == 0 {
        return Err(Error::operand(OPERATOR, "logits", "at least one token", format!("{:?}", logits.shape())));
    }
    if rows == 0 {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear(rows.div_ceil(32) as u32, 32),
        Variant::Tuned => Grid::linear(rows as u32, 512),
    };
    let args =
        [logits.arg(), (logits.strides()[0] as i64).into(), tokens.arg(), (rows as i32).into(), (vocab as i32).into()];
    let kernel = Kernel::new(OPERATOR, format!("{OPERATOR}_{variant}_{}", logits.element()));
    logits.device().launch(&kernel, grid, &args)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Device, Emulated, Library};

    #[test]
    fn an_empty_vocabulary_is_refused() {
        let device: Arc<dyn Device> = Emulated::new(Library::embedded());
        let tensor = |element, shape: &[usize]| Tensor::empty(&device, element, shape).unwrap();
        let error = argmax(Variant::Tuned, &tensor(Element::F32, &[2, 0]), &tensor(Element::I32, &[2])).unwrap_err();
        assert_eq!(error.to_string(), "argmax: logits: expected at least one token, found [2, 0]");
    }
}
