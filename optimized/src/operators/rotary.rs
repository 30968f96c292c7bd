//! The tables of rotary position embedding.

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant};
use crate::{Element, Result, Tensor};

/// `cos = af cos(p θ_i)`, `sin = af sin(p θ_i)` (paper 2.1.3): positions \[N\] i32, inv_freq \[r/2\] f32 -> cos, sin
/// \[N,r/2\] f32.
///
/// The angle is the fp32 product of the position (rounded to fp32) and the frequency: the pinned rounding of
/// `dsv2-reference`. Positions may be any numbers, in any order. Of a frequency above 1 the tuned kernel keeps its
/// accuracy up to an angle of 2³¹.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn rotary(
    variant: Variant,
    positions: &Tensor,
    inv_freq: &Tensor,
    attention_factor: f32,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<()> {
    const OPERATOR: &str = "rotary";
    let [tokens] = Operand::new(OPERATOR, "positions", positions).element(Element::I32)?.contiguous()?.axes()?;
    let [half] = Operand::new(OPERATOR, "inv_freq", inv_freq).element(Element::F32)?.contiguous()?.axes()?;
    for (name, table) in [("cos", cos), ("sin", sin)] {
        Operand::new(OPERATOR, name, table).element(Element::F32)?.shape(&[tokens, half])?.contiguous()?;
    }
    if tokens * half == 0 {
        return Ok(());
    }
    let grid = match variant {
        Variant::Naive => Grid::linear((tokens * half).div_ceil(128) as u32, 128),
        // A warp for each token.
        Variant::Tuned => Grid::linear(tokens.div_ceil(8) as u32, 256),
    };
    let args = Arguments::default().tensors([positions, inv_freq]).and(attention_factor).tensors([cos, sin]);
    args.sizes([tokens, half]).launch(positions, OPERATOR, format!("{OPERATOR}_{variant}_f32"), grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn tables_of_another_shape_are_refused() {
        let (positions, inv_freq) = (tensor(Element::I32, &[3]), tensor(Element::F32, &[4]));
        let (cos, sin) = (tensor(Element::F32, &[3, 4]), tensor(Element::F32, &[3, 8]));
        let error = rotary(Variant::Tuned, &positions, &inv_freq, 1.0, &cos, &sin).unwrap_err();
        assert_eq!(error.to_string(), "rotary: sin: expected the shape [3, 4], found [3, 8]");
        let error = rotary(Variant::Tuned, &inv_freq, &inv_freq, 1.0, &cos, &cos).unwrap_err();
        assert_eq!(error.to_string(), "rotary: positions: expected i32, found f32");
    }
}
