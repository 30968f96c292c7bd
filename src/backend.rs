//! Backends: whatever can run a case and say what every stage was.

mod by_layer;
mod device;
mod ranks;
mod taps;

use std::sync::Arc;

use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::{CacheFormat, LatentCache};
use dsv2_reference::model::causal_lm::{CausalLmInput, DeepseekV2ForCausalLM};
use dsv2_reference::model::layers::DecoderLayers;
use dsv2_reference::model::loss::{CausalLmLabels, ClassificationLabels};
use dsv2_reference::model::mask;
use dsv2_reference::model::sequence_classification::DeepseekV2ForSequenceClassification;
use dsv2_reference::model::{DeepseekV2Model, ModelInput, Run, Tokens, embed};
use dsv2_reference::stage::table::EMBED_TOKENS;
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{Real, Tensor};
use indexmap::IndexMap;
use ndarray::{Array3, Axis, Slice};

use crate::case::{Case, EMBEDDING, Entering, Part};
use crate::error::{Error, Result};
use crate::inputs::{AttentionMask, Inputs, Labels};
use crate::memory;
use crate::planned::Planned;
pub use crate::precision::{Choice, Precision};
use crate::taps::{AnyTap, DrawnWeights, PartialSums, Recorder, fp8_operands};
use crate::trace::Trace;

use taps::Taps;

pub use device::OnDevice;
pub use ranks::OnRanks;

/// How to run a case.
#[derive(Clone, Copy, Default)]
pub struct Settings<'a> {
    /// What to compute in.
    pub precision: Precision,
    /// Which form of attention.
    pub attention: AttentionForm,
    /// Which stages to record; all, if there is no choice.
    pub stages: Option<Choice<'a>>,
    /// How the cache keeps its latents and keys.
    pub cache: CacheFormat,
    /// Whether it errs as much as a plain implementation ([`crate::taps::storage::PlainErrors`]).
    pub plain_errors: bool,
    /// Which of many plain implementations that is: the first rounds where the reference does, others err at random
    /// ([`crate::taps::Drawn`]).
    pub draw: u64,
    /// A trace whose stages (as a rule, its choice of experts) take the place of the computed ones.
    pub replay: Option<&'a Trace>,
    /// The same, but what is recorded is what was computed: each stage as it follows from the trace's own values of the
    /// stages before it.
    pub teacher: Option<&'a Trace>,
}

/// Something that runs cases.
pub trait Backend: Sync {
    /// What it is called on the command line and in reports.
    fn name(&self) -> &'static str;

    /// What it computes in where nobody says.
    fn precisions(&self) -> &'static [Precision] {
        &[Precision::F32]
    }

    /// Why it cannot run this case, if it cannot.
    fn cannot_run(&self, case: &Case, settings: &Settings<'_>) -> Option<String> {
        let _ = (case, settings);
        None
    }

    /// Whether it has no tensor for a stage, which then need not be in its trace: what follows from it is judged from further
    /// back.
    fn leaves_out(&self, stage: &str, settings: &Settings<'_>) -> bool {
        let _ = (stage, settings);
        false
    }

    /// Of how many ranks' parts its sums are made.
    fn partial_sums(&self) -> PartialSums {
        PartialSums::default()
    }

    /// About how many bytes of this machine's memory a run takes beside what it records. `planned` are all stages of the case.
    ///
    /// # Errors
    /// If the case is impossible.
    fn takes(&self, case: &Case, settings: &Settings<'_>, planned: &IndexMap<String, Planned>) -> Result<u64> {
        Ok(memory::of_run(case, planned, settings.attention, settings.precision))
    }

    /// Runs a case and records its stages. `tap` sees each before it is recorded, and may change it.
    ///
    /// # Errors
    /// If the case is refused.
    fn run(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap) -> Result<Trace>;
}

/// A backend whose stages can be looked at while it runs, one after another.
pub trait Streaming: Backend {
    /// Whether it runs some layers alone, or whatever the case: all of them.
    fn runs_some_layers(&self) -> bool;

