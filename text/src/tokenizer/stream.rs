//! The text of tokens that come one by one.

use super::{Tokenizer, bytes};
use crate::error::Result;

/// Gives out the text of tokens as they come, never a part of a character. All that it gives out, joined, is what
/// [`Tokenizer::decode`] says of all tokens.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// The tokens whose text is not given out yet, and before them those that it depends on.
    held: Vec<u32>,
    /// How many bytes of their text were given out.
    given: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        TextStream { tokenizer, skip_special_tokens, held: Vec::new(), given: 0 }
    }

    /// Takes a token. There may be no text: it is special, or the character goes on.
    ///
    /// # Errors
    /// If it is none.
    pub fn push(&mut self, token: i64) -> Result<Option<String>> {
        if self.held.is_empty()
            && self.tokenizer.joins_bytes()
            && let Some(alone) = self.tokenizer.alone(token)?
        {
            let left_out = self.skip_special_tokens && alone.special;
            let text = if left_out { "" } else { &alone.text };
            if !text.ends_with('\u{fffd}') {
                return Ok((!text.is_empty()).then(|| text.to_owned()));
            }
        }
        let id = self.tokenizer.known(token)?;
        self.held.push(id);
        let text = self.tokenizer.text_of(&self.held, self.skip_special_tokens)?;
        // A character whose bytes are not all there shows as � at the end; it may be another one yet. A byte of its own
        // (`<0xE4>`) is read together with those after it.
        let ends = match self.is_byte(id) {
            true => self.given,
            false => text.trim_end_matches('\u{fffd}').len(),
        };
        let new = text.get(self.given..ends).filter(|new| !new.is_empty()).map(str::to_owned);
        self.given = self.given.max(ends);
        if ends == text.len() {
            self.forget(id)?;
        }
        Ok(new)
    }

    /// What is left when no more tokens come: characters that were begun and not ended, as `�`.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<Option<String>> {
        let text = self.tokenizer.text_of(&self.held, self.skip_special_tokens)?;
        Ok(text.get(self.given..).filter(|rest| !rest.is_empty()).map(str::to_owned))
    }

    /// Lets go of tokens whose text was given out, but for what the next ones' text depends on: whether they are the first.
    fn forget(&mut self, last: u32) -> Result<()> {
        if self.tokenizer.joins_bytes() {
            self.held.clear();
            self.given = 0;
            return Ok(());
        }
        let text = self.tokenizer.text_of(&[last], self.skip_special_tokens)?;
        if !text.is_empty() {
            self.held = vec![last];
            self.given = text.len();
        }
        Ok(())
    }

    /// Whether the token is one byte, in the way of tokenizers that have a token for each.
    fn is_byte(&self, id: u32) -> bool {
        !self.tokenizer.joins_bytes()
            && self.tokenizer.inner.id_to_token(id).is_some_and(|token| bytes::of_fallback(&token).is_some())
    }
}
