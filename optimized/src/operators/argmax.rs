//! Greedy decoding.

use super::{Operand, Variant, launch_by_row};
use crate::{Element, Error, Result, Tensor};

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
    launch_by_row(OPERATOR, OPERATOR, variant, logits, |args| args.tensors([tokens]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn an_empty_vocabulary_is_refused() {
        let error = argmax(Variant::Tuned, &tensor(Element::F32, &[2, 0]), &tensor(Element::I32, &[2])).unwrap_err();
        assert_eq!(error.to_string(), "argmax: logits: expected at least one token, found [2, 0]");
    }
}
