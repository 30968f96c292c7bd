//! When an answer ends, and the text of it.

use serde_json::Value;

use super::{GenerationConfig, Lengths};
use crate::error::Result;
use crate::tokenizer::{TextStream, Tokenizer};

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// This token ends a text. It is the last of the answer's tokens.
    StopToken(i64),
    /// This text came. It is not part of the answer's text; its tokens are among the answer's.
    StopString(String),
    /// There may be no more tokens.
    Length,
}

impl FinishReason {
    /// As OpenAI's API calls it.
    pub fn name(&self) -> &'static str {
        match self {
            FinishReason::StopToken(_) | FinishReason::StopString(_) => "stop",
            FinishReason::Length => "length",
        }
    }

    /// The token or the text that ended it, or null.
    pub fn stopped_by(&self) -> Value {
        match self {
            FinishReason::StopToken(id) => Value::from(*id),
            FinishReason::StopString(text) => Value::from(text.as_str()),
            FinishReason::Length => Value::Null,
        }
    }
}

/// When a row ends, by its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppingCriteria {
    eos: Vec<i64>,
    most: usize,
}

impl StoppingCriteria {
    /// By the settings of a generation.
    pub fn new(config: &GenerationConfig, lengths: &Lengths) -> Self {
        StoppingCriteria { eos: config.eos_token_id.clone(), most: lengths.most }
    }

    /// Whether the row (padding, prompt and answer) ends with its last token.
    pub fn after(&self, row: &[i64]) -> Option<FinishReason> {
        let end = row.last().filter(|last| self.eos.contains(last)).map(|last| FinishReason::StopToken(*last));
        end.or_else(|| (row.len() >= self.most).then_some(FinishReason::Length))
    }
}

/// The text of an answer, up to a text that ends it. Whether that comes in one token or in parts makes no difference. What
/// could be its beginning is kept back until it is known not to be.
///
/// Only the answer is searched. (`stop_strings` of Transformers may begin in the prompt.)
#[derive(Clone, Debug)]
pub struct StopStrings<'a> {
    tokenizer: &'a Tokenizer,
    stream: TextStream<'a>,
    skip_special_tokens: bool,
    strings: Vec<String>,
    /// What is kept back: characters, and whether they are shown. A special token can be part of a stop string also where it is
    /// not shown.
    kept: Vec<(char, bool)>,
    ended: bool,
}

/// What became known with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text that follows what was given out before; often none.
    pub text: String,
    /// The stop string that came, if one did.
    pub stopped: Option<FinishReason>,
}

impl<'a> StopStrings<'a> {
    /// Ends at the first of these texts. There may be none: then it is only a stream.
    pub fn new(tokenizer: &'a Tokenizer, strings: &[String], skip_special_tokens: bool) -> Self {
        let stream = tokenizer.stream(skip_special_tokens);
        StopStrings {
            tokenizer,
            stream,
            skip_special_tokens,
            strings: strings.to_vec(),
            kept: Vec::new(),
            ended: false,
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// If it is none.
    pub fn push(&mut self, token: i64) -> Result<Piece> {
        let text = self.stream.push(token)?.unwrap_or_default();
        if self.strings.is_empty() {
            return Ok(Piece { text, stopped: None });
        }
        let hidden = match self.skip_special_tokens && self.tokenizer.is_special(token) {
            true => self.tokenizer.token_of(token).unwrap_or_default(),
            false => String::new(),
        };
        self.kept.extend(text.chars().map(|c| (c, true)).chain(hidden.chars().map(|c| (c, false))));
        let found = self.strings.iter().filter_map(|string| Some((self.begins(string)?, string)));
        if let Some((at, string)) = found.min_by_key(|(at, _)| *at) {
            let stopped = Some(FinishReason::StopString(string.clone()));
            self.kept.truncate(at);
            self.ended = true;
            return Ok(Piece { text: self.give(at), stopped });
        }
        let open = self.strings.iter().map(|string| self.open(string)).max().unwrap_or(0);
        Ok(Piece { text: self.give(self.kept.len() - open), stopped: None })
    }

    /// What is left when the answer ends: nothing, if a stop string ended it.
    ///
    /// # Errors
    /// As [`TextStream::finish`].
    pub fn finish(mut self) -> Result<String> {
        if self.ended {
            return Ok(String::new());
        }
        let rest = self.stream.clone().finish()?.unwrap_or_default();
        Ok(self.give(self.kept.len()) + &rest)
    }

    /// Where the string begins in what is kept.
    fn begins(&self, string: &str) -> Option<usize> {
        (0..self.kept.len()).find(|at| {
            let mut kept = self.kept[*at..].iter().map(|(c, _)| *c);
            string.chars().all(|c| kept.next() == Some(c))
        })
    }

    /// How many of the last characters could be the string's beginning.
    fn open(&self, string: &str) -> usize {
        let longest = self.kept.len().min(string.chars().count().saturating_sub(1));
        let fits = |length: &usize| {
            let tail = self.kept[self.kept.len() - length..].iter().map(|(c, _)| *c);
            tail.zip(string.chars()).all(|(kept, c)| kept == c)
        };
        (1..=longest).rev().find(fits).unwrap_or(0)
    }

    /// Gives out the first characters.
    fn give(&mut self, length: usize) -> String {
        self.kept.drain(..length).filter(|(_, shown)| *shown).map(|(c, _)| c).collect()
    }
}

#[cfg(test)]
mod tests;
