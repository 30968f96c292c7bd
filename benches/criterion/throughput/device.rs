//! The same on a device: a GPU if there is one. Without one the very same code runs a tiny model on the emulator, where
//! nothing is timed.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dsv2_optimized::model::Settings;
use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::plan::{CacheSize, MemoryPlan, Pass};
use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Cuda, Device, Element, Emulated, Library, Result, Tensor, Variant};
use dsv2_reference::config::Head;
use dsv2_reference::{AttentionForm, DeepseekV2Config, Dialect, ModelInput};
use ndarray::{Array2, s};

use super::harness::{LOGITS, Machine, Measured, Point, STEPS, Subject, measure};
use super::model::{Model, PIECE, weights};
use crate::bench::{Bench, Profile};

const SETTINGS: Settings = Settings::new(Element::Bf16, Variant::Tuned);
/// Tokens of a page of the cache.
const PAGE: usize = 64;
/// Different texts that are fed in full. A larger batch forks them, and each fork then goes on with tokens of its own.
const TEXTS: usize = 8;
/// Tokens that each sequence of a batch has of its own before it is timed.
const OWN: usize = 8;

/// A model on a device, loaded when it is first needed.
struct OnDevice {
    model: Model,
    device: Arc<dyn Device>,
    lm: OnceCell<CausalLm>,
}

/// Measures on the GPU, or says why not.
pub fn measured(bench: &mut Bench) -> Vec<Measured> {
    let (prompts, contexts, batches): (&[usize], &[usize], &[usize]) = match bench.profile() {
        Profile::Quick => (&[512], &[1024], &[8, 1]),
        Profile::Full => (&[512, 2048, 8192], &[1024, 4096, 16384], &[128, 32, 8, 1]),
    };
    let step = |context, batch| Point { experts: true, ..Point::step(AttentionForm::Absorbed, context, batch) };
    let steps = contexts.iter().flat_map(|&context| batches.iter().map(move |&batch| step(context, batch)));
    let points: Vec<Point> = prompts.iter().map(|&length| Point::prompt(length)).chain(steps).collect();
    let mut models = vec![Model::mid()];
    if bench.profile() == Profile::Full {
        models.push(Model::new("v2-lite", DeepseekV2Config::preset("v2-lite").expect("a preset")));
    }
    if !models.iter().any(|model| points.iter().any(|point| point.is_wanted::<OnDevice>(bench, model.name))) {
        return vec![];
    }
    match Cuda::new(Library::embedded()) {
        Ok(device) => {
            bench.on_gpu(device.name());
            let on_device = |model| OnDevice::new(model, device.clone());
            models.into_iter().map(|model| measure(bench, on_device(model), &points)).collect()
        }
        Err(error) => {
            let why = match on_the_emulator() {
                Ok(()) => format!("{error}; the same code ran a tiny model on the emulator"),
                Err(failed) => format!("{error}; and on the emulator the same code failed: {failed}"),
            };
            bench.not_run("throughput on a GPU", why);
            vec![]
        }
    }
}

impl OnDevice {
    fn new(model: Model, device: Arc<dyn Device>) -> Self {
        OnDevice { model, device, lm: OnceCell::new() }
    }

    fn lm(&self) -> Result<&CausalLm> {
        if let Some(lm) = self.lm.get() {
            return Ok(lm);
        }
        let Model { config, .. } = &self.model;
        let lm = CausalLm::load_generated(config, Dialect::Hf, &weights(), &self.device, SETTINGS, &mut |_| ())?;
        Ok(self.lm.get_or_init(|| lm))
    }

    fn forward(
        &self,
        ids: Array2<i64>,
        cache: &mut LatentCache,
        form: AttentionForm,
        tap: Option<&mut dyn Tap>,
    ) -> Result<()> {
        let input = CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LOGITS, labels: None };
        self.lm()?.forward(&input, Some(cache), form, tap)?;
        Ok(())
    }

    fn cache(&self, batch: usize, tokens: usize) -> Result<LatentCache> {
        LatentCache::new(&self.model.config, &self.device, SETTINGS.element, batch, tokens, PAGE)
    }

    /// How long it takes until the device is done.
    fn timed(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        self.lm()?;
        self.device.synchronize()?;
        let start = Instant::now();
        work()?;
        self.device.synchronize()?;
        Ok(start.elapsed())
    }
}

impl Subject for OnDevice {
    type Cache = LatentCache;

    const MACHINE: Machine = Machine {
        name: "GPU",
        number: 2.0,
        long: f64::INFINITY,
        experts: "/cuda",
        note: "On the GPU: bf16, prompts in one piece, pages of 64 tokens. Up to 8 texts are different from the first token on; \
               more sequences are forks of them with 8 tokens of their own. The GPU's own ceilings are under Kernels.",
    };

