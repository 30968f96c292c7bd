//! A sequence that grows, token by token: how it goes on, and when it ends.

use dsv2_text::generation::sampler::log_probability;
use dsv2_text::generation::{FinishReason, Lengths, LogitsProcessors, Sampler, StopStrings, StoppingCriteria};
use ndarray::ArrayView1;

use super::{Chosen, Completion, ModelFolder, Rules};
use crate::error::Result;

/// A sequence that grows.
pub struct Sequence<'a> {
    /// Padding, prompt and answer: what processors and stop rules see.
    row: Vec<i64>,
    processors: LogitsProcessors,
    sampler: Sampler,
    stopping: StoppingCriteria,
    strings: StopStrings<'a>,
    logprobs: bool,
    chosen: Vec<Chosen>,
    text: String,
    finish: Option<FinishReason>,
}

impl<'a> Sequence<'a> {
    /// One that begins with `row`, of which the last `prompt` tokens are the prompt, and those before them padding.
    ///
    /// # Errors
    /// If a rule is impossible.
    pub fn new(
        folder: &'a ModelFolder,
        row: Vec<i64>,
        prompt: usize,
        lengths: &Lengths,
        rules: &Rules,
    ) -> Result<Self> {
        let (config, padding) = (&rules.config, row.len() - prompt);
        Ok(Sequence {
            row,
            processors: LogitsProcessors::new(config, lengths, padding, folder.config.vocab_size)?,
            sampler: if config.do_sample { Sampler::Seeded(rules.seed) } else { Sampler::Greedy },
            stopping: StoppingCriteria::new(config, lengths),
            strings: StopStrings::new(&folder.tokenizer, &config.stop_strings, true),
            logprobs: rules.logprobs,
            chosen: Vec::new(),
            text: String::new(),
            finish: None,
        })
    }

    /// Takes the next token by its logits \[V\]; `number` is that of the sequence. The token, and the text that it completes.
    ///
    /// # Errors
    /// If no token may come.
    pub fn choose(&mut self, logits: ArrayView1<f32>, number: usize) -> Result<(Chosen, String)> {
        let mut scores = logits.to_vec();
        self.processors.apply(&self.row, &mut scores)?;
        let id = self.sampler.choose(&scores, number as u64, self.chosen.len() as u64)?;
        let chosen = Chosen { id, logprob: self.logprobs.then(|| log_probability(&scores, id as usize)) };
        self.row.push(id);
        self.chosen.push(chosen);
        let piece = self.strings.push(id)?;
        self.finish = piece.stopped.or_else(|| self.stopping.after(&self.row));
        self.text += &piece.text;
        Ok((chosen, piece.text))
    }

    /// Why it has ended, if it has.
    pub fn finish(&self) -> Option<&FinishReason> {
        self.finish.as_ref()
    }

    /// What its text ends with, where it was not a stop string that ended it.
    ///
    /// # Errors
    /// If its tokens have no text.
    pub fn last_text(&mut self) -> Result<String> {
        let rest = match self.finish {
            Some(FinishReason::StopString(_)) => String::new(),
            _ => self.strings.clone().finish()?,
        };
        self.text += &rest;
        Ok(rest)
    }

    pub(super) fn completion(self) -> Completion {
        let finish = self.finish.unwrap_or(FinishReason::Length);
        Completion { tokens: self.chosen, text: self.text, finish }
    }
}
