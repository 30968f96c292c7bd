//! A case: config, weights and inputs, and how the inputs are fed. Golden or not, every backend runs it the same way.

mod part;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dsv2_reference::config::{Head, RopeType};
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::weights::{WeightSource, check_complete};
use dsv2_reference::{DeepseekV2Config, Dialect, Tensor};

use crate::error::{Error, Result};
use crate::inputs::{self, Inputs};
pub use part::{EMBEDDING, Entering, Layers, Part};

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { head, dialect, inputs, use_cache, chunks, .. } = self;
        f.debug_tuple("Case").field(head).field(dialect).field(inputs).field(use_cache).field(chunks).finish()
    }
}

/// How a checkpoint is fed, where its files do not say.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// Whose DeepSeek-V2 is meant.
    pub dialect: Dialect,
    /// The lengths of the chunks; one, if nobody says.
    pub chunks: Option<Vec<usize>>,
    /// Whether there is a cache; as config.json says, if nobody does.
    pub use_cache: Option<bool>,
    /// Whether the mask and the positions of the inputs are left out.
    pub ids_only: bool,
    /// How many tokens at the end of each sequence are looked at, after those before them have been cached.
    pub decode: Option<usize>,
    /// Layers that are looked at alone, from what a dump says enters them. Then no other weights are needed.
    pub layers: Option<Layers>,
    /// How many of the first layers are run, from the embedding on, and nothing after them. No other weights are needed.
    pub first_layers: Option<usize>,
}

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
    /// Which part of the model is run, if not all of it.
    pub part: Option<Part>,
}

impl Case {
    /// A Hugging Face checkpoint folder and a file of inputs. The head is the one that config.json names in `architectures`
    /// (a language model if it names none); there is a cache unless it says `"use_cache": false`.
    ///
    /// # Errors
    /// If the config, the checkpoint or the inputs are at fault, or the chunks do not add up.
    pub fn open(model: &Path, inputs: &Path, dialect: Dialect, chunks: Option<Vec<usize>>) -> Result<Self> {
        Self::open_as(model, inputs, Feed { dialect, chunks, ..Feed::default() })
    }

    /// The same, fed as `feed` says.
    ///
    /// # Errors
    /// As [`Case::open`]; also if the inputs cannot be fed so.
    pub fn open_as(model: &Path, inputs: &Path, feed: Feed) -> Result<Self> {
        let Feed { dialect, chunks, use_cache, ids_only, decode, layers, first_layers } = feed;
        let config = DeepseekV2Config::from_file(&model.join("config.json"))?;
        config.validate(dialect)?;
        let head = head(&config)?;
        let inputs = Inputs::read(inputs)?;
        let inputs = if ids_only { inputs.ids_only()? } else { inputs };
        let inputs = decode.into_iter().try_fold(inputs, Inputs::decoding)?;
        if layers.is_some() && decode.is_some() {
            return Err(Error::request("--layers", "whole sequences", "one decoding step (--decode)"));
        }
        let alone = layers.map(|layers| layers.of(&config)).transpose()?;
        let part = alone.map(|layers| Part { layers, entering: Entering::OfDump }).or(first_layers.map(Part::first));
        let needed = |weight: &str| part.as_ref().is_none_or(|part| part.needs(weight));
        let weights = Arc::new(Checkpoint::open_some(model, needed)?);
        let at_once = || [inputs.past(), inputs.looked_at()].into_iter().filter(|&length| length > 0).collect();
        let chunks = chunks.unwrap_or_else(at_once);
        let use_cache = use_cache.unwrap_or(config.use_cache);
        Case { config, head, dialect, weights, inputs, use_cache, chunks, part }.checked()
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
        self.check_packed()?;
        self.inputs.chunks(&self.chunks)?;
        if self.inputs.new_tokens.is_some() && !self.use_cache {
            return Err(Error::request("--decode", "a cache", "none (use_cache is false)"));
        }
        if self.chunks.len() > 1 && !self.use_cache {
            return Err(Error::request(
                "--chunks",
                "one chunk where there is no cache (use_cache is false)",
                self.chunks.len(),
            ));
        }
        let all = self.config.weight_shapes(self.head, self.dialect);
        let tied = self.config.tie_word_embeddings.then_some("lm_head.weight");
        let tolerated: Vec<&str> = all.iter().map(|(weight, _)| weight.as_str()).chain(tied).collect();
        check_complete(&*self.weights, &self.weight_shapes(), &tolerated)?;
        Ok(Case { weights: Arc::new(Remembered::new(self.weights)), ..self })
    }
}

impl Case {
    /// The names and shapes of the weights that are needed: some layers alone need their own.
    pub fn weight_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let needed = |weight: &str| self.part.as_ref().is_none_or(|part| part.needs(weight));
        let mut shapes = self.config.weight_shapes(self.head, self.dialect);
        shapes.retain(|(weight, _)| needed(weight));
        shapes
    }

    /// Whether sequences that are laid end to end mean something for this model.
    fn check_packed(&self) -> Result<()> {
        if self.inputs.packed.is_none() {
            return Ok(());
        }
        let refused = |found: &str| {
            let expected = "one sequence beside another, [B,S]: laid end to end they are another computation";
            Err(Error::input("input_ids", expected, found))
        };
        match self.head {
            Head::SequenceClassification => refused("a classifier, which reads the end of a row"),
            _ if self.config.rope()?.rope_type == RopeType::Dynamic => {
                refused("rope type dynamic, whose angles depend on the longest sequence")
            }
            Head::CausalLm => Ok(()),
        }
    }

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
