//! How long a text may and must be.

use super::GenerationConfig;
use crate::error::{Error, Result};

/// How many tokens an answer has at most where nothing is set.
const DEFAULT: usize = 20;

/// How long a row of tokens may and must be: prompt and answer together, and the padding before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// That of the prompt.
    pub prompt: usize,
    /// The most tokens.
    pub most: usize,
    /// The fewest before one may end the text.
    pub fewest: usize,
}

impl Lengths {
    /// For a prompt of this length (in a batch: of the longest one, since all rows have its length) and a model of
    /// `max_position_embeddings`.
    ///
    /// **Trap.** `max_length` counts the prompt, `max_new_tokens` does not. Only where neither is set does the length of the
    /// context end a text; a larger one that is set is obeyed.
    ///
    /// # Errors
    /// If the prompt leaves no room for a token.
    pub fn new(config: &GenerationConfig, prompt: usize, max_position_embeddings: Option<usize>) -> Result<Self> {
        let context = max_position_embeddings.unwrap_or(usize::MAX);
        let (name, most) = match (config.max_new_tokens, config.max_length) {
            (Some(new), _) => ("max_new_tokens", prompt.saturating_add(new)),
            (None, Some(most)) => ("max_length", most),
            (None, None) => ("max_position_embeddings", prompt.saturating_add(DEFAULT).min(context)),
        };
        if prompt >= most {
            let expected = format!("more than the prompt's {prompt} tokens");
            return Err(Error::setting(name, expected, most));
        }
        let fewest = config.min_new_tokens.map(|new| prompt.saturating_add(new)).or(config.min_length).unwrap_or(0);
        Ok(Lengths { prompt, most, fewest })
    }
}
