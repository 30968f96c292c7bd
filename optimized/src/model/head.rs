//! What stands on top of the model: next-token logits and their loss, or a score for each label.

mod causal_lm;
mod classifier;

use super::tap::{Scope, Tap};
use crate::operators::embedding::embedding;
use crate::{Element, Result, Tensor, Variant};
pub use causal_lm::{CausalLm, CausalLmInput};
pub use classifier::SequenceClassifier;

/// Some rows of \[N,D\]; looking up rows of a table is what an embedding does.
pub(super) fn gather(variant: Variant, hidden: &Tensor, rows: &[i32]) -> Result<Tensor> {
    let rows = Tensor::from_i32(hidden.device(), &[rows.len()], rows)?;
    let picked = Tensor::empty(hidden.device(), hidden.element(), &[rows.len(), hidden.shape()[1]])?;
    embedding(variant, &rows, hidden, &picked)?;
    Ok(picked)
}

/// Lends a tap for the length of a call.
fn again<'a>(tap: &'a mut Option<&mut dyn Tap>) -> Option<&'a mut dyn Tap> {
    match tap {
        Some(tap) => Some(*tap),
        None => None,
    }
}

/// A loss as a stage.
fn show_loss(loss: f32, like: &Tensor, tap: &mut Scope) -> Result<()> {
    let shown = Tensor::from_f32(like.device(), Element::F32, &[], &[loss])?;
    tap.show("loss", || Ok(shown.clone()))?;
    Ok(())
}
