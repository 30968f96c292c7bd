//! The models that are measured, and what they are fed: weights and texts are random, every sequence has its own text.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dsv2_reference::config::Head;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::{Checkpoint, Entry, write_checkpoint};
use dsv2_reference::weights::generator::{GeneratedWeights, splitmix64};
use dsv2_reference::{
    AttentionForm, CausalLmInput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, Dtype, LatentCache, LogitsToKeep,
    ModelInput, NoTap, Result, Run, StageValue, Tap,
};
use ndarray::Array2;

use super::work::Work;
use crate::bench::target_folder;

/// Names the folder of a checkpoint of V2-Lite's width and 4 layers, if there is one already.
const CHECKPOINT: &str = "DSV2_CHECKPOINT";

/// Prompts go in pieces of so many tokens, so that the scores of a piece stay small.
pub const PIECE: usize = 512;

/// Fewer bytes are there before a line about them could be read.
const MUCH: usize = 1_000_000_000;

/// A model that is loaded when it is first needed.
pub struct Subject {
    pub name: &'static str,
    pub config: DeepseekV2Config,
    pub work: Work,
    source: Source,
    model: OnceCell<DeepseekV2ForCausalLM<f32>>,
}

enum Source {
    Generated,
    Folder(PathBuf),
}

/// V2-Lite's proportions in a model of 65 million weights: what `make_checkpoint --size mid` writes.
pub fn mid() -> DeepseekV2Config {
    let config = include_str!("../../../reference/examples/make_checkpoint/mid.json");
    DeepseekV2Config::from_value(serde_json::from_str(config).expect("JSON")).expect("a possible config")
}

/// Random weights, by which a layer neither shrinks nor grows what passes through.
pub fn weights() -> GeneratedWeights {
    let rules = include_str!("../../../reference/examples/make_checkpoint/weights.json");
    serde_json::from_str(rules).expect("rules of weights")
}

/// `length` random tokens of each of `batch` texts, from number `text` on: \[batch,length\].
pub fn tokens(config: &DeepseekV2Config, text: usize, batch: usize, length: usize) -> Array2<i64> {
    let token = |text: usize, at: usize| splitmix64(splitmix64(text as u64) ^ at as u64) % config.vocab_size as u64;
    Array2::from_shape_fn((batch, length), |(b, at)| token(text + b, at) as i64)
}

impl Subject {
    /// `mid`, in memory.
    pub fn mid() -> Self {
        Subject::new("mid", mid(), Source::Generated)
    }

    /// `v2-lite-4`: V2-Lite with 4 of its layers, 2.25e9 weights, in a checkpoint folder: the one that the environment names,
    /// or else one that is made once in the target folder.
    pub fn v2_lite_4() -> Result<Self> {
        let folder = match std::env::var_os(CHECKPOINT) {
            Some(folder) => PathBuf::from(folder),
            None => made_once(target_folder().join("bench").join("v2-lite-4"))?,
        };
        let config = DeepseekV2Config::from_file(&folder.join("config.json"))?;
        // Opened here as well, so that a folder without weights is found before anything is measured.
        Checkpoint::open(&folder)?;
        Ok(Subject::new("v2-lite-4", config, Source::Folder(folder)))
    }

    fn new(name: &'static str, config: DeepseekV2Config, source: Source) -> Self {
        Subject { name, work: Work::new(&config), config, source, model: OnceCell::new() }
    }

    fn model(&self) -> &DeepseekV2ForCausalLM<f32> {
        self.model.get_or_init(|| {
            let model = self.load().expect("weights of this config");
            // The absorbed form makes its own copies when it is first used: not what is to be measured.
            forward(&model, tokens(&self.config, 0, 1, 1), None, AttentionForm::Absorbed, &mut NoTap);
            model
        })
    }

    fn load(&self) -> Result<DeepseekV2ForCausalLM<f32>> {
        let load = |weights: &dyn WeightSource| DeepseekV2ForCausalLM::load(&self.config, Dialect::Hf, weights);
        match &self.source {
            Source::Generated => load(&weights()),
            Source::Folder(folder) => load(&Checkpoint::open(folder)?),
        }
    }

    /// Runs new tokens and computes the logits of the last one of each sequence: how long it took.
    pub fn forward(&self, ids: Array2<i64>, cache: &mut LatentCache<f32>, form: AttentionForm) -> Duration {
        forward(self.model(), ids, Some(cache), form, &mut NoTap)
    }

