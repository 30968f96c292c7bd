//! How inputs are fed, where the file does not say: one decoding step, and ids alone.

use super::{AttentionMask, Inputs};
use crate::error::{Error, Result};

impl Inputs {
    /// The same where only the last `new` tokens of each sequence are looked at; those before them are in the cache.
    ///
    /// # Errors
    /// If a sequence is not longer than that, or there are labels or chosen logits.
    pub fn decoding(self, new: usize) -> Result<Self> {
        if self.labels.is_some() || self.logits_to_keep.is_some() {
            return Err(Error::request("--decode", "inputs without labels and logits_to_keep", "such inputs"));
        }
        let longest = self.length().saturating_sub(1);
        if new == 0 || new > longest {
            let expected = if longest == 0 {
                "sequences of 2 tokens or more".into()
            } else {
                format!("1 to {longest} new tokens")
            };
            return Err(Error::request("--decode", expected, if longest == 0 { self.length() } else { new }));
        }
        match self.packed.clone() {
            Some(packed) => self.with_new_tokens_behind(&packed, new),
            None => Ok(Inputs { new_tokens: Some(new), ..self }),
        }
    }

    /// The same for an engine that takes ids only.
    ///
    /// # Errors
    /// If the mask says more than that all tokens are real.
    pub fn ids_only(self) -> Result<Self> {
        let refused = |found: &str| Err(Error::request("--ids-only", "an attention_mask that masks nothing", found));
        match &self.attention_mask {
            _ if self.packed.is_some() => {
                return Err(Error::request("--ids-only", "sequences that are not laid end to end", "such"));
            }
            Some(AttentionMask::Padding(attend)) if !attend.iter().all(|real| *real) => return refused("padding"),
            Some(AttentionMask::Additive(_)) => return refused("a mask with a number for each pair of tokens"),
            _ => {}
        }
        let left_out =
            [("attention_mask", self.attention_mask.is_some()), ("position_ids", self.position_ids.is_some())];
        let left_out = left_out.into_iter().filter_map(|(name, held)| held.then_some(name)).collect();
        Ok(Inputs { attention_mask: None, position_ids: None, left_out, ..self })
    }

    /// How many tokens of each sequence are looked at.
    pub fn looked_at(&self) -> usize {
        self.new_tokens.unwrap_or_else(|| self.length())
    }

    /// How many tokens of each sequence come before those that are looked at.
    pub fn past(&self) -> usize {
        self.length() - self.looked_at()
    }
}
