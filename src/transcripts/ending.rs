//! Where an answer ends, why, and what of it is text.
//!
//! ```text
//! after each token:   an end token?               ->  stop     not shown
//!                     a stop string in the text?  ->  stop     neither it nor what follows it is shown
//!                     max_tokens?                 ->  length
//! ```
//!
//! A token that fills the last place and ends the text ended it. Where the request says nothing of `max_tokens`, engines have
//! limits of their own, and `length` may come at any token.

use dsv2_text::{FinishReason, StopStrings};

use super::Speech;
use super::mutants::Bug;
use super::record::{Request, Stop};
use crate::error::Result;
use crate::generate::ModelFolder;

/// What ends the answers to a request.
pub struct Stops<'a> {
    model: &'a ModelFolder,
    ends: Vec<i64>,
    ends_of_model: &'a [i64],
    strings: &'a [String],
    most: Option<usize>,
    skips_special: bool,
    includes_string: bool,
    bug: Option<Bug>,
}

impl<'a> Stops<'a> {
    /// Of a request whose prompt has so many tokens.
    pub fn new(speech: &'a Speech<'a>, request: &'a Request, prompt: usize, bug: Option<Bug>) -> Self {
        let model = speech.model;
        let mut ends = Vec::new();
        if request.ignore_eos != Some(true) && bug != Some(Bug::EndTokenIgnored) {
            ends.extend(&speech.end_tokens);
        }
        if bug != Some(Bug::StopTokensIgnored) {
            ends.extend(request.stop_token_ids.iter().flatten());
        }
        let strings = request.stop.as_ref().map_or(&[][..], Stop::strings);
        let left = model.config.max_position_embeddings.saturating_sub(prompt);
        let most = request.max_completion_tokens.or(request.max_tokens).map(|asked| match bug {
            Some(Bug::OneTokenMore) => asked.min(left) + 1,
            Some(Bug::OneTokenLess) => asked.min(left).saturating_sub(1),
            Some(Bug::LengthWithPrompt) => asked.saturating_sub(prompt).max(1),
            _ => asked.min(left),
        });
        Stops {
            model,
            ends,
            ends_of_model: &speech.end_tokens,
            strings: if bug == Some(Bug::StopStringIgnored) { &[] } else { strings },
            most,
            skips_special: request.skip_special_tokens != Some(false) && bug != Some(Bug::SpecialTokensShown),
            includes_string: request.include_stop_str_in_output == Some(true),
            bug,
        }
    }

    /// How many tokens there are at most, if the request says so.
    pub fn most(&self) -> Option<usize> {
        self.most
    }

    /// The tokens that end an answer, if it is not told to go on.
    pub fn ends_of_model(&self) -> &[i64] {
        self.ends_of_model
    }

    /// The tokens that end an answer.
    pub fn ends(&self) -> &[i64] {
        &self.ends
    }

    /// After how many of these tokens an answer ends, and why; `None` if it goes on.
    ///
    /// # Errors
    /// If one is no token.
    pub fn end(&self, tokens: &[i64]) -> Result<Option<(usize, FinishReason)>> {
        let mut strings = StopStrings::new(&self.model.tokenizer, self.strings, self.skips_special);
        for (length, &token) in (1..).zip(tokens) {
            let by_string = match self.bug {
                Some(Bug::StopStringAtTokensOnly) => {
                    let own = self.model.tokenizer.decode(&[token], self.skips_special)?;
                    self.strings.contains(&own).then_some(FinishReason::StopString(own))
                }
                _ => strings.push(token)?.stopped,
            };
            let by_token = self.ends.contains(&token).then_some(FinishReason::StopToken(token));
            let by_length = self.most.is_some_and(|most| length >= most).then_some(FinishReason::Length);
            if let Some(reason) = by_token.or(by_string).or(by_length) {
                return Ok(Some((length, reason)));
            }
        }
        Ok(None)
    }

    /// The text of an answer that ended with the last of these tokens, or was ended by another.
    ///
    /// # Errors
    /// If one is no token.
    pub fn shown(&self, tokens: &[i64]) -> Result<String> {
        let tokenizer = &self.model.tokenizer;
        let ended = self.end(tokens)?.filter(|(length, _)| *length == tokens.len()).map(|(_, reason)| reason);
        let before = match &ended {
            Some(FinishReason::StopToken(_)) => &tokens[..tokens.len() - 1],
            _ => tokens,
        };
        let mut text = match self.bug {
            Some(Bug::CharactersSplit) => {
                let one = |token: &i64| tokenizer.decode(std::slice::from_ref(token), self.skips_special);
                before.iter().map(one).collect::<Result<String, _>>()?
            }
            _ => tokenizer.decode(before, self.skips_special)?,
        };
        match (&ended, self.bug) {
            (Some(FinishReason::StopToken(end)), Some(Bug::EndTokenShown)) => {
                text += &tokenizer.token_of(*end).unwrap_or_default();
            }
            (Some(FinishReason::StopString(string)), bug) if bug != Some(Bug::TextAfterStopString) => {
                let mut strings = StopStrings::new(tokenizer, self.strings, self.skips_special);
                text = tokens.iter().map(|&token| Ok(strings.push(token)?.text)).collect::<Result<String>>()?;
                if self.includes_string || bug == Some(Bug::StopStringShown) {
                    text += string;
                }
            }
            _ => {}
        }
        match self.bug {
            Some(Bug::TextStripped) => text = text.trim().to_owned(),
            Some(Bug::SpacesCleaned) => {
                for mark in [".", ",", "?", "!"] {
                    text = text.replace(&format!(" {mark}"), mark);
                }
            }
            _ => {}
        }
        Ok(text)
    }
}
