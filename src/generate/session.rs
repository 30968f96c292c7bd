//! One sequence after another through one cache: a conversation, each prompt of which begins with what was said before.

use super::batch::{lengths, run};
use super::decoder::Decoder;
use super::{Completion, Listener, ModelFolder, Rules};
use crate::error::Result;

/// A model with a cache that is kept.
pub struct Session<'a> {
    folder: &'a ModelFolder,
    decoder: Box<dyn Decoder>,
    /// What is cached.
    tokens: Vec<i64>,
    /// How many tokens the cache has room for.
    room: usize,
    /// Whether tokens mean the same whatever comes after them.
    reuses: bool,
}

impl<'a> Session<'a> {
    /// Nothing said yet.
    ///
    /// # Errors
    /// If the config is impossible.
    pub fn new(folder: &'a ModelFolder, decoder: Box<dyn Decoder>) -> Result<Self> {
        // angles that depend on the length of the text are others when it has grown
        let reuses = !folder.angles_depend_on_length()?;
        Ok(Session { folder, decoder, tokens: Vec::new(), room: 0, reuses })
    }

    /// How many tokens of a prompt would not be computed again.
    pub fn known(&self, prompt: &[i64]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(cached, token)| cached == token).count();
        // the last one is fed in any case: its logits are wanted
        if self.reuses { common.min(prompt.len().saturating_sub(1)) } else { 0 }
    }

    /// Goes on with a prompt until it ends. What it has in common with what is cached is not computed again.
    ///
    /// # Errors
    /// As [`generate`](super::generate). The session can go on after an error.
    pub fn say(&mut self, prompt: &[i64], rules: &Rules, listener: &mut dyn Listener) -> Result<Completion> {
        let prompts = [prompt.to_vec()];
        let lengths = lengths(self.folder, &prompts, rules)?;
        let known = self.known(prompt);
        self.tokens.clear();
        if known > 0 && lengths.most <= self.room {
            self.decoder.crop(known)?;
        } else {
            // for some more turns
            let room = lengths.most.saturating_mul(2).min(self.folder.config.max_position_embeddings);
            self.decoder.start(1, room)?;
            self.room = room;
        }
        let mut completions = run(self.folder, &mut *self.decoder, &prompts, &lengths, rules, listener)?;
        let completion = completions.remove(0);
        self.tokens.extend(prompt);
        self.tokens.extend(completion.tokens.iter().map(|chosen| chosen.id));
        self.tokens.truncate(self.decoder.cached());
        Ok(completion)
    }
}
