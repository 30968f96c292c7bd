//! A case: config, weights and inputs, and how the inputs are fed. Golden or not, every backend runs it the same way.

mod part;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dsv2_reference::config::Head;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::weights::finite::Watch;
use dsv2_reference::weights::model_weights::ModelWeights;
use dsv2_reference::weights::{WeightSource, check_complete};
use dsv2_reference::{DeepseekV2Config, Dialect, Tensor};

use crate::error::{Error, Result, one_line};
use crate::inputs::{self, Inputs};
use crate::taps::PartialSums;
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
    /// Whether mask and positions are inferred from the padding token, as generation does.
    pub infer_mask: bool,
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
    /// Of how many ranks' parts its sums are made, where it is run.
    pub partial_sums: PartialSums,
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
        Self::of(DeepseekV2Config::from_file(&model.join("config.json"))?, model, inputs, feed)
    }

    /// The same where `config` is what the folder's config.json says.
    ///
    /// # Errors
    /// As [`Case::open_as`].
    pub fn of(mut config: DeepseekV2Config, model: &Path, inputs: &Path, feed: Feed) -> Result<Self> {
        let Feed { dialect, chunks, use_cache, ids_only, infer_mask, decode, layers, first_layers } = feed;
        config.validate(dialect)?;
        let head = head(&config)?;
        let inputs = Inputs::read(inputs)?;
        let inputs = if ids_only { inputs.ids_only()? } else { inputs };
        let inputs = if infer_mask { inputs.as_generate_feeds(&config)? } else { inputs };
        let inputs = decode.into_iter().try_fold(inputs, Inputs::decoding)?;
        if layers.is_some() && decode.is_some() {
            return Err(Error::request("--layers", "whole sequences", "one decoding step (--decode)"));
        }
        let alone = layers.map(|layers| layers.of(&config)).transpose()?;
        let part = alone.map(|layers| Part { layers, entering: Entering::OfDump }).or(first_layers.map(Part::first));
        let needed = |weight: &str| part.as_ref().is_none_or(|part| part.needs(weight));
        let weights = read_weights(model, &mut config, head, dialect, needed)?;
        let at_once = || [inputs.past(), inputs.looked_at()].into_iter().filter(|&length| length > 0).collect();
        let chunks = chunks.unwrap_or_else(at_once);
        let use_cache = use_cache.unwrap_or(config.use_cache);
        Case { config, head, dialect, weights, inputs, use_cache, chunks, part, partial_sums: PartialSums::default() }
            .checked()
    }

    /// What a language model makes of its inputs at once, through its cache, on one device; not [`checked`](Case::checked) yet.
    pub fn of_language_model(
        config: DeepseekV2Config,
        dialect: Dialect,
        weights: Arc<dyn WeightSource + Send + Sync>,
        inputs: Inputs,
    ) -> Self {
        let (head, chunks, partial_sums) = (Head::CausalLm, vec![inputs.length()], PartialSums::default());
        Case { config, head, dialect, weights, inputs, use_cache: true, chunks, part: None, partial_sums }
    }

    /// The case itself, if its parts fit together. Its weights are from now on looked at only once, however often it is run.
    ///
    /// # Errors
    /// If a weight is missing or of another shape than the config implies; if the inputs are impossible; if the
    /// chunks do not add up to the sequence, or there are several and no cache.
    pub fn checked(self) -> Result<Self> {
        self.config.validate(self.dialect)?;
        let classifier = self.head == Head::SequenceClassification;
        let expected = inputs::Expected {
            vocab_size: self.config.vocab_size,
            hidden_size: self.config.hidden_size,
            num_attention_heads: self.config.num_attention_heads,
            num_labels: classifier.then(|| self.config.num_labels()),
        };
        inputs::check(&self.inputs, &expected)?;
        self.check_bare()?;
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
        let others = check_complete(&*self.weights, &self.weight_shapes(), &tolerated)?;
        Ok(Case { weights: Arc::new(Remembered::new(self.weights, &others)), ..self })
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

    /// Whether nothing is asked for that only a head computes.
    fn check_bare(&self) -> Result<()> {
        let asked =
            [("labels", self.inputs.labels.is_some()), ("logits_to_keep", self.inputs.logits_to_keep.is_some())];
        match asked.into_iter().find(|(_, given)| *given && self.head == Head::Bare) {
            Some((name, _)) => Err(Error::input(name, "a model with a head", format!("{}, which has none", self.head))),
            None => Ok(()),
        }
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
            _ if self.config.rope()?.rope_type.depends_on_length() => {
                refused("a rope type whose angles depend on the longest sequence")
            }
            Head::CausalLm | Head::Bare => Ok(()),
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
    notes: Vec<String>,
}

impl Remembered {
    /// `others` are tensors that the model does not have.
    fn new(source: Arc<dyn WeightSource + Send + Sync>, others: &[String]) -> Self {
        let mut notes = source.notes();
        if !others.is_empty() {
            const SHOWN: usize = 3;
            let mut named: Vec<String> = others.iter().take(SHOWN).map(|name| format!("`{}`", short(name))).collect();
            if others.len() > SHOWN {
                named.push(format!("{} more", others.len() - SHOWN));
            }
            let (are, s) = if others.len() == 1 { ("is", "") } else { ("are", "s") };
            let named = named.join(", ");
            notes.push(format!(
                "{} tensor{s} of the checkpoint {are} not in a model of this config, and not read: {named}",
                others.len()
            ));
        }
        Remembered { source, tensors: Mutex::default(), notes }
    }
}

/// A name out of a file, fit for a line.
fn short(name: &str) -> String {
    const LONGEST: usize = 100;
    let (shown, whole) = (name.chars().take(LONGEST).collect::<String>(), name.chars().count() <= LONGEST);
    one_line(&shown) + if whole { "" } else { "..." }
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

    fn watch(&self) -> Arc<Watch> {
        self.source.watch()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// The weights of the checkpoint in `folder`. If it has an output head of its own although `config` ties it to the embedding,
/// it is the model of a config that does not, and `config` becomes that.
///
/// # Errors
/// If the checkpoint is at fault, or in a form that is not read.
pub fn read_weights(
    folder: &Path,
    config: &mut DeepseekV2Config,
    head: Head,
    dialect: Dialect,
    needed: impl Fn(&str) -> bool,
) -> Result<Arc<dyn WeightSource + Send + Sync>> {
    let weights = ModelWeights::open(folder, config, head, dialect, needed)?;
    config.tie_word_embeddings &= !weights.unties();
    Ok(Arc::new(weights))
}

/// The head that config.json names.
pub(crate) fn head(config: &DeepseekV2Config) -> Result<Head> {
    let named = config.extra.get("architectures").and_then(|names| names.get(0)).and_then(|name| name.as_str());
    Ok(named.map_or(Ok(Head::CausalLm), str::parse)?)
}
