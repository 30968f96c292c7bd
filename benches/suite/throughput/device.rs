//! The same on a device: a GPU if there is one. Without one the very same code runs a tiny model on the emulator, where
//! nothing is timed.

mod report;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Throughput;
use dsv2_bench_report::{Better, Measurement};
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput};
use dsv2_optimized::model::plan::{CacheSize, MemoryPlan, Pass};
use dsv2_optimized::model::tap::Tap;
use dsv2_optimized::{Cuda, Device, Element, Emulated, Library, Result, Tensor, Variant};
use dsv2_reference::config::Head;
use dsv2_reference::{AttentionForm, DeepseekV2Config, Dialect, LogitsToKeep, ModelInput};
use ndarray::{Array2, s};

use super::subject::{PIECE, Progress, mid, tokens, weights};
use super::work::Work;
use crate::bench::{Bench, Profile};
use report::{Measured, Step};

const SETTINGS: Settings = Settings::new(Element::Bf16, Variant::Tuned);
/// Tokens of a page of the cache.
const PAGE: usize = 64;
/// Different texts that are fed in full. A larger batch forks them, and each fork then goes on with tokens of its own.
const TEXTS: usize = 8;
/// Tokens that each sequence of a batch has of its own before it is timed.
const OWN: usize = 8;
/// Different steps that are timed in turn.
const STEPS: usize = 8;
const STEP_TEXTS: usize = 1 << 20;

/// What is measured of a model.
struct Grid {
    prompts: &'static [usize],
    contexts: &'static [usize],
    batches: &'static [usize],
}

/// A model on a device.
struct OnDevice {
    name: &'static str,
    config: DeepseekV2Config,
    device: Arc<dyn Device>,
    lm: OnceCell<CausalLm>,
}

/// Measures on the GPU, or says why not.
pub fn run(bench: &mut Bench) {
    let grid = match bench.profile() {
        Profile::Quick => Grid { prompts: &[512], contexts: &[1024], batches: &[1, 8] },
        Profile::Full => {
            Grid { prompts: &[512, 2048, 8192], contexts: &[1024, 4096, 16384], batches: &[1, 8, 32, 128] }
        }
    };
    let mut models = vec![("mid", mid())];
    if bench.profile() == Profile::Full {
        models.push(("v2-lite", DeepseekV2Config::preset("v2-lite").expect("a preset")));
    }
    let ids: Vec<_> = models.iter().flat_map(|(name, _)| ids(name, &grid)).collect();
    if !ids.iter().any(|(group, name)| bench.wants(&format!("{group}/{name}"))) {
        return;
    }
    match Cuda::new(Library::embedded()) {
        Ok(device) => {
            bench.on_gpu(device.name());
            let measured: Vec<Measured> = models
                .into_iter()
                .map(|(name, config)| measure(bench, &OnDevice::new(name, config, device.clone()), &grid))
                .collect();
            report::report(bench, &measured);
        }
        Err(error) => {
            let why = match on_the_emulator() {
                Ok(()) => format!("{error}; the same code ran a tiny model on the emulator"),
                Err(failed) => format!("{error}; and on the emulator the same code failed: {failed}"),
            };
            bench.not_run("throughput on a GPU", why);
        }
    }
}

fn prompt_id(model: &str, length: usize) -> (String, String) {
    (format!("throughput/prefill/{model}/cuda"), format!("tokens={length}"))
}

fn step_id(model: &str, context: usize, batch: usize) -> (String, String) {
    (format!("throughput/decode/{model}/cuda/context={context}"), format!("batch={batch}"))
}

fn ids(model: &str, grid: &Grid) -> Vec<(String, String)> {
    let prompts = grid.prompts.iter().map(|length| prompt_id(model, *length));
    let steps = grid.contexts.iter().flat_map(|&context| grid.batches.iter().map(move |&batch| (context, batch)));
    prompts.chain(steps.map(|(context, batch)| step_id(model, context, batch))).collect()
}