    /// Runs a case and keeps nothing: `sink` sees each stage as it is stored, chunk by chunk (those that `settings` choose, at
    /// least), and what it leaves there is what the computation goes on with. `tap` sees each before, and may change it.
    ///
    /// # Errors
    /// If the case is refused.
    fn show(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap, sink: &mut dyn AnyTap) -> Result<()>;
}

/// What is shown of a run, joined.
fn recorded(backend: &impl Streaming, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap) -> Result<Trace> {
    let mut recorder = Recorder::new(settings.precision, settings.stages);
    backend.show(case, settings, tap, &mut recorder)?;
    Trace::join(recorder.into_chunks(), case.inputs.batch())
}

/// The model written to be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn precisions(&self) -> &'static [Precision] {
        &[Precision::F64, Precision::F32]
    }

    fn run(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap) -> Result<Trace> {
        recorded(self, case, settings, tap)
    }
}

impl Streaming for Reference {
    fn runs_some_layers(&self) -> bool {
        true
    }

    fn show(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap, sink: &mut dyn AnyTap) -> Result<()> {
        match settings.precision {
            Precision::F64 => show::<f64>(case, settings, tap, sink),
            _ => show::<f32>(case, settings, tap, sink),
        }
    }
}

fn show<T: Real>(case: &Case, settings: &Settings<'_>, tap: &mut dyn Tap<T>, sink: &mut dyn Tap<T>) -> Result<()> {
    let held = |name: &str| settings.teacher.is_some_and(|teacher| teacher.get(name).is_some());
    let mut taps = Taps::new(case, settings, &held, tap, sink);
    let model = Model::<T>::of(case, settings)?;
    let mut cache = case.use_cache.then(|| LatentCache::with_format(&case.config, case.inputs.batch(), settings.cache));
    let run = Run { attention: settings.attention, ..Run::default() };
    for chunk in case.inputs.chunks(&case.chunks)? {
        model.forward(&chunk, taps.fed, cache.as_mut(), &run, &mut taps)?;
        taps.fed += chunk.length();
    }
    Ok(())
}

enum Model<T> {
    CausalLm(DeepseekV2ForCausalLM<T>),
    Classifier(DeepseekV2ForSequenceClassification<T>),
    Bare(DeepseekV2Model<T>),
    /// Some layers, and what enters them.
    Part(DecoderLayers<T>, Stream),
}

/// The residual stream that enters some layers.
enum Stream {
    /// Of all tokens.
    Given(Arc<Array3<f64>>),
    /// The embedding, of which this is the weight.
    Embedded(Tensor),
}

impl Stream {
    /// What of it a chunk has that comes after the first `fed` tokens.
    fn of<T: Real>(
        &self,
        chunk: &Inputs,
        fed: usize,
        input: &ModelInput<T>,
        tap: &mut dyn Tap<T>,
    ) -> Result<Array3<T>> {
        Ok(match self {
            Stream::Given(stream) => {
                stream.slice_axis(Axis(1), Slice::from(fed..fed + chunk.length())).mapv(T::from_f64)
            }
            Stream::Embedded(weight) => {
                let mut hidden = embed(weight, &input.tokens)?;
                tap.stage(EMBED_TOKENS, StageValue::Real(hidden.view_mut().into_dyn()));
                hidden
            }
        })
    }
}

impl<T: Real> Model<T> {
    /// As a run with these settings has it.
    fn of(case: &Case, settings: &Settings<'_>) -> Result<Self> {
        let errors = DrawnWeights { config: &case.config, precision: settings.precision, draw: settings.draw };
        let with_errors = errors.of(&*case.weights);
        let drawn = settings.plain_errors && settings.draw > 0;
        let weights: &dyn WeightSource = if drawn { &with_errors } else { &*case.weights };
        match settings.precision {
            Precision::Fp8 => Self::load(case, &fp8_operands(weights, case)?),
            _ => Self::load(case, weights),
        }
    }