    /// The same, and instead of the time the number of different experts, summed over the layers.
    pub fn count_experts(&self, ids: Array2<i64>, cache: &mut LatentCache<f32>) -> usize {
        let mut count = 0;
        let mut tap = |name: &str, value: StageValue<f32>| {
            if let (true, StageValue::Index(indices)) = (name.ends_with("gate.topk_indices"), value) {
                count += indices.iter().collect::<BTreeSet<_>>().len();
            }
        };
        forward(self.model(), ids, Some(cache), AttentionForm::Absorbed, &mut tap);
        count
    }

    /// Feeds a prompt in pieces, to caches that hold its first `from` tokens already.
    pub fn prefill(&self, text: usize, cache: &mut LatentCache<f32>, length: usize) -> Duration {
        let ids = tokens(&self.config, text, cache.batch(), length);
        let mut seconds = Duration::ZERO;
        while cache.len() < length {
            let piece = cache.len()..length.min(cache.len() + PIECE);
            let ids = ids.slice(ndarray::s![.., piece]).to_owned();
            seconds += self.forward(ids, cache, AttentionForm::Expanded);
        }
        seconds
    }
}

fn forward(
    model: &DeepseekV2ForCausalLM<f32>,
    ids: Array2<i64>,
    cache: Option<&mut LatentCache<f32>>,
    attention: AttentionForm,
    tap: &mut dyn Tap<f32>,
) -> Duration {
    let input = CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::Last(1), labels: None };
    let start = Instant::now();
    let output = model.forward(&input, cache, &Run { attention, ..Run::default() }, tap).expect("tokens of this model");
    let elapsed = start.elapsed();
    drop(std::hint::black_box(output));
    elapsed
}

/// Writes the checkpoint of random weights, unless it is there.
fn made_once(folder: PathBuf) -> Result<PathBuf> {
    if folder.join("config.json").exists() {
        return Ok(folder);
    }
    let mut config = DeepseekV2Config::preset("v2-lite")?;
    config.num_hidden_layers = 4;
    let shapes = config.weight_shapes(Head::CausalLm, Dialect::Hf);
    let entries: Vec<Entry> =
        shapes.into_iter().map(|(name, shape)| Entry { name, dtype: Dtype::Bf16, shape }).collect();
    let mut progress = Progress::new(&format!("writing {}", folder.display()), 2 * config.parameter_count() as usize);
    let weights = weights();
    let make = |entry: &Entry| {
        let tensor = weights.tensor(&entry.name, &entry.shape)?;
        progress.add(tensor.bytes().len());
        Ok(tensor)
    };
    if let Some(parent) = folder.parent() {
        // What keeps it from being made, the writer will say.
        let _ = std::fs::create_dir_all(parent);
    }
    write_checkpoint(&folder, &config.to_json(), &entries, make, Some(5_000_000_000))?;
    Ok(folder)
}

/// A line for each tenth of what is to be made or loaded, if that is much.
pub struct Progress {
    what: String,
    total: usize,
    done: usize,
}

impl Progress {
    /// Nothing done yet.
    pub fn new(what: &str, total: usize) -> Self {
        Progress { what: what.into(), total, done: 0 }
    }

    /// So many more bytes.
    pub fn add(&mut self, bytes: usize) {
        let tenth = |done: usize| 10 * done / self.total.max(1);
        let before = tenth(self.done);
        self.done += bytes;
        if self.total > MUCH && tenth(self.done) > before {
            eprintln!("{}: {} of {} MB", self.what, self.done / 1_000_000, self.total / 1_000_000);
        }
    }
}

/// A cache that holds the first tokens of some texts, and grows as it is needed.
pub struct History<'a> {
    subject: &'a Subject,
    batch: usize,
    cache: Option<LatentCache<f32>>,
}

impl<'a> History<'a> {
    /// Nothing in it yet.
    pub fn new(subject: &'a Subject, batch: usize) -> Self {
        History { subject, batch, cache: None }
    }

    /// The cache, with exactly `context` tokens of each text. It should be asked for in rising order: a cache that was longer
    /// keeps its room.
    pub fn at(&mut self, context: usize) -> &mut LatentCache<f32> {
        let cache = self.cache.get_or_insert_with(|| LatentCache::new(&self.subject.config, self.batch));
        match cache.len() < context {
            true => drop(self.subject.prefill(0, cache, context)),
            false => cache.crop(context as i64).expect("fewer tokens than there are"),
        }
        cache
    }
}
