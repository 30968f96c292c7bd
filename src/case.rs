//! A case: config, weights and inputs, and how the inputs are fed. Golden or not, every backend runs it the same way.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dsv2_reference::config::Head;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::weights::{WeightSource, check_complete};
use dsv2_reference::{DeepseekV2Config, Dialect, Tensor};

use crate::error::{Error, Result};
use crate::inputs::{self, Inputs};

/// Something to run. A clone shares the weights.
#[derive(Clone)]
pub struct Case {
    /// What kind of DeepSeek-V2 it is.
    pub config: DeepseekV2Config,
    /// What stands on top of it.
    pub head: Head,
    /// Whose DeepSeek-V2 is meant.
    pub dialect: Dialect,
    /// Its weights.
    pub weights: Arc<dyn WeightSource + Send + Sync>,
    /// What goes in. They have been checked.
    pub inputs: Inputs,
    /// Whether there is a KV cache.
    pub use_cache: bool,
    /// The lengths of the chunks in which the sequence is fed through the cache; one, if it is fed at once.
    pub chunks: Vec<usize>,
}

impl Case {
    /// A Hugging Face checkpoint folder and a file of inputs. The head is the one that config.json names in `architectures`
    /// (a language model if it names none); there is a cache unless it says `"use_cache": false`.
    ///
    /// # Errors
    /// If the config, the checkpoint or the inputs are at fault, or the chunks do not add up.
    pub fn open(model: &Path, inputs: &Path, dialect: Dialect, chunks: Option<Vec<usize>>) -> Result<Self> {
        let config = DeepseekV2Config::from_file(&model.join("config.json"))?;
        config.validate(dialect)?;
        let head = head(&config)?;
        let inputs = Inputs::read(inputs)?;
        let weights = Arc::new(Checkpoint::open(model)?);
        let chunks = chunks.unwrap_or_else(|| vec![inputs.length()]);
        let use_cache = config.use_cache;
        Case { config, head, dialect, weights, inputs, use_cache, chunks }.checked()
    }

    /// The case itself, if its parts fit together. Its weights are from now on looked at only once, however often it is run.
    ///
    /// # Errors
    /// If a weight is missing, too many or of another shape than the config implies; if the inputs are impossible; if the
    /// chunks do not add up to the sequence, or there are several and no cache.
    pub fn checked(self) -> Result<Self> {
        self.config.validate(self.dialect)?;
        let classifier = self.head == Head::SequenceClassification;
        let expected = inputs::Expected {
            vocab_size: self.config.vocab_size,
            hidden_size: self.config.hidden_size,
            num_labels: classifier.then(|| self.config.num_labels()),
        };
        inputs::check(&self.inputs, &expected)?;
        self.inputs.chunks(&self.chunks)?;
        if self.chunks.len() > 1 && !self.use_cache {
            return Err(Error::request(
                "--chunks",
                "one chunk where there is no cache (use_cache is false)",
                self.chunks.len(),
            ));
        }
        let tolerated: &[&str] = if self.config.tie_word_embeddings { &["lm_head.weight"] } else { &[] };
        check_complete(&*self.weights, &self.config.weight_shapes(self.head, self.dialect), tolerated)?;
        Ok(Case { weights: Arc::new(Remembered::new(self.weights)), ..self })
    }
}

impl Case {
    /// Whether there is a cache that could keep its numbers in this format.
    ///
    /// # Errors
    /// If there is none, and the format is not that of no cache.
    pub fn check_cache(&self, format: CacheFormat) -> Result<()> {
        if format == CacheFormat::Plain || self.use_cache {
            return Ok(());
        }
        Err(Error::request("--cache", "plain where there is no cache (use_cache is false)", format))
    }
}

/// Weights that have been made, or checked, once: the tensors are kept, which share their bytes.
struct Remembered {
    source: Arc<dyn WeightSource + Send + Sync>,
    tensors: Mutex<HashMap<String, Tensor>>,
}

impl Remembered {
    fn new(source: Arc<dyn WeightSource + Send + Sync>) -> Self {
        Remembered { source, tensors: Mutex::default() }
    }
}

impl WeightSource for Remembered {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, dsv2_reference::Error> {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tensors.get(name).filter(|known| known.shape() == shape) {
            return Ok(known.clone());
        }
        let tensor = self.source.tensor(name, shape)?;
        tensors.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn names(&self) -> Option<Vec<String>> {
        self.source.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }
}

/// The head that config.json names.
fn head(config: &DeepseekV2Config) -> Result<Head> {
    let named = config.extra.get("architectures").and_then(|names| names.get(0)).and_then(|name| name.as_str());
    Ok(named.map_or(Ok(Head::CausalLm), str::parse)?)
}