    fn load(case: &Case, weights: &dyn WeightSource) -> Result<Self> {
        let config = &case.config;
        if let Some(Part { layers, entering }) = &case.part {
            let stream = match entering {
                Entering::Given(stream) => Stream::Given(stream.clone()),
                Entering::Embedding => {
                    Stream::Embedded(weights.tensor(EMBEDDING, &[config.vocab_size, config.hidden_size])?)
                }
                Entering::OfDump => {
                    return Err(Error::request("--layers", "the residual stream that enters them", "none"));
                }
            };
            let layers = DecoderLayers::load(config, case.dialect, layers.0.clone(), weights)?;
            return Ok(Model::Part(layers, stream));
        }
        Ok(match case.head {
            Head::CausalLm => Model::CausalLm(DeepseekV2ForCausalLM::load(config, case.dialect, weights)?),
            Head::SequenceClassification => {
                Model::Classifier(DeepseekV2ForSequenceClassification::load(config, case.dialect, weights)?)
            }
            Head::Bare => Model::Bare(DeepseekV2Model::load(config, case.dialect, weights)?),
        })
    }

    /// Feeds a chunk of the sequence that comes after the first `fed` tokens.
    fn forward(
        &self,
        inputs: &Inputs,
        fed: usize,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut dyn Tap<T>,
    ) -> Result<()> {
        let input = model_input(inputs);
        match self {
            Model::CausalLm(model) => {
                let labels = causal_lm_labels(inputs)?;
                let logits_to_keep = inputs.logits_to_keep.clone().unwrap_or_default();
                model.forward(&CausalLmInput { input, logits_to_keep, labels }, cache, run, tap)?;
            }
            Model::Classifier(model) => {
                let labels = classification_labels(inputs)?;
                model.forward(&input, labels.as_ref(), cache, run, tap)?;
            }
            Model::Bare(model) => {
                model.forward(&input, cache, run, tap)?;
            }
            Model::Part(layers, stream) => {
                let hidden = stream.of(inputs, fed, &input, tap)?;
                layers.forward(hidden, &input, cache, run, tap)?;
            }
        }
        Ok(())
    }
}

/// The labels of next-token prediction.
fn causal_lm_labels(inputs: &Inputs) -> Result<Option<CausalLmLabels>> {
    match &inputs.labels {
        None => Ok(None),
        Some(Labels::Ids(labels)) => Ok(Some(CausalLmLabels {
            num_items_in_batch: inputs.num_items_in_batch.map(|items| items as f64),
            ..CausalLmLabels::new(labels.clone())
        })),
        Some(_) => Err(Error::input("labels", "token ids", "labels of a classifier")),
    }
}

/// The labels of a classifier.
fn classification_labels<T: Real>(inputs: &Inputs) -> Result<Option<ClassificationLabels<T>>> {
    match &inputs.labels {
        None => Ok(None),
        Some(Labels::Classes(classes)) => Ok(Some(ClassificationLabels::Class(classes.clone()))),
        Some(Labels::Targets(targets)) => Ok(Some(ClassificationLabels::Values(targets.mapv(T::from_f32)))),
        Some(Labels::Ids(_)) => Err(Error::input("labels", "labels of a classifier", "token ids")),
    }
}

fn model_input<T: Real>(inputs: &Inputs) -> ModelInput<T> {
    ModelInput {
        tokens: match &inputs.tokens {
            Tokens::InputIds(ids) => Tokens::InputIds(ids.clone()),
            Tokens::InputsEmbeds(embeds) => Tokens::InputsEmbeds(embeds.mapv(T::from_f32)),
        },
        attention_mask: inputs.attention_mask.as_ref().map(|attention_mask| match attention_mask {
            AttentionMask::Padding(attend) => mask::AttentionMask::Padding(attend.clone()),
            AttentionMask::Additive(added) => mask::AttentionMask::Additive(added.mapv(T::from_f32)),
        }),
        position_ids: inputs.position_ids.clone(),
    }
}
