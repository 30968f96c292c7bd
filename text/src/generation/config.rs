//! The settings of a generation.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::{self, Fields};
use crate::error::{Error, Result};
use crate::folder;

/// A run of tokens, and what is added to the logit of its last one.
pub type Biased = (Vec<i64>, f64);

/// The settings of a generation, by Hugging Face's names. `None` turns one off.
///
/// They come from generation_config.json; where a folder has none, from what config.json holds of them; and the arguments of a
/// call stand above both. What is still unset gets the value that `generate` of Transformers gives it.
///
/// **Trap.** A generation_config.json that does not name `eos_token_id` means that no token ends a text, whatever config.json
/// says: one file or the other counts, never both.
///
/// **Trap.** `top_k` is 50 unless it is set: a sampling that names only a temperature chooses among 50 tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// The most tokens of prompt and answer. Unset, an answer has 20 at most.
    pub max_length: Option<usize>,
    /// The most tokens of an answer. It stands above `max_length`.
    pub max_new_tokens: Option<usize>,
    /// The fewest tokens of prompt and answer before one may end the text.
    pub min_length: Option<usize>,
    /// The fewest tokens of an answer before one may end the text. It stands above `min_length`.
    pub min_new_tokens: Option<usize>,
    /// Texts that end the answer.
    pub stop_strings: Vec<String>,
    /// Whether tokens are drawn; without, the likeliest is taken.
    pub do_sample: bool,
    /// What logits are divided by before one is drawn.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens one is drawn from; 0 for all.
    pub top_k: Option<usize>,
    /// The least probability that the likeliest tokens that one is drawn from must have together.
    pub top_p: Option<f64>,
    /// The least probability of a token that may be drawn, as a part of that of the likeliest.
    pub min_p: Option<f64>,
    /// What logits of tokens that were there already are divided by (or multiplied with, if they are negative).
    pub repetition_penalty: Option<f64>,
    /// The length of runs of tokens that may not come twice; 0 for none.
    pub no_repeat_ngram_size: Option<usize>,
    /// What is added to the logit of the last token of a run of tokens where those before it have come.
    pub sequence_bias: Option<Vec<Biased>>,
    /// Runs of tokens that may not come.
    pub bad_words_ids: Option<Vec<Vec<i64>>>,
    /// Tokens that may not come.
    pub suppress_tokens: Option<Vec<i64>>,
    /// Tokens that may not begin an answer.
    pub begin_suppress_tokens: Option<Vec<i64>>,
    /// The token that begins a text.
    pub bos_token_id: Option<i64>,
    /// The tokens that end a text.
    pub eos_token_id: Vec<i64>,
    /// The token that fills short sequences of a batch.
    pub pad_token_id: Option<i64>,
}

impl Default for GenerationConfig {
    /// What Transformers takes where nothing is set.
    fn default() -> Self {
        GenerationConfig {
            max_length: None,
            max_new_tokens: None,
            min_length: Some(0),
            min_new_tokens: None,
            stop_strings: Vec::new(),
            do_sample: false,
            temperature: Some(1.0),
            top_k: Some(50),
            top_p: Some(1.0),
            min_p: None,
            repetition_penalty: Some(1.0),
            no_repeat_ngram_size: Some(0),
            sequence_bias: None,
            bad_words_ids: None,
            suppress_tokens: None,
            begin_suppress_tokens: None,
            bos_token_id: None,
            eos_token_id: Vec::new(),
            pad_token_id: None,
        }
    }
}

impl GenerationConfig {
    /// The settings of a checkpoint folder, below those of a call.
    ///
    /// # Errors
    /// If a file cannot be read; if a setting is impossible, or not supported (beams, for example).
    pub fn from_folder(folder: &Path, arguments: &Map<String, Value>) -> Result<Self> {
        let file = match folder::object(&folder.join("generation_config.json"))? {
            Some(own) => own,
            None => folder::object(&folder.join("config.json"))?.unwrap_or_default(),
        };
        Self::from_json(&file, arguments)
    }