impl OnDevice {
    /// Loaded when it is first needed.
    fn new(name: &'static str, config: DeepseekV2Config, device: Arc<dyn Device>) -> Self {
        OnDevice { name, config, device, lm: OnceCell::new() }
    }

    fn lm(&self) -> Result<&CausalLm> {
        if let Some(lm) = self.lm.get() {
            return Ok(lm);
        }
        let mut progress = Progress::new(&format!("loading {}", self.name), 2 * self.config.parameter_count() as usize);
        let mut told = |bytes: usize| progress.add(bytes);
        let lm = CausalLm::load(&self.config, Dialect::Hf, &weights(), &self.device, SETTINGS, &mut told)?;
        Ok(self.lm.get_or_init(|| lm))
    }

    /// Runs new tokens and computes the logits of the last one of each sequence.
    fn forward(
        &self,
        ids: Array2<i64>,
        cache: &mut LatentCache,
        form: AttentionForm,
        tap: Option<&mut dyn Tap>,
    ) -> Result<()> {
        let input = CausalLmInput { input: ModelInput::ids(ids), logits_to_keep: LogitsToKeep::Last(1), labels: None };
        self.lm()?.forward(&input, Some(cache), form, tap)?;
        Ok(())
    }

    fn cache(&self, batch: usize, tokens: usize) -> Result<LatentCache> {
        LatentCache::new(&self.config, &self.device, SETTINGS.element, batch, tokens, PAGE)
    }

    /// A prompt in one piece; the device is done at the end.
    fn prompt(&self, text: usize, length: usize) -> Result<Duration> {
        self.lm()?;
        let mut cache = self.cache(1, length)?;
        let ids = tokens(&self.config, text, 1, length);
        self.device.synchronize()?;
        let start = Instant::now();
        self.forward(ids, &mut cache, AttentionForm::Expanded, None)?;
        self.device.synchronize()?;
        Ok(start.elapsed())
    }

    /// A cache of `context` tokens of each sequence, with room for one more. The context is longer than [`OWN`].
    fn filled(&self, batch: usize, context: usize) -> Result<LatentCache> {
        let mut cache = self.cache(batch, context + 1)?;
        let texts = batch.min(TEXTS);
        cache.reorder(&(0..texts).collect::<Vec<_>>())?;
        let shared = context - OWN;
        let ids = tokens(&self.config, 0, texts, shared);
        for from in (0..shared).step_by(PIECE) {
            let piece = ids.slice(s![.., from..shared.min(from + PIECE)]).to_owned();
            self.forward(piece, &mut cache, AttentionForm::Expanded, None)?;
        }
        cache.reorder(&(0..batch).map(|b| b % texts).collect::<Vec<_>>())?;
        let own = tokens(&self.config, TEXTS, batch, OWN);
        for at in 0..OWN {
            let next = own.slice(s![.., at..at + 1]).to_owned();
            self.forward(next, &mut cache, AttentionForm::Absorbed, None)?;
        }
        Ok(cache)
    }

    /// One more token of each sequence, which the cache then forgets.
    fn step(&self, cache: &mut LatentCache, step: usize, tap: Option<&mut dyn Tap>) -> Result<()> {
        let before = cache.lengths();
        let ids = tokens(&self.config, STEP_TEXTS + (step % STEPS) * 1000, cache.batch(), 1);
        self.forward(ids, cache, AttentionForm::Absorbed, tap)?;
        cache.crop(&before);
        Ok(())
    }

    /// So many steps one after another, without waiting between them; the device is done at the end.
    fn steps(&self, cache: &mut LatentCache, first: usize, count: u64) -> Result<Duration> {
        self.device.synchronize()?;
        let start = Instant::now();
        for step in 0..count {
            self.step(cache, first + step as usize, None)?;
        }
        self.device.synchronize()?;
        Ok(start.elapsed())
    }

    /// Different experts of a step, summed over the layers; the mean of the steps that are timed.
    fn mean_experts(&self, cache: &mut LatentCache) -> Result<f64> {
        let mut experts = Experts(0);
        for step in 0..STEPS {
            self.step(cache, step, Some(&mut experts))?;
        }
        Ok(experts.0 as f64 / STEPS as f64)
    }

