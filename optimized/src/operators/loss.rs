//! The loss of next-token prediction: one number for each token, and their mean.

use ptx_emulator::Grid;

use super::{Arguments, Operand, Variant, launch_by_row};
use crate::{Element, Result, Tensor};

/// `loss[n] = log Σ_v exp z[n,v] - z[n,y_n]`: logits z \[N,V\] (rows may be apart), labels y \[N\] i32 -> losses \[N\]
/// f32.
///
/// A label is the *next* token of its row: whoever calls this has shifted them. A row whose label is `ignored` (-100 is
/// usual) has the loss 0. The host does not see the labels; one that is no token has the loss NaN.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn cross_entropy(variant: Variant, logits: &Tensor, labels: &Tensor, ignored: i32, losses: &Tensor) -> Result<()> {
    const OPERATOR: &str = "cross_entropy";
    let [rows, _] = Operand::new(OPERATOR, "logits", logits).real()?.contiguous_rows()?.axes()?;
    Operand::new(OPERATOR, "labels", labels).element(Element::I32)?.shape(&[rows])?.contiguous()?;
    Operand::new(OPERATOR, "losses", losses).element(Element::F32)?.shape(&[rows])?.contiguous()?;
    let tuned = Grid::linear(rows as u32, 512);
    launch_by_row("loss", OPERATOR, variant, logits, tuned, |args| {
        args.tensors([labels]).and(ignored).tensors([losses])
    })
}

/// The sum of losses over `num_items_in_batch`, or, if that is not given, over the number of labels that are not
/// `ignored`: losses \[N\] f32, labels \[N\] i32 -> mean \[1\] f32.
///
/// If no label counts the mean is NaN (0/0), as in Transformers.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn mean_loss(
    variant: Variant,
    losses: &Tensor,
    labels: &Tensor,
    ignored: i32,
    num_items_in_batch: Option<f32>,
    mean: &Tensor,
) -> Result<()> {
    const OPERATOR: &str = "mean_loss";
    let [rows] = Operand::new(OPERATOR, "losses", losses).element(Element::F32)?.contiguous()?.axes()?;
    Operand::new(OPERATOR, "labels", labels).element(Element::I32)?.shape(&[rows])?.contiguous()?;
    Operand::new(OPERATOR, "mean", mean).element(Element::F32)?.shape(&[1])?.contiguous()?;
    let grid = match variant {
        Variant::Naive => Grid::linear(1, 32),
        Variant::Tuned => Grid::linear(1, 512),
    };
    let args = Arguments::default()
        .tensors([losses, labels])
        .and(ignored)
        .and(i32::from(num_items_in_batch.is_none()))
        .and(num_items_in_batch.unwrap_or(0.0))
        .tensors([mean])
        .sizes([rows]);
    args.launch(losses, "loss", format!("{OPERATOR}_{variant}_f32"), grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::tensor;

    #[test]
    fn labels_of_another_number_of_rows_are_refused() {
        let (logits, labels) = (tensor(Element::Bf16, &[3, 8]), tensor(Element::I32, &[4]));
        let losses = tensor(Element::F32, &[3]);
        let error = cross_entropy(Variant::Tuned, &logits, &labels, -100, &losses).unwrap_err();
        assert_eq!(error.to_string(), "cross_entropy: labels: expected the shape [3], found [4]");
        let error = mean_loss(Variant::Tuned, &losses, &labels, -100, None, &losses).unwrap_err();
        assert_eq!(error.to_string(), "mean_loss: labels: expected the shape [3], found [4]");
    }
}
