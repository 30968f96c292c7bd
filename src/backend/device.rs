//! The CUDA model as a backend: on the emulator, or on a GPU.

use std::sync::{Arc, OnceLock};

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::model::head::{CausalLm, CausalLmInput, SequenceClassifier};
use dsv2_optimized::model::plan::{CacheSize, MemoryPlan, Pass};
use dsv2_optimized::model::tap::Tap as DeviceTap;
use dsv2_optimized::model::{Model as DeviceModel, Settings as ModelSettings};
use dsv2_optimized::{Cuda, Device, Element, Emulated, Library, Summation, Tensor, Variant};
use dsv2_reference::config::Head;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{ATTN_SCORES, ATTN_WEIGHTS};
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexMap;
use ndarray::ArrayD;

use super::{Backend, Precision, Settings, Streaming, causal_lm_labels, classification_labels, model_input, recorded};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::inputs::{AttentionMask, Inputs};
use crate::memory;
use crate::planned::Planned;
use crate::taps::{AnyTap, Forced, again};
use crate::trace::Trace;

/// Tokens of a page of the cache.
const PAGE: usize = 16;

/// The kernels of the CUDA model.
#[derive(Clone, Copy, Debug)]
pub enum OnDevice {
    /// Run by the emulator: every access checked, no GPU needed.
    Emulator {
        /// Whether threads that race are an error, which takes about ten times as long.
        races: bool,
    },
    /// The same, with tensor cores that add up in this way.
    EmulatorAdding(Summation),
    /// On the first NVIDIA GPU.
    Cuda,
}

impl OnDevice {
    /// The GPU, or why there is none. It is looked for once.
    pub fn gpu() -> std::result::Result<Arc<dyn Device>, String> {
        static GPU: OnceLock<std::result::Result<Arc<Cuda>, String>> = OnceLock::new();
        let found = GPU.get_or_init(|| Cuda::new(Library::embedded()).map_err(|error| error.to_string()));
        found.clone().map(|gpu| gpu as _)
    }

    /// What the kernels run on.
    ///
    /// # Errors
    /// If there is no GPU, and one is meant.
    pub fn device(self) -> Result<Arc<dyn Device>> {
        let library = Library::embedded();
        match self {
            OnDevice::Emulator { races: true } => Ok(Emulated::watching_races(library)),
            OnDevice::Emulator { races: false } => Ok(Emulated::new(library)),
            OnDevice::EmulatorAdding(sums) => Ok(Emulated::with_sums(library, sums)),
            OnDevice::Cuda => OnDevice::gpu().map_err(|reason| Error::request("--backend", "a CUDA device", reason)),
        }
    }
}

impl Backend for OnDevice {
    fn name(&self) -> &'static str {
        match self {
            OnDevice::Emulator { .. } | OnDevice::EmulatorAdding(_) => "emulated",
            OnDevice::Cuda => "cuda",
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        &[Precision::F32, Precision::Bf16]
    }

    fn leaves_out(&self, stage: &str, _: &Settings<'_>) -> bool {
        is_fused(stage)
    }

    fn cannot_run(&self, case: &Case, settings: &Settings<'_>) -> Option<String> {
        let missing = if let OnDevice::Cuda = self { OnDevice::gpu().err() } else { None };
        missing
            .map(|reason| format!("not run: {reason}"))
            .or_else(|| cannot_run(settings))
            .or_else(|| cannot_run_case(case))
    }

    fn takes(&self, case: &Case, settings: &Settings<'_>, planned: &IndexMap<String, Planned>) -> Result<u64> {
        let on_host = memory::largest(planned).saturating_mul(16);
        match self {
            OnDevice::Cuda => Ok(on_host),
            OnDevice::Emulator { .. } | OnDevice::EmulatorAdding(_) => {
                let races = matches!(self, OnDevice::Emulator { races: true });
                let shadow = if races { SHADOW_OF_RACES } else { 0 };
                let of_device = device_memory(case, settings)?;
                Ok(sum([of_device, of_device / 4, of_device.saturating_mul(shadow), on_host, OF_MODULES]))
            }
        }
    }

    fn run(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap) -> Result<Trace> {
        recorded(self, case, settings, tap)
    }
}

impl Streaming for OnDevice {
    fn runs_some_layers(&self) -> bool {
        false
    }

    fn show(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap, sink: &mut dyn AnyTap) -> Result<()> {
        show(self.device()?, case, settings, tap, sink)
    }
}

