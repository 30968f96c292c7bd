//! A model to speak with: what a folder from the hub holds, or what is in the program.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use dsv2_reference::config::Head;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::weights::{WeightSource, check_complete};
use dsv2_reference::{DeepseekV2Config, Dialect};
use dsv2_text::{ChatTemplate, GenerationConfig, Tokenizer, embedded};
use serde_json::{Map, Value};

use crate::case::{head, read_weights};
use crate::error::{Error, Result};

/// Config, weights, tokenizer, template and defaults of a language model.
pub struct ModelFolder {
    /// config.json
    pub config: DeepseekV2Config,
    /// Whose DeepSeek-V2 is meant.
    pub dialect: Dialect,
    /// Mapped, in the type of the files.
    pub weights: Arc<dyn WeightSource + Send + Sync>,
    /// tokenizer.json
    pub tokenizer: Tokenizer,
    /// What deserves a word though it is no fault.
    pub notes: Vec<String>,
    /// Where it lies, if it is not in the program.
    folder: Option<PathBuf>,
    template: OnceLock<ChatTemplate>,
}

impl ModelFolder {
    /// A Hugging Face folder as it is downloaded. No weight is read yet.
    ///
    /// # Errors
    /// If a file is missing or at fault, or it is no language model.
    pub fn open(folder: &Path, dialect: Dialect) -> Result<Self> {
        let mut config = DeepseekV2Config::from_file(&folder.join("config.json"))?;
        config.validate(dialect)?;
        speaks(&config, &folder.join("config.json"))?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        let weights = read_weights(folder, &mut config, Head::CausalLm, dialect, |_| true)?;
        let folder = Some(folder.to_owned());
        ModelFolder { config, dialect, weights, tokenizer, notes: Vec::new(), folder, template: OnceLock::new() }
            .checked()
    }

    /// The model in a folder; without one, the small model in the program.
    ///
    /// # Errors
    /// As [`ModelFolder::open`].
    pub fn open_or_embedded(folder: Option<&Path>, dialect: Dialect) -> Result<Self> {
        folder.map_or_else(|| Self::embedded(dialect), |folder| Self::open(folder, dialect))
    }

    /// The small model in the program.
    ///
    /// # Errors
    /// Never, if the program is whole.
    pub fn embedded(dialect: Dialect) -> Result<Self> {
        let config = DeepseekV2Config::from_json_str(embedded::CONFIG)?;
        config.validate(dialect)?;
        let tokenizer_config = embedded::TOKENIZER_CONFIG.as_bytes();
        let weights = Checkpoint::from_bytes(embedded::NAME, Arc::new(embedded::WEIGHTS))?;
        ModelFolder {
            dialect,
            weights: Arc::new(weights),
            tokenizer: Tokenizer::from_bytes(embedded::TOKENIZER.as_bytes(), Some(tokenizer_config))?,
            config,
            notes: Vec::new(),
            folder: None,
            template: OnceLock::new(),
        }
        .checked()
    }

    /// Whether the angles of its rope depend on the length of the text, so that a token means something else when it has grown.
    ///
    /// # Errors
    /// If the config is impossible.
    pub fn angles_depend_on_length(&self) -> Result<bool> {
        Ok(self.config.rope()?.rope_type.depends_on_length())
    }

    /// The chat template, which is read when it is first asked for.
    ///
    /// # Errors
    /// If there is none, or it is none.
    pub fn template(&self) -> Result<&ChatTemplate> {
        if let Some(template) = self.template.get() {
            return Ok(template);
        }
        let template = match &self.folder {
            Some(folder) => ChatTemplate::from_folder(folder)?,
            None => ChatTemplate::from_source(embedded::CHAT_TEMPLATE, self.tokenizer.special_tokens())?,
        };
        Ok(self.template.get_or_init(|| template))
    }

    /// The settings of a generation: those of the folder, and above them `arguments`, by Hugging Face's names.
    ///
    /// # Errors
    /// If one is impossible, or not supported.
    pub fn generation_config(&self, arguments: &Map<String, Value>) -> Result<GenerationConfig> {
        Ok(match &self.folder {
            Some(folder) => GenerationConfig::from_folder(folder, arguments)?,
            None => GenerationConfig::from_json(&read_object(embedded::GENERATION_CONFIG)?, arguments)?,
        })
    }

    /// Whether the model can read these tokens and say one more.
    ///
    /// # Errors
    /// If one is not in its vocabulary, or they fill its context.
    pub fn check(&self, tokens: &[i64]) -> Result<()> {
        let vocabulary = self.config.vocab_size;
        if let Some(beyond) = tokens.iter().find(|id| **id >= vocabulary as i64) {
            let expected = format!("tokens below {vocabulary} (vocab_size in config.json)");
            return Err(Error::request("prompt", expected, format!("{beyond}, from the tokenizer")));
        }
        match tokens.len() >= self.config.max_position_embeddings {
            true => Err(self.too_long(tokens.len())),
            false => Ok(()),
        }
    }

    /// Refuses a text that has certainly too many tokens, before it is made into them.
    ///
    /// # Errors
    /// If it has.
    pub(super) fn could_read(&self, text: &str) -> Result<()> {
        match self.tokenizer.is_certainly_longer(text, self.config.max_position_embeddings.saturating_sub(1)) {
            true => Err(self.too_long("more")),
            false => Ok(()),
        }
    }

    fn too_long(&self, found: impl std::fmt::Display) -> Error {
        let context = self.config.max_position_embeddings;
        Error::request("prompt", format!("fewer than {context} tokens (max_position_embeddings)"), found)
    }

    fn checked(mut self) -> Result<Self> {
        let all = self.config.weight_shapes(Head::CausalLm, self.dialect);
        let tied = self.config.tie_word_embeddings.then_some("lm_head.weight");
        let tolerated: Vec<&str> = all.iter().map(|(weight, _)| weight.as_str()).chain(tied).collect();
        let others = check_complete(&*self.weights, &all, &tolerated)?;
        self.notes = self.config.notes(self.dialect);
        self.notes.extend(self.weights.notes());
        if !others.is_empty() {
            let named = dsv2_foreign::list(&others, 3);
            self.notes.push(format!("tensors of the checkpoint that a model of this config does not have: {named}"));
        }
        Ok(self)
    }
}

fn read_object(json: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(json).map_err(|error| Error::file(embedded::NAME, "an object of JSON", error))
}

/// Whether it is a language model.
fn speaks(config: &DeepseekV2Config, path: &Path) -> Result<()> {
    match head(config)? {
        Head::CausalLm => Ok(()),
        other => Err(Error::file(path, "a language model (DeepseekV2ForCausalLM)", other)),
    }
}
