//! Next-token logits, and the loss of a text.

use std::sync::Arc;

use dsv2_reference::config::Head;
use dsv2_reference::model::ModelInput;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::causal_lm::LogitsToKeep;
use dsv2_reference::model::loss::{CausalLmLabels, IGNORE_INDEX};
use dsv2_reference::paper::parallel::Shard;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect};

use super::{again, gather, show_loss};
use crate::collective::emulated::Rank;
use crate::model::cache::LatentCache;
use crate::model::linear::product;
use crate::model::parallel::{Layout, Share};
use crate::model::tap::{Scope, Tap};
use crate::model::weights::{Loader, Source};
use crate::model::{Model, Settings};
use crate::operators::loss::{cross_entropy, mean_loss};
use crate::{Device, Element, Error, Result, Tensor};

/// The model with a language-modelling head.
#[derive(Debug)]
pub struct CausalLm {
    model: Model,
    /// \[V,D\]
    lm_head: Tensor,
}

/// The input of a forward pass with a language-modelling head.
#[derive(Clone, Debug)]
pub struct CausalLmInput {
    /// What the model sees.
    pub input: ModelInput<f32>,
    /// For which positions to compute logits.
    pub logits_to_keep: LogitsToKeep,
    /// If given, a loss is computed.
    pub labels: Option<CausalLmLabels>,
}

impl CausalLm {
    /// Takes `model.*` and `lm_head.weight` (if tied: the embedding) from `weights`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(
        config: &DeepseekV2Config,
        dialect: Dialect,
        weights: &dyn WeightSource,
        device: &Arc<dyn Device>,
        settings: Settings,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let source = Source::Host(weights);
        CausalLm::load_from(Loader { config, dialect, source, device, settings, share: None, progress })
    }

    /// The same with generated weights, to the bit, which the device makes: the host has no part in it.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_generated(
        config: &DeepseekV2Config,
        dialect: Dialect,
        weights: &GeneratedWeights,
        device: &Arc<dyn Device>,
        settings: Settings,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let source = Source::Generated(weights);
        CausalLm::load_from(Loader { config, dialect, source, device, settings, share: None, progress })
    }

    /// What a rank has of a model that is split as the layout says. Of `weights` no tensor is read whose part it has not.
    ///
    /// # Errors
    /// As [`CausalLm::load`]; also if the model cannot be split so.
    pub fn load_share(
        config: &DeepseekV2Config,
        dialect: Dialect,
        weights: &dyn WeightSource,
        (rank, layout): (&Rank, Layout),
        settings: Settings,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        layout.check(config, dialect, rank.count())?;
        let share = Share::new(layout, rank)?;
        let (of_rank, part) = (share.tensor_rank().config(config)?, Shard::new(weights, share.tensor_rank()));
        let (config, source, device, share) = (&of_rank, Source::Host(&part), rank.device(), Some(share));
        CausalLm::load_from(Loader { config, dialect, source, device, settings, share, progress })
    }

    fn load_from(mut loader: Loader) -> Result<Self> {
        loader.check("CausalLm::load", Some(Head::CausalLm))?;
        let model = Model::load_from(&mut loader)?;
        let config = loader.config;
        let lm_head = if config.tie_word_embeddings {
            model.embed_tokens().clone()
        } else {
            loader.load("lm_head.weight", &[config.vocab_size, config.hidden_size])?
        };
        Ok(CausalLm { model, lm_head })
    }

    /// The model without the head.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// \[V,D\]
    pub(in crate::model) fn lm_head(&self) -> &Tensor {
        &self.lm_head
    }

    /// Logits \[B,kept,V\], and the loss if there are labels.
    ///
    /// # Errors
    /// As [`Model::forward`]; also if labels or `logits_to_keep` do not fit.
    pub fn forward(
        &self,
        input: &CausalLmInput,
        cache: Option<&mut LatentCache>,
        form: AttentionForm,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(Tensor, Option<f32>)> {
        LatentCache::undo_on_error(cache, |cache| {
            let (batch, length) = input.input.tokens.dim();
            let (rows, shape) = kept(&input.logits_to_keep, batch, length)?;
            let hidden = self.model.forward(&input.input, cache, form, again(&mut tap))?;
            let tap = &mut Scope::root(tap);
            let all = rows.iter().copied().eq(0..(batch * length) as i32);
            let hidden = if all { hidden } else { gather(self.model.settings.variant, &hidden, &rows)? };
            let vocab = self.lm_head.shape()[0];
            let logits = Tensor::empty(hidden.device(), hidden.element(), &[rows.len(), vocab])?;
            product(self.model.settings, &hidden, &self.lm_head, None, &logits)?;
            let shaped = logits.reshape(&[shape[0], shape[1], vocab])?;
            tap.show("lm_head", || Ok(shaped.clone()))?;
            let loss = match &input.labels {
                None => None,
                Some(labels) => {
                    let loss = self.loss(&logits, shape, labels)?;
                    show_loss(loss, &hidden, tap)?;
                    Some(loss)
                }
            };
            Ok((shaped, loss))
        })
    }

    /// The mean cross-entropy of the next token; the last position has none.
    fn loss(&self, logits: &Tensor, [batch, length]: [usize; 2], labels: &CausalLmLabels) -> Result<f32> {
        let operand = |expected: String, found: String| Error::operand("loss", "labels", expected, found);
        if labels.labels.dim() != (batch, length) {
            return Err(operand(format!("shape [{batch}, {length}]"), format!("{:?}", labels.labels.shape())));
        }
        let shift = usize::from(!labels.shifted);
        let vocab = logits.shape()[1];
        let mut targets = Vec::with_capacity(batch * length);
        for (b, s) in (0..batch).flat_map(|b| (0..length).map(move |s| (b, s))) {
            let label = labels.labels.get([b, s + shift]).copied().filter(|label| *label != labels.ignore_index);
            targets.push(match label {
                None => IGNORE_INDEX as i32,
                Some(label) if (0..vocab as i64).contains(&label) => label as i32,
                Some(label) => {
                    let expected = format!("0 to {}, or {} to ignore", vocab - 1, labels.ignore_index);
                    return Err(operand(expected, label.to_string()));
                }
            });
        }
        let device = logits.device();
        let targets = Tensor::from_i32(device, &[targets.len()], &targets)?;
        let losses = Tensor::empty(device, Element::F32, &[batch * length])?;
        let (variant, ignored) = (self.model.settings.variant, IGNORE_INDEX as i32);
        cross_entropy(variant, logits, &targets, ignored, &losses)?;
        let loss = Tensor::empty(device, Element::F32, &[1])?;
        mean_loss(variant, &losses, &targets, ignored, labels.num_items_in_batch.map(|items| items as f32), &loss)?;
        Ok(loss.to_f32()?[0])
    }
}

