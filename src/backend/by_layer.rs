//! A run layer by layer: all chunks of the sequence go through a layer before any goes through the next. It computes the same, and
//! needs the cache of one layer only.

use dsv2_reference::Real;
use dsv2_reference::model::Run;
use dsv2_reference::model::cache::LatentCache;
use dsv2_reference::model::causal_lm::CausalLmInput;
use dsv2_reference::model::layers::DecoderLayers;
use dsv2_reference::stage::table::{COS, SIN};
use dsv2_reference::tap::{StageValue, Tap};
use indexmap::IndexMap;
use ndarray::{Array3, ArrayD};

use super::taps::Taps;
use super::{Model, Reference, Settings, causal_lm_labels, classification_labels, model_input};
use crate::case::Case;
use crate::error::Result;
use crate::inputs::Inputs;
use crate::precision::{Choice, Precision};
use crate::taps::AnyTap;

impl Reference {
    /// Runs a case layer by layer and keeps nothing: `sink` sees each stage of each chunk once, also of the tokens before those that
    /// are looked at, and what it leaves there is what the computation goes on with. `tap` sees each before. `held` are the stages
    /// that the sink leaves otherwise.
    ///
    /// # Errors
    /// If the case is refused.
    pub(crate) fn show_by_layer(
        &self,
        case: &Case,
        settings: &Settings<'_>,
        held: Choice<'_>,
        tap: &mut dyn AnyTap,
        sink: &mut dyn AnyTap,
    ) -> Result<()> {
        match settings.precision {
            Precision::F64 => show::<f64>(case, settings, held, tap, sink),
            _ => show::<f32>(case, settings, held, tap, sink),
        }
    }
}

fn show<T: Real>(
    case: &Case,
    settings: &Settings<'_>,
    held: Choice<'_>,
    tap: &mut dyn Tap<T>,
    sink: &mut dyn Tap<T>,
) -> Result<()> {
    let taps = Taps::new(case, settings, held, tap, sink).that_show_all();
    let mut taps = OneTable { taps, known: IndexMap::new() };
    let model = Model::<T>::of(case, settings)?;
    let run = Run { attention: settings.attention, ..Run::default() };
    let chunks = case.inputs.chunks(&case.chunks)?;
    let mut streams = Vec::with_capacity(chunks.len());
    for chunk in &chunks {
        streams.push(model.entering(chunk, taps.taps.fed, &mut taps)?);
        taps.taps.fed += chunk.length();
    }
    let layers = case.part.as_ref().map_or(0..case.config.num_hidden_layers, |part| part.layers.0.clone());
    for layer in layers {
        let mut cache =
            case.use_cache.then(|| LatentCache::with_format(&case.config, case.inputs.batch(), settings.cache));
        taps.taps.fed = 0;
        for (chunk, stream) in chunks.iter().zip(&mut streams) {
            let hidden = std::mem::replace(stream, Array3::zeros((0, 0, 0)));
            *stream =
                model.layers().forward_layer(layer, hidden, &model_input(chunk), cache.as_mut(), &run, &mut taps)?;
            taps.taps.fed += chunk.length();
        }
    }
    taps.taps.fed = 0;
    for (chunk, stream) in chunks.iter().zip(streams) {
        model.after_layers(chunk, &stream, &mut taps)?;
        taps.taps.fed += chunk.length();
    }
    Ok(())
}

impl<T: Real> Model<T> {
    fn layers(&self) -> &DecoderLayers<T> {
        match self {
            Model::CausalLm(model) => model.model().layers(),
            Model::Classifier(model) => model.model().layers(),
            Model::Bare(model) => model.layers(),
            Model::Part(layers, _) => layers,
        }
    }

    /// What a chunk has in the layers' place, that comes after the first `fed` tokens.
    fn entering(&self, chunk: &Inputs, fed: usize, tap: &mut dyn Tap<T>) -> Result<Array3<T>> {
        let input = model_input(chunk);
        Ok(match self {
            Model::CausalLm(model) => model.model().embedded(&input, tap)?,
            Model::Classifier(model) => model.model().embedded(&input, tap)?,
            Model::Bare(model) => model.embedded(&input, tap)?,
            Model::Part(_, stream) => stream.of(chunk, fed, &input, tap)?,
        })
    }

    fn after_layers(&self, chunk: &Inputs, stream: &Array3<T>, tap: &mut dyn Tap<T>) -> Result<()> {
        let input = model_input(chunk);
        match self {
            Model::CausalLm(model) => {
                let labels = causal_lm_labels(chunk)?;
                let logits_to_keep = chunk.logits_to_keep.clone().unwrap_or_default();
                model.after_layers(stream, &CausalLmInput { input, logits_to_keep, labels }, tap)?;
            }
            Model::Classifier(model) => {
                model.after_layers(stream, &input, classification_labels(chunk)?.as_ref(), tap)?;
            }
            Model::Bare(model) => _ = model.normed(stream, tap),
            Model::Part(..) => {}
        }
        Ok(())
    }
}

/// Each layer makes the rotary tables anew: those of the first are shown, and all others have what was left there.
struct OneTable<'a, T> {
    taps: Taps<'a, T>,
    /// By the table and how much had been fed.
    known: IndexMap<(String, usize), ArrayD<T>>,
}

impl<T: Real> Tap<T> for OneTable<'_, T> {
    fn stage(&mut self, name: &str, mut value: StageValue<'_, T>) {
        let StageValue::Real(table) = &mut value else { return self.taps.stage(name, value) };
        if name != COS && name != SIN {
            return self.taps.stage(name, value);
        }
        let key = (name.to_owned(), self.taps.fed);
        if let Some(known) = self.known.get(&key) {
            table.assign(known);
            return;
        }
        self.taps.stage(name, StageValue::Real(table.view_mut()));
        self.known.insert(key, table.to_owned());
    }
}