    /// The settings of a file, below those of a call. A null in a file sets nothing; in a call it turns the setting off. Names
    /// that are no settings have no effect in a file, as in Transformers; in a call they are refused.
    ///
    /// # Errors
    /// If a setting is impossible, or not supported.
    pub fn from_json(file: &Map<String, Value>, arguments: &Map<String, Value>) -> Result<Self> {
        let mut config = Self::default();
        let file = Fields(file);
        let arguments = Fields(arguments);
        for (name, value) in file.set().filter(|(name, _)| !arguments.0.contains_key(*name)) {
            config.take(name, value)?;
        }
        for (name, value) in arguments.0 {
            if !config.take(name, value)? {
                return Err(Error::setting(name, "a setting of a generation", "another name"));
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Takes a setting. Whether it is one.
    fn take(&mut self, name: &str, value: &Value) -> Result<bool> {
        match name {
            "max_length" => self.max_length = fields::count(name, value)?,
            "max_new_tokens" => self.max_new_tokens = fields::count(name, value)?,
            "min_length" => self.min_length = fields::count(name, value)?,
            "min_new_tokens" => self.min_new_tokens = fields::count(name, value)?,
            "stop_strings" => self.stop_strings = fields::texts(name, value)?,
            "do_sample" => self.do_sample = fields::flag(name, value)?,
            "temperature" => self.temperature = fields::number(name, value)?,
            "top_k" => self.top_k = fields::count(name, value)?,
            "top_p" => self.top_p = fields::number(name, value)?,
            "min_p" => self.min_p = fields::number(name, value)?,
            "repetition_penalty" => self.repetition_penalty = fields::number(name, value)?,
            "no_repeat_ngram_size" => self.no_repeat_ngram_size = fields::count(name, value)?,
            "sequence_bias" => self.sequence_bias = fields::biases(name, value)?,
            "bad_words_ids" => self.bad_words_ids = fields::runs(name, value)?,
            "suppress_tokens" => self.suppress_tokens = fields::tokens(name, value)?,
            "begin_suppress_tokens" => self.begin_suppress_tokens = fields::tokens(name, value)?,
            "bos_token_id" => self.bos_token_id = fields::token(name, value)?,
            "eos_token_id" => self.eos_token_id = fields::tokens(name, value)?.unwrap_or_default(),
            "pad_token_id" => self.pad_token_id = fields::token(name, value)?,
            other => return fields::without_effect(other, value),
        }
        Ok(true)
    }

    /// Refuses what is impossible. Settings of drawing count only where tokens are drawn.
    fn check(&self) -> Result<()> {
        let one = |name: &str, value: Option<f64>, expected: &str, fits: fn(f64) -> bool| match value {
            Some(value) if !fits(value) => Err(Error::setting(name, expected, value)),
            _ => Ok(()),
        };
        if self.max_new_tokens == Some(0) {
            return Err(Error::setting("max_new_tokens", "at least 1", 0));
        }
        one("repetition_penalty", self.repetition_penalty, "a number above 0", |value| value > 0.0)?;
        if self.do_sample {
            let warm = "a number above 0 (for the likeliest token, set `do_sample` to false)";
            one("temperature", self.temperature, warm, |value| value > 0.0)?;
            one("top_p", self.top_p, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))?;
            one("min_p", self.min_p, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))?;
        }
        if self.stop_strings.iter().any(String::is_empty) {
            return Err(Error::setting("stop_strings", "texts", "an empty one"));
        }
        Ok(())
    }

    /// The token that fills short sequences: if none is named, the first that ends a text.
    pub fn padding(&self) -> Option<i64> {
        self.pad_token_id.or_else(|| self.eos_token_id.first().copied())
    }
}

#[cfg(test)]
mod tests;