/// What the emulator keeps of each byte of memory where it watches for races, at most: a history for each byte of a word, and
/// one for the word.
const SHADOW_OF_RACES: u64 = 120;
/// All kernels, parsed, and what a launch keeps of its threads.
pub(super) const OF_MODULES: u64 = 32 << 20;

/// What a run takes of a device: weights, cache, and the largest pass.
pub(super) fn device_memory(case: &Case, settings: &Settings<'_>) -> Result<u64> {
    let element = element(settings.precision).unwrap_or(Element::F32);
    let inputs = &case.inputs;
    let cache = CacheSize { batch: inputs.batch(), tokens: inputs.length(), page_size: PAGE };
    let mut keys = 0;
    let passes: Vec<Pass> = case
        .chunks
        .iter()
        .map(|&new| {
            keys += new;
            Pass { new, keys, form: settings.attention, masked: true, logits: new }
        })
        .collect();
    let settings = ModelSettings::new(element, Variant::Tuned);
    let plan = MemoryPlan::new(&case.config, case.dialect, case.head, settings, cache, &passes)?;
    Ok(plan.total() as u64)
}

pub(super) fn sum(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// Whether a stage is inside a fused kernel, which never writes it.
pub(super) fn is_fused(stage: &str) -> bool {
    Stage::parse(stage).is_some_and(|stage| [ATTN_SCORES, ATTN_WEIGHTS].contains(&stage.kind))
}

pub(super) fn element(precision: Precision) -> Option<Element> {
    match precision {
        Precision::F32 => Some(Element::F32),
        Precision::Bf16 => Some(Element::Bf16),
        Precision::F64 | Precision::Tf32 | Precision::F16 | Precision::Fp8 => None,
    }
}

pub(super) fn cannot_run(settings: &Settings<'_>) -> Option<String> {
    let Settings { precision, cache, plain_errors, .. } = settings;
    if element(*precision).is_none() {
        return Some(format!("the kernels compute in f32 and bf16, not in {precision}"));
    }
    if *cache != CacheFormat::Plain {
        return Some("the kernels keep their cache in the type they compute in".to_owned());
    }
    plain_errors.then(|| "the kernels make their own errors".to_owned())
}

pub(super) fn cannot_run_case(case: &Case) -> Option<String> {
    if matches!(&case.inputs.attention_mask, Some(AttentionMask::Additive(added)) if added.dim().1 > 1) {
        return Some("the kernels take a mask that is alike for all heads".to_owned());
    }
    let partly = case.inputs.new_tokens.is_some() || case.part.is_some();
    partly.then(|| "the kernels run all layers, and record all tokens".to_owned())
}

fn show(
    device: Arc<dyn Device>,
    case: &Case,
    settings: &Settings<'_>,
    tap: &mut dyn AnyTap,
    sink: &mut dyn AnyTap,
) -> Result<()> {
    let refused = |reason: String| Error::request("--backend", "a run that the kernels can do", reason);
    let element = element(settings.precision).ok_or_else(|| refused(cannot_run(settings).unwrap_or_default()))?;
    if let Some(reason) = cannot_run(settings).or_else(|| cannot_run_case(case)) {
        return Err(refused(reason));
    }
    let mut stages = Stages::new(case, settings, tap, sink);
    let model = Model::load(case, &device, ModelSettings::new(element, Variant::Tuned))?;
    model.feed(case, settings, &mut stages)
}

/// A model on a device, with what stands on it.
pub(super) enum Model {
    CausalLm(CausalLm),
    Classifier(SequenceClassifier),
    Bare(DeviceModel),
}

impl Model {
    fn load(case: &Case, device: &Arc<dyn Device>, settings: ModelSettings) -> Result<Self> {
        let (config, weights, quiet) = (&case.config, &*case.weights, &mut |_| ());
        Ok(match case.head {
            Head::CausalLm => Model::CausalLm(CausalLm::load(config, case.dialect, weights, device, settings, quiet)?),
            Head::SequenceClassification => {
                Model::Classifier(SequenceClassifier::load(config, case.dialect, weights, device, settings, quiet)?)
            }
            Head::Bare => Model::Bare(DeviceModel::load(config, case.dialect, weights, device, settings, quiet)?),
        })
    }

    /// Runs a case, chunk by chunk.
    pub(super) fn feed(&self, case: &Case, settings: &Settings<'_>, stages: &mut Stages<'_>) -> Result<()> {
        let model = match self {
            Model::CausalLm(model) => model.model(),
            Model::Classifier(model) => model.model(),
            Model::Bare(model) => model,
        };
        let (batch, capacity, element) = (case.inputs.batch(), case.inputs.length(), model.settings().element);
        let mut cache = match case.use_cache {
            true => Some(LatentCache::new(model.config(), model.device(), element, batch, capacity, PAGE)?),
            false => None,
        };
        for chunk in case.inputs.chunks(&case.chunks)? {
            self.forward(&chunk, cache.as_mut(), settings, stages)?;
        }
        Ok(())
    }

    fn forward(
        &self,
        inputs: &Inputs,
        cache: Option<&mut LatentCache>,
        settings: &Settings<'_>,
        stages: &mut Stages<'_>,
    ) -> Result<()> {
        let (input, form) = (model_input::<f32>(inputs), settings.attention);
        match self {
            Model::CausalLm(model) => {
                let labels = causal_lm_labels(inputs)?;
                let logits_to_keep = inputs.logits_to_keep.clone().unwrap_or_default();
                let input = CausalLmInput { input, logits_to_keep, labels };
                model.forward(&input, cache, form, Some(stages))?;
            }
            Model::Classifier(model) => {
                let labels = classification_labels(inputs)?;
                model.forward(&input, labels.as_ref(), cache, form, Some(stages))?;
            }
            Model::Bare(model) => {
                model.forward(&input, cache, form, Some(stages))?;
            }
        }
        Ok(())
    }
}

/// The judge's taps at the stages of a device: each stage is brought to the host, shown to them, and put back if one of
/// them changed it.
pub(super) struct Stages<'a> {
    replay: Option<Forced<'a>>,
    teacher: Option<Forced<'a>>,
    tap: &'a mut dyn AnyTap,
    sink: &'a mut dyn AnyTap,
    chosen: Option<super::Choice<'a>>,
}

