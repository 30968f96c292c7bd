//! Sampling of the next token.

use ptx_emulator::Grid;

use super::{Operand, Variant, launch_by_row};
use crate::{Element, Error, Result, Tensor};

/// Threads of a block, and its dynamic shared memory: 6 packs of 16 bytes for each of them, as in `sample.cu`.
const THREADS: u32 = 1024;
const SHARED: u32 = 6 * THREADS * 16;

/// Draws a token from the nucleus of each row: logits \[N,V\] (rows may be apart), uniforms \[N\] f32 -> tokens \[N\]
/// i32.
///
/// Probabilities are `softmax(logits / temperature)`. The nucleus is the shortest run of tokens, by falling probability
/// and then by rising number, whose sum is `top_p` or more; 1 takes all tokens. A uniform number from \[0,1) says how
/// far into the nucleus, by rising number of the token, the draw falls; the same number draws the same token always, in
/// any batch. What is outside of \[0,1) counts as the nearest end.
///
/// NaN is never drawn; of a row of nothing else, token 0 is.
///
/// # Errors
/// If shapes or types do not fit, the vocabulary is empty, `temperature` is not positive and finite (greedy decoding is
/// [`argmax`](super::argmax::argmax)), `top_p` is not within 0 and 1, or the launch fails.
pub fn sample(
    variant: Variant,
    logits: &Tensor,
    temperature: f32,
    top_p: f32,
    uniforms: &Tensor,
    tokens: &Tensor,
) -> Result<()> {
    const OPERATOR: &str = "sample";
    let [rows, vocab] = Operand::new(OPERATOR, "logits", logits).real()?.contiguous_rows()?.axes()?;
    Operand::new(OPERATOR, "uniforms", uniforms).element(Element::F32)?.shape(&[rows])?.contiguous()?;
    Operand::new(OPERATOR, "tokens", tokens).element(Element::I32)?.shape(&[rows])?.contiguous()?;
    if vocab == 0 {
        return Err(Error::operand(OPERATOR, "logits", "at least one token", format!("{:?}", logits.shape())));
    }
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Error::operand(OPERATOR, "temperature", "a positive finite number", temperature));
    }
    if !(0.0..=1.0).contains(&top_p) {
        return Err(Error::operand(OPERATOR, "top_p", "a number within 0 and 1", top_p));
    }
    let tuned = Grid::linear(rows as u32, THREADS).with_shared(SHARED);
    launch_by_row(OPERATOR, OPERATOR, variant, logits, tuned, |args| {
        args.and(1.0 / temperature).and(top_p).tensors([uniforms, tokens])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn impossible_parameters_are_refused() {
        let (logits, uniforms) = (tensor(Element::F32, &[1, 4]), tensor(Element::F32, &[1]));
        let tokens = tensor(Element::I32, &[1]);
        let message = |temperature, top_p| {
            sample(Variant::Tuned, &logits, temperature, top_p, &uniforms, &tokens).unwrap_err().to_string()
        };
        for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let expected = format!("sample: temperature: expected a positive finite number, found {temperature}");
            assert_eq!(message(temperature, 0.9), expected);
        }
        for top_p in [-0.1, 1.1, f32::NAN] {
            assert_eq!(message(1.0, top_p), format!("sample: top_p: expected a number within 0 and 1, found {top_p}"));
        }
    }
}
