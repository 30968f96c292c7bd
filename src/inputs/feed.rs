//! How inputs are fed, where the file does not say: one decoding step, and ids alone.

use dsv2_reference::DeepseekV2Config;
use dsv2_text::generation::padding;
use ndarray::{Array1, Array2};

use super::{AttentionMask, Inputs, Tokens};
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

    /// The same as `generate` of Transformers feeds ids that come without a mask: where they hold `pad_token_id`, and that is
    /// no token that ends a text, it is padding, and positions count the others from 0 on (padding has 0).
    ///
    /// **Trap.** A forward pass infers nothing: there, every token counts.
    ///
    /// # Errors
    /// If there is a mask, or positions, or no ids to infer it from.
    pub fn as_generate_feeds(self, config: &DeepseekV2Config) -> Result<Self> {
        let refused = |found: &str| Err(Error::request("--infer-mask", "input_ids alone", found));
        let others = [
            (self.packed.is_some(), "sequences that are laid end to end"),
            (self.attention_mask.is_some(), "an attention_mask"),
            (self.position_ids.is_some(), "position_ids"),
        ];
        if let Some((_, found)) = others.into_iter().find(|(held, _)| *held) {
            return refused(found);
        }
        let Tokens::InputIds(ids) = &self.tokens else { return refused("inputs_embeds") };
        let padding = padding::padding_token(config.pad_token_id, config.eos_token_ids());
        let Some(pad) = padding.filter(|pad| ids.iter().any(|id| id == pad)) else { return Ok(self) };
        let attend = ids.mapv(|id| id != pad);
        let mut positions = Array2::zeros(attend.dim());
        for (mut positions, attend) in positions.rows_mut().into_iter().zip(attend.rows()) {
            positions.assign(&Array1::from(padding::positions(&attend.to_vec())));
        }
        Ok(Inputs { attention_mask: Some(AttentionMask::Padding(attend)), position_ids: Some(positions), ..self })
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

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::golden::GoldenCases;

    #[test]
    fn padding_is_inferred_as_transformers_generate_does() {
        let golden = GoldenCases::embedded().load("generate-padding").unwrap();
        let (config, fed) = (&golden.case.config, &golden.case.inputs);
        let alone = |tokens: Tokens| Inputs::new(tokens).as_generate_feeds(config);
        let inferred = alone(fed.tokens.clone()).unwrap();
        assert_eq!(inferred.position_ids, fed.position_ids);
        let padding = |inputs: &Inputs| match &inputs.attention_mask {
            Some(AttentionMask::Padding(attend)) => Some(attend.clone()),
            _ => None,
        };
        assert!(padding(fed).is_some());
        assert_eq!(padding(&inferred), padding(fed));

        // Without the padding token, or where it ends a text, all tokens count.
        assert!(alone(Tokens::InputIds(array![[1, 2]])).unwrap().attention_mask.is_none());
        let ends = DeepseekV2Config { pad_token_id: Some(2), ..config.clone() };
        let inputs = Inputs::new(Tokens::InputIds(array![[2, 1]])).as_generate_feeds(&ends).unwrap();
        assert!(inputs.attention_mask.is_none());
        let refused = inferred.as_generate_feeds(config).unwrap_err().to_string();
        assert_eq!(refused, "--infer-mask: expected input_ids alone, found an attention_mask");
    }
}
