//! A model in the reference, on the CPU.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dsv2_optimized::Result;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::{
    AttentionForm, CausalLmInput, DeepseekV2Config, DeepseekV2ForCausalLM, Dialect, LatentCache, ModelInput, NoTap,
    Run, StageValue, Tap,
};
use ndarray::{Array2, s};

use super::harness::{LOGITS, Machine, Subject};
use super::model::{Model, PIECE, v2_lite_4_in, weights};
use super::way;
use crate::bench::target_folder;

/// Names the folder of a checkpoint of V2-Lite's width and 4 layers, if there is one already.
const CHECKPOINT: &str = "DSV2_CHECKPOINT";

/// It is loaded when it is first needed.
pub struct OnCpu {
    model: Model,
    /// Of a checkpoint; without one the weights are generated.
    folder: Option<PathBuf>,
    loaded: OnceCell<DeepseekV2ForCausalLM<f32>>,
    /// What was fed last, for what goes on from there or is a part of it: prompts take long.
    fed: RefCell<Option<LatentCache<f32>>>,
}

impl OnCpu {
    /// `mid`, in memory.
    pub fn mid() -> Self {
        OnCpu { model: Model::mid(), folder: None, loaded: OnceCell::new(), fed: RefCell::new(None) }
    }

    /// `v2-lite-4`, in a checkpoint folder: the one that the environment names, or else one that is made once in the target
    /// folder.
    pub fn v2_lite_4() -> Result<Self> {
        let folder = match std::env::var_os(CHECKPOINT) {
            Some(folder) => PathBuf::from(folder),
            None => v2_lite_4_in(target_folder().join("bench").join(Model::V2_LITE_4))?,
        };
        let config = DeepseekV2Config::from_file(&folder.join("config.json"))?;
        // Opened here as well, so that a folder without weights is found before anything is measured.
        Checkpoint::open(&folder)?;
        Ok(OnCpu { model: Model::new(Model::V2_LITE_4, config), folder: Some(folder), ..OnCpu::mid() })
    }

    fn loaded(&self) -> Result<&DeepseekV2ForCausalLM<f32>> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let load = |weights: &dyn WeightSource| DeepseekV2ForCausalLM::load(&self.model.config, Dialect::Hf, weights);
        let loaded = match &self.folder {
            None => load(&weights()),
            Some(folder) => load(&Checkpoint::open(folder)?),
        }?;
        let loaded = self.loaded.get_or_init(|| loaded);
        // The absorbed form makes its own copies when it is first used: not what is to be measured.
        self.forward(self.model.tokens(0, 1, 1), None, AttentionForm::Absorbed, &mut NoTap)?;
        Ok(loaded)
    }

    /// Runs new tokens: how long it took.
    fn forward(
        &self,
        ids: Array2<i64>,
        cache: Option<&mut LatentCache<f32>>,
        attention: AttentionForm,
        tap: &mut dyn Tap<f32>,
    ) -> Result<Duration> {
        let model = self.loaded()?;
        let input = CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LOGITS, labels: None };
        let start = Instant::now();
        let output = model.forward(&input, cache, &Run { attention, ..Run::default() }, tap)?;
        let elapsed = start.elapsed();
        drop(std::hint::black_box(output));
        Ok(elapsed)
    }

    /// Feeds texts \[B,S\] in pieces to a cache that holds their first tokens already.
    fn feed(&self, ids: &Array2<i64>, cache: &mut LatentCache<f32>) -> Result<Duration> {
        let mut seconds = Duration::ZERO;
        while cache.len() < ids.ncols() {
            let piece = cache.len()..ids.ncols().min(cache.len() + PIECE);
            let ids = ids.slice(s![.., piece]).to_owned();
            seconds += self.forward(ids, Some(cache), AttentionForm::Expanded, &mut NoTap)?;
        }
        Ok(seconds)
    }
}

impl Subject for OnCpu {
    type Cache = LatentCache<f32>;

    const MACHINE: Machine = Machine {
        name: "CPU",
        number: 4.0,
        long: 3e10,
        experts: "",
        note: "On the CPU: fp32 arithmetic and cache on bf16 weights (the absorbed form holds kv_b_proj in fp32), prompts in \
               pieces of 512 tokens.",
    };

    fn way(form: AttentionForm) -> &'static str {
        way(form)
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn prompt(&self, ids: Array2<i64>) -> Result<Duration> {
        self.feed(&ids, &mut LatentCache::new(&self.model.config, 1))
    }

    fn filled(&self, batch: usize, context: usize) -> Result<LatentCache<f32>> {
        let mut fed = self.fed.borrow_mut();
        let is_part = |fed: &&LatentCache<f32>| fed.batch() >= batch && fed.len() <= context;
        let mut cache = match fed.as_ref().filter(is_part) {
            Some(fed) => fed.clone(),
            None => LatentCache::new(&self.model.config, batch),
        };
        cache.reorder(&(0..batch).collect::<Vec<_>>())?;
        if cache.len() < context {
            self.feed(&self.model.tokens(0, batch, context), &mut cache)?;
            *fed = Some(cache.clone());
        }
        Ok(cache)
    }

    fn passes(&self, cache: &mut Self::Cache, ids: Vec<Array2<i64>>, form: AttentionForm) -> Result<Duration> {
        let mut seconds = Duration::ZERO;
        for ids in ids {
            let new = ids.ncols() as i64;
            seconds += self.forward(ids, Some(cache), form, &mut NoTap)?;
            cache.crop(-new)?;
        }
        Ok(seconds)
    }

    fn experts(&self, cache: &mut Self::Cache, ids: Array2<i64>) -> Result<usize> {
        let mut count = 0;
        let mut tap = |name: &str, value: StageValue<f32>| {
            if let (true, StageValue::Index(indices)) = (name.ends_with("gate.topk_indices"), value) {
                count += indices.iter().collect::<BTreeSet<_>>().len();
            }
        };
        let new = ids.ncols() as i64;
        self.forward(ids, Some(cache), AttentionForm::Absorbed, &mut tap)?;
        cache.crop(-new)?;
        Ok(count)
    }
}