    fn way(_form: AttentionForm) -> &'static str {
        "cuda"
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn lacks(&self, batch: usize, context: usize) -> Result<Option<String>> {
        let size = CacheSize { batch, tokens: context + 1, page_size: PAGE };
        let pass = |new, keys, form| Pass { new, keys, form, masked: false, logits: 1 };
        let config = &self.model.config;
        let plan = |size, pass| MemoryPlan::new(config, Dialect::Hf, Head::CausalLm, SETTINGS, size, &[pass]);
        let step = plan(size, pass(1, context + 1, AttentionForm::Absorbed))?;
        // The texts are fed while there are no forks yet.
        let texts = CacheSize { batch: batch.min(TEXTS), ..size };
        let fed = plan(texts, pass(PIECE, context, AttentionForm::Expanded))?;
        let weights = if self.lm.get().is_some() { 0 } else { step.weights };
        let needed = weights + step.cache + step.workspace.max(fed.workspace);
        let (free, _) = self.device.memory()?;
        let gigabytes = |bytes: usize| bytes as f64 / 1e9;
        let text = || format!("it needs {:.1} GB of memory, {:.1} are free", gigabytes(needed), gigabytes(free));
        Ok((needed > free).then(text))
    }

    /// In one piece.
    fn prompt(&self, ids: Array2<i64>) -> Result<Duration> {
        let mut cache = self.cache(1, ids.ncols())?;
        self.timed(|| self.forward(ids, &mut cache, AttentionForm::Expanded, None))
    }

    /// With room for one token more. The context is longer than [`OWN`].
    fn filled(&self, batch: usize, context: usize) -> Result<LatentCache> {
        let mut cache = self.cache(batch, context + 1)?;
        let texts = batch.min(TEXTS);
        cache.reorder(&(0..texts).collect::<Vec<_>>())?;
        let shared = context - OWN;
        let ids = self.model.tokens(0, texts, shared);
        for from in (0..shared).step_by(PIECE) {
            let piece = ids.slice(s![.., from..shared.min(from + PIECE)]).to_owned();
            self.forward(piece, &mut cache, AttentionForm::Expanded, None)?;
        }
        cache.reorder(&(0..batch).map(|b| b % texts).collect::<Vec<_>>())?;
        let own = self.model.tokens(TEXTS, batch, OWN);
        for at in 0..OWN {
            let next = own.slice(s![.., at..at + 1]).to_owned();
            self.forward(next, &mut cache, AttentionForm::Absorbed, None)?;
        }
        Ok(cache)
    }

    /// One after another, without waiting between them.
    fn passes(&self, cache: &mut LatentCache, ids: Vec<Array2<i64>>, form: AttentionForm) -> Result<Duration> {
        self.timed(|| {
            let before = cache.lengths();
            ids.into_iter().try_for_each(|ids| {
                self.forward(ids, cache, form, None)?;
                cache.crop(&before);
                Ok(())
            })
        })
    }

    fn experts(&self, cache: &mut LatentCache, ids: Array2<i64>) -> Result<usize> {
        let (before, mut experts) = (cache.lengths(), Experts(0));
        self.forward(ids, cache, AttentionForm::Absorbed, Some(&mut experts))?;
        cache.crop(&before);
        Ok(experts.0)
    }
}

/// Counts the different experts of each layer.
struct Experts(usize);

impl Tap for Experts {
    fn wants(&self, stage: &str) -> bool {
        stage.ends_with("gate.topk_indices")
    }

    fn stage(&mut self, _: &str, value: &Tensor) -> Result<bool> {
        self.0 += value.to_i32()?.into_iter().collect::<BTreeSet<_>>().len();
        Ok(false)
    }
}

/// Every function above that the GPU would run, once, with a model so small that it takes a moment.
fn on_the_emulator() -> Result<()> {
    let config = DeepseekV2Config {
        vocab_size: 64,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: Some(2),
        kv_lora_rank: 16,
        qk_nope_head_dim: 16,
        qk_rope_head_dim: 8,
        v_head_dim: 16,
        intermediate_size: 32,
        moe_intermediate_size: 16,
        ..Model::mid().config
    };
    let tiny = OnDevice::new(Model::new("a tiny model", config), Emulated::new(Library::embedded()));
    let (batch, context) = (TEXTS + 1, OWN + 4);
    tiny.lacks(batch, context)?;
    tiny.prompt(tiny.model.tokens(1, 1, 5))?;
    let mut cache = tiny.filled(batch, context)?;
    let next = |step| tiny.model.tokens(STEPS + step, batch, 1);
    tiny.experts(&mut cache, next(0))?;
    tiny.passes(&mut cache, vec![next(0), next(1)], AttentionForm::Absorbed)?;
    Ok(())
}
