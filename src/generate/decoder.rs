//! What runs the model: tokens in, logits out, with a cache in between.

mod device;
mod reference;

use dsv2_reference::AttentionForm;
use dsv2_reference::model::mask::AttentionMask;
use dsv2_reference::model::{ModelInput, Tokens};
use dsv2_text::generation::padding;
use ndarray::{Array2, ArrayView1};

use crate::error::Result;
pub use device::{OnDevice, PAGE};
pub use reference::OnHost;

/// New tokens of some sequences, after those that are cached.
#[derive(Clone, Debug)]
pub struct Step {
    /// \[B,S\]
    pub tokens: Array2<i64>,
    /// \[B,T\]: which of the cached and the new tokens are no padding; all, if there is no mask.
    pub real: Option<Array2<bool>>,
}

impl Step {
    /// \[B,S\]: how many real tokens come before each new one; 0 for padding. Without padding a model counts itself.
    ///
    /// **Trap.** Transformers' `generate` counts positions by the mask, its `forward` does not.
    fn position_ids(&self) -> Option<Array2<i64>> {
        let real = self.real.as_ref()?;
        let mut positions = Array2::zeros(self.tokens.dim());
        let past = real.ncols() - self.tokens.ncols();
        for (mut positions, real) in positions.rows_mut().into_iter().zip(real.rows()) {
            let of_all = padding::positions(&real.to_vec());
            positions.assign(&ArrayView1::from(&of_all[past..]));
        }
        Some(positions)
    }

    /// Which form of attention is cheaper: many queries with expanded keys, a single one on the latents.
    fn attention(&self) -> AttentionForm {
        if self.tokens.ncols() == 1 { AttentionForm::Absorbed } else { AttentionForm::Expanded }
    }

    /// What goes into the model.
    fn input<T>(self) -> ModelInput<T> {
        ModelInput {
            position_ids: self.position_ids(),
            tokens: Tokens::InputIds(self.tokens),
            attention_mask: self.real.map(AttentionMask::Padding),
        }
    }
}

/// Runs the model for a batch of sequences that grow by equally many tokens, and keeps their cache.
pub trait Decoder {
    /// Begins anew, with an empty cache that has room for `tokens` tokens of each of `batch` sequences.
    ///
    /// # Errors
    /// If there is no room for it.
    fn start(&mut self, batch: usize, tokens: usize) -> Result<()>;

    /// How many tokens of each sequence are cached.
    fn cached(&self) -> usize;

    /// Runs new tokens: the logits of the last one of each sequence, \[B,V\]. `tell` is told the names of stages as they are
    /// computed. If it fails the cache is as it was.
    ///
    /// # Errors
    /// If a token is out of range, the cache has no room, or the device fails.
    fn forward(&mut self, step: Step, tell: &mut dyn FnMut(&str)) -> Result<Array2<f32>>;

    /// Keeps these sequences alone.
    ///
    /// # Errors
    /// If one of them is not there.
    fn keep(&mut self, rows: &[usize]) -> Result<()>;

    /// Forgets all but the first `tokens` tokens of each sequence.
    ///
    /// # Errors
    /// If there are not so many.
    fn crop(&mut self, tokens: usize) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn positions_are_counted_from_the_first_real_token() {
        let real = Some(array![[false, false, true, true], [true, true, true, true]]);
        let step = |tokens| Step { tokens, real: real.clone() };
        assert_eq!(step(Array2::zeros((2, 4))).position_ids(), Some(array![[0, 0, 0, 1], [0, 1, 2, 3]]));
        assert_eq!(step(Array2::zeros((2, 1))).position_ids(), Some(array![[1], [3]]));
        assert_eq!(Step { real: None, ..step(Array2::zeros((2, 1))) }.position_ids(), None);
    }
}