    /// What of the memory for a batch is lacking, if any is.
    fn lacks(&self, batch: usize, context: usize) -> Result<Option<String>> {
        let size = CacheSize { batch, tokens: context + 1, page_size: PAGE };
        let pass = |new, keys, form| Pass { new, keys, form, masked: false, logits: 1 };
        let plan =
            |size, passes: &[Pass]| MemoryPlan::new(&self.config, Dialect::Hf, Head::CausalLm, SETTINGS, size, passes);
        let step = plan(size, &[pass(1, context + 1, AttentionForm::Absorbed)])?;
        // The texts are fed while there are no forks yet.
        let texts = CacheSize { batch: batch.min(TEXTS), ..size };
        let fed = plan(texts, &[pass(PIECE, context, AttentionForm::Expanded)])?;
        let loaded = if self.lm.get().is_some() { 0 } else { step.weights };
        let needed = loaded + step.cache + step.workspace.max(fed.workspace);
        let (free, _) = self.device.memory()?;
        let gigabytes = |bytes: usize| bytes as f64 / 1e9;
        let text = || format!("it needs {:.1} GB of memory, {:.1} are free", gigabytes(needed), gigabytes(free));
        Ok((needed > free).then(text))
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

fn measure(bench: &mut Bench, model: &OnDevice, grid: &Grid) -> Measured {
    const FITS: &str = "a pass that fits the device";
    let mut measured = Measured {
        name: model.name,
        work: Work::new(&model.config),
        experts_in_all: model.config.num_experts(),
        prompts: vec![],
        steps: vec![],
    };
    for &length in grid.prompts {
        let (group, name) = prompt_id(model.name, length);
        let text = Cell::new(0);
        let prompt = || {
            text.set(text.get() + 1);
            model.prompt(text.get(), length).expect(FITS)
        };
        let work = Some(Throughput::Elements(length as u64));
        let seconds = bench.time_after_setup(&group, &name, work, |iterations| (0..iterations).map(|_| prompt()).sum());
        measured.prompts.extend(seconds.map(|seconds| (length, seconds)));
    }
    for (context, batch) in grid.contexts.iter().flat_map(|&t| grid.batches.iter().map(move |&b| (t, b))) {
        let (group, name) = step_id(model.name, context, batch);
        if let Some(lacking) = model.lacks(batch, context).expect("a possible plan") {
            if bench.wants(&format!("{group}/{name}")) {
                bench.not_run(&format!("{group}/{name}"), lacking);
            }
            continue;
        }
        let filled: OnceCell<(RefCell<LatentCache>, f64)> = OnceCell::new();
        let mut first = 0;
        let seconds = bench.time_after_setup(&group, &name, Some(Throughput::Elements(batch as u64)), |iterations| {
            let (cache, _) = filled.get_or_init(|| {
                let mut cache = model.filled(batch, context).expect(FITS);
                let experts = model.mean_experts(&mut cache).expect(FITS);
                (RefCell::new(cache), experts)
            });
            let elapsed = model.steps(&mut cache.borrow_mut(), first, iterations).expect(FITS);
            first += iterations as usize;
            elapsed
        });
        let (Some(seconds), Some((_, experts))) = (seconds, filled.into_inner()) else { continue };
        let id = format!("throughput/experts/{}/cuda/context={context}/batch={batch}", model.name);
        let per_layer = experts / measured.work.moe_layers;
        bench.keep(Measurement::exact(id, "", Better::Neither, per_layer));
        measured.steps.push(Step { context, batch, seconds, experts });
    }
    measured
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
        ..mid()
    };
    let model = OnDevice::new("a tiny model", config, Emulated::new(Library::embedded()));
    let (batch, context) = (TEXTS + 1, OWN + 4);
    model.lacks(batch, context)?;
    model.prompt(1, 5)?;
    let mut cache = model.filled(batch, context)?;
    model.mean_experts(&mut cache)?;
    model.steps(&mut cache, 0, 2)?;
    Ok(())
}
