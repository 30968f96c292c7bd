//! Greedy decoding.

use std::sync::Arc;

use ptx_emulator::Grid;

use super::{Operand, Variant, launch_by_row};
use crate::{Device, Element, Error, Result, Tensor};

/// Tokens that a block looks at, and its threads; as in `argmax.cu`.
const SLICE: usize = 8192;
const THREADS: u32 = 512;
/// Words in which the blocks of a row meet, as `Meeting` in `argmax.cu`; and bytes.
const WORDS: usize = 4;
pub(crate) const MEETING: usize = 4 * WORDS;

/// Where the blocks of each of `rows` rows meet: \[rows,4\] i32 of zeros, for any number of launches, one at a time.
///
/// # Errors
/// If the device has no room.
pub fn meetings(device: &Arc<dyn Device>, rows: usize) -> Result<Tensor> {
    Tensor::from_i32(device, &[rows, WORDS], &vec![0; rows * WORDS])
}

/// The token with the largest logit, the first of equal ones: logits \[N,V\] (rows may be apart) -> tokens \[N\] i32.
/// `meetings` is made by [`meetings`]: zeros before a launch and after it.
///
/// NaN counts as larger than every number, as in PyTorch; the result is always a token of the vocabulary.
///
/// # Errors
/// If shapes or types do not fit, the vocabulary is empty, or the launch fails.
pub fn argmax(variant: Variant, logits: &Tensor, meetings: &Tensor, tokens: &Tensor) -> Result<()> {
    const OPERATOR: &str = "argmax";
    let [rows, vocab] = Operand::new(OPERATOR, "logits", logits).real()?.contiguous_rows()?.axes()?;
    Operand::new(OPERATOR, "meetings", meetings).element(Element::I32)?.shape(&[rows, WORDS])?.contiguous()?;
    Operand::new(OPERATOR, "tokens", tokens).element(Element::I32)?.shape(&[rows])?.contiguous()?;
    if vocab == 0 {
        return Err(Error::operand(OPERATOR, "logits", "at least one token", format!("{:?}", logits.shape())));
    }
    let tuned = Grid::linear((rows * vocab.div_ceil(SLICE)) as u32, THREADS);
    launch_by_row(OPERATOR, OPERATOR, variant, logits, tuned, |args| args.tensors([meetings, tokens]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn an_empty_vocabulary_and_too_few_meetings_are_refused() {
        let message = |vocab, rows| {
            let (logits, tokens) = (tensor(Element::F32, &[2, vocab]), tensor(Element::I32, &[2]));
            let meetings = meetings(logits.device(), rows).unwrap();
            argmax(Variant::Tuned, &logits, &meetings, &tokens).unwrap_err().to_string()
        };
        assert_eq!(message(0, 2), "argmax: logits: expected at least one token, found [2, 0]");
        assert_eq!(message(8, 1), "argmax: meetings: expected the shape [2, 4], found [1, 4]");
    }
}