impl<'a> Stages<'a> {
    pub(super) fn new(case: &Case, settings: &Settings<'a>, tap: &'a mut dyn AnyTap, sink: &'a mut dyn AnyTap) -> Self {
        let forced = |trace| Forced::new(trace, case.inputs.tokens.dim());
        let (replay, teacher) = (settings.replay.map(forced), settings.teacher.map(forced));
        Stages { replay, teacher, tap, sink, chosen: settings.stages }
    }

    fn show(&mut self, name: &str, mut value: StageValue<'_, f32>) {
        if let Some(replay) = &mut self.replay {
            Tap::<f32>::stage(replay, name, again(&mut value));
        }
        Tap::<f32>::stage(self.tap, name, again(&mut value));
        Tap::<f32>::stage(self.sink, name, again(&mut value));
        if let Some(teacher) = &mut self.teacher {
            Tap::<f32>::stage(teacher, name, again(&mut value));
        }
    }
}

impl DeviceTap for Stages<'_> {
    fn wants(&self, stage: &str) -> bool {
        // A teacher gives the inputs of every stage, those of attention's output too. Without one the kernels that make
        // scores do not run: their roundings are others than those of the fused kernels, which have no scores.
        if self.teacher.is_some() {
            return true;
        }
        let replayed = self.replay.is_some() && stage.ends_with(".topk_indices");
        !is_fused(stage) && (replayed || self.chosen.is_none_or(|chosen| chosen(stage)))
    }

    fn stage(&mut self, name: &str, value: &Tensor) -> dsv2_optimized::Result<bool> {
        let misshapen = |error: ndarray::ShapeError| {
            dsv2_optimized::Error::operand("tap", "shape", format!("{:?}", value.shape()), error)
        };
        if value.element() == Element::I32 {
            let before: Vec<i64> = value.to_i32()?.into_iter().map(i64::from).collect();
            let mut array = ArrayD::from_shape_vec(value.shape(), before.clone()).map_err(misshapen)?;
            self.show(name, StageValue::Index(array.view_mut()));
            let changed = !array.iter().eq(&before);
            if changed {
                // An index that is none stays none: it is refused where it is used.
                let values: Vec<i32> = array.iter().map(|index| i32::try_from(*index).unwrap_or(-1)).collect();
                value.write_i32(&values)?;
            }
            return Ok(changed);
        }
        let before = value.to_f32()?;
        let mut array = ArrayD::from_shape_vec(value.shape(), before.clone()).map_err(misshapen)?;
        self.show(name, StageValue::Real(array.view_mut()));
        let changed = array.iter().zip(&before).any(|(after, before)| after.to_bits() != before.to_bits());
        if changed {
            value.write_f32(&array.iter().copied().collect::<Vec<_>>())?;
        }
        Ok(changed)
    }
}
