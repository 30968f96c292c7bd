//! Greedy decoding.

use ptx_emulator::Grid;

use super::scratch::Scratch;
use super::{Operand, Variant, launch_by_row};
use crate::{Element, Error, Result, Tensor};

/// Tokens that a block looks at where several share a row: whole packs of 16 bytes.
const SLICE: usize = 8192;
/// Threads of a block, as in `argmax.cu`.
const THREADS: u32 = 512;

/// The token with the largest logit, the first of equal ones: logits \[N,V\] (rows may be apart) -> tokens \[N\] i32.
///
/// NaN counts as larger than every number, as in PyTorch; the result is always a token of the vocabulary.
///
/// # Errors
/// If shapes or types do not fit, the vocabulary is empty, or the launch fails.
pub fn argmax(variant: Variant, logits: &Tensor, tokens: &Tensor) -> Result<()> {
    launch(variant, None, logits, tokens)
}

/// The same tokens by the tuned kernel, with several blocks for each row; with one if `scratch` has no room for more.
///
/// # Errors
/// As [`argmax`].
pub fn argmax_shared(scratch: &Scratch, logits: &Tensor, tokens: &Tensor) -> Result<()> {
    scratch.after(launch(Variant::Tuned, Some(scratch), logits, tokens))
}

/// How many f32 numbers [`argmax_shared`] takes of its [`Scratch`].
pub fn shared_numbers(rows: usize, vocab: usize) -> usize {
    let slices = vocab.div_ceil(SLICE);
    if slices > 1 { rows.saturating_mul(slices).saturating_mul(PART) } else { 0 }
}

/// A part takes as much as two f32 numbers.
const PART: usize = 2;

fn launch(variant: Variant, scratch: Option<&Scratch>, logits: &Tensor, tokens: &Tensor) -> Result<()> {
    const OPERATOR: &str = "argmax";
    let [rows, vocab] = Operand::new(OPERATOR, "logits", logits).real()?.contiguous_rows()?.axes()?;
    Operand::new(OPERATOR, "tokens", tokens).element(Element::I32)?.shape(&[rows])?.contiguous()?;
    if vocab == 0 {
        return Err(Error::operand(OPERATOR, "logits", "at least one token", format!("{:?}", logits.shape())));
    }
    let slices = vocab.div_ceil(SLICE);
    let places = scratch.and_then(|scratch| scratch.places(rows, slices * PART));
    let (slice, places) = match places {
        Some(places) => (SLICE, places),
        None => (vocab.next_multiple_of(8), [0; 2]),
    };
    let tuned = Grid::linear((rows * vocab.div_ceil(slice)) as u32, THREADS);
    launch_by_row(OPERATOR, OPERATOR, variant, logits, tuned, |args| {
        args.and(places[0]).and(places[1]).and(slice as i32).tensors([tokens])
    })
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

    #[test]
    fn one_block_leaves_nothing() {
        assert_eq!([1, 8192, 8193, 102_400].map(|vocab| shared_numbers(3, vocab)), [0, 0, 12, 78]);
    }
}