/// The rows of the hidden states \[B S\] for which logits are wanted, and their shape \[B,kept\].
fn kept(wanted: &LogitsToKeep, batch: usize, length: usize) -> Result<(Vec<i32>, [usize; 2])> {
    let refused = |expected: String, found: String| Error::operand("forward", "logits_to_keep", expected, found);
    let place = |b: usize, at: i64| {
        let from_start = if at < 0 { at + length as i64 } else { at };
        let there = (0..length as i64).contains(&from_start);
        let row = (b * length) as i64 + from_start;
        there
            .then_some(row as i32)
            .ok_or_else(|| refused(format!("positions -{length} to {}", length - 1), at.to_string()))
    };
    let of_all = |positions: Vec<i64>| {
        let count = positions.len();
        let places = (0..batch).flat_map(|b| positions.iter().map(move |at| (b, *at)));
        Ok((places.map(|(b, at)| place(b, at)).collect::<Result<Vec<_>>>()?, [batch, count]))
    };
    match wanted {
        // Python's hidden[:, -k:]: the last k; all for 0; all but the first m for -m.
        LogitsToKeep::Last(k) => {
            let first = if *k > 0 { length.saturating_sub(*k as usize) } else { length.min(k.unsigned_abs() as usize) };
            of_all((first as i64..length as i64).collect())
        }
        LogitsToKeep::Positions(positions) => of_all(positions.clone()),
        LogitsToKeep::PerSample(positions) if positions.nrows() != batch => {
            Err(refused(format!("shape [{batch}, n]"), format!("{:?}", positions.shape())))
        }
        LogitsToKeep::PerSample(positions) => {
            let rows = positions.indexed_iter().map(|((b, _), at)| place(b, *at)).collect::<Result<Vec<_>>>()?;
            Ok((rows, [batch, positions.ncols()]))
        }
        LogitsToKeep::Mask(mask) if mask.dim() != (batch, length) => {
            Err(refused(format!("shape [{batch}, {length}]"), format!("{:?}", mask.shape())))
        }
        LogitsToKeep::Mask(mask) => {
            let rows: Vec<i32> = (0..).zip(mask).filter_map(|(row, keep)| keep.then_some(row)).collect();
            let count = rows.len();
            Ok((rows, [1, count]))
        }
    }
}
