//! What stands on top of the model: next-token logits and their loss, or a score for each label.

use std::sync::Arc;

use dsv2_reference::config::Head;
use dsv2_reference::model::ModelInput;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::causal_lm::LogitsToKeep;
use dsv2_reference::model::loss::{CausalLmLabels, ClassificationLabels, IGNORE_INDEX, ProblemType};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect};

use super::cache::LatentCache;
use super::linear::product;
use super::tap::{Scope, Tap};
use super::weights::{Loader, Source};
use super::{Model, Settings, plan};
use crate::operators::embedding::embedding;
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
        CausalLm::load_from(config, dialect, Source::Host(weights), device, settings, progress)
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
        CausalLm::load_from(config, dialect, Source::Generated(weights), device, settings, progress)
    }

    fn load_from(
        config: &DeepseekV2Config,
        dialect: Dialect,
        source: Source,
        device: &Arc<dyn Device>,
        settings: Settings,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        config.validate(dialect)?;
        settings.check(device)?;
        let needed = plan::weights(config, dialect, Some(Head::CausalLm), settings.element);
        plan::check("CausalLm::load", device, needed)?;
        let model = Model::load_from(config, dialect, source, device, settings, progress)?;
        let lm_head = if config.tie_word_embeddings {
            model.embed_tokens().clone()
        } else {
            let mut loader = Loader { source, device, element: settings.element, progress };
            loader.load("lm_head.weight", &[config.vocab_size, config.hidden_size])?
        };
        Ok(CausalLm { model, lm_head })
    }

    /// The model without the head.
    pub fn model(&self) -> &Model {
        &self.model
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
        tap: Option<&mut dyn Tap>,
    ) -> Result<(Tensor, Option<f32>)> {
        LatentCache::undo_on_error(cache, |cache| self.forward_unguarded(input, cache, form, tap))
    }

    fn forward_unguarded(
        &self,
        input: &CausalLmInput,
        cache: Option<&mut LatentCache>,
        form: AttentionForm,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(Tensor, Option<f32>)> {
        let (batch, length) = input.input.tokens.dim();
        let (rows, shape) = kept(&input.logits_to_keep, batch, length)?;
        let hidden = self.model.forward(&input.input, cache, form, again(&mut tap))?;
        let tap = &mut Scope::root(tap);
        let all = rows.iter().copied().eq(0..(batch * length) as i32);
        let hidden = if all { hidden } else { gather(&self.model, &hidden, &rows)? };
        let vocab = self.lm_head.shape()[0];
        let logits = Tensor::empty(hidden.device(), hidden.element(), &[rows.len(), vocab])?;
        product(self.model.settings, &hidden, &self.lm_head, None, &logits)?;
        let shaped = logits.reshape(&[shape[0], shape[1], vocab])?;
        tap.show("lm_head", || Ok(shaped.clone()))?;
        let loss = match &input.labels {
            None => None,
            Some(labels) => {
                let loss = self.loss(&logits, shape, labels)?;
                let shown = Tensor::from_f32(hidden.device(), Element::F32, &[], &[loss])?;
                tap.show("loss", || Ok(shown.clone()))?;
                Some(loss)
            }
        };
        Ok((shaped, loss))
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

/// Some rows of \[N,D\]; looking up rows of a table is what an embedding does.
fn gather(model: &Model, hidden: &Tensor, rows: &[i32]) -> Result<Tensor> {
    let rows = Tensor::from_i32(hidden.device(), &[rows.len()], rows)?;
    let picked = Tensor::empty(hidden.device(), hidden.element(), &[rows.len(), hidden.shape()[1]])?;
    embedding(model.settings.variant, &rows, hidden, &picked)?;
    Ok(picked)
}

/// Lends a tap for the length of a call.
fn again<'a>(tap: &'a mut Option<&mut dyn Tap>) -> Option<&'a mut dyn Tap> {
    match tap {
        Some(tap) => Some(*tap),
        None => None,
    }
}

/// The model with a classification head.
#[derive(Debug)]
pub struct SequenceClassifier {
    model: Model,
    /// \[num_labels,D\]
    score: Tensor,
}

impl SequenceClassifier {
    /// Takes `model.*` and `score.weight` from `weights`.
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
        config.validate(dialect)?;
        settings.check(device)?;
        let needed = plan::weights(config, dialect, Some(Head::SequenceClassification), settings.element);
        plan::check("SequenceClassifier::load", device, needed)?;
        let model = Model::load(config, dialect, weights, device, settings, progress)?;
        let mut loader = Loader { source: Source::Host(weights), device, element: settings.element, progress };
        let score = loader.load("score.weight", &[config.num_labels(), config.hidden_size])?;
        Ok(SequenceClassifier { model, score })
    }

    /// The model without the head.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Scores of every position (stage `score` \[B,S,num_labels\]), those of one position of each sequence,
    /// \[B,num_labels\], and their loss if there are labels.
    ///
    /// # Errors
    /// As [`Model::forward`]; also if the labels do not fit, or there is no `pad_token_id` to find the ends of several
    /// sequences.
    pub fn forward(
        &self,
        input: &ModelInput<f32>,
        labels: Option<&ClassificationLabels<f32>>,
        cache: Option<&mut LatentCache>,
        form: AttentionForm,
        tap: Option<&mut dyn Tap>,
    ) -> Result<(Tensor, Option<f32>)> {
        LatentCache::undo_on_error(cache, |cache| self.forward_unguarded(input, labels, cache, form, tap))
    }

    fn forward_unguarded(
        &self,
        input: &ModelInput<f32>,
        labels: Option<&ClassificationLabels<f32>>,
        cache: Option<&mut LatentCache>,
        form: AttentionForm,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(Tensor, Option<f32>)> {
        let (batch, length) = input.tokens.dim();
        let rows = self.pooled_rows(input)?;
        let hidden = self.model.forward(input, cache, form, again(&mut tap))?;
        let tap = &mut Scope::root(tap);
        let columns = self.score.shape()[0];
        let score = Tensor::empty(hidden.device(), hidden.element(), &[batch * length, columns])?;
        product(self.model.settings, &hidden, &self.score, None, &score)?;
        tap.show("score", || score.reshape(&[batch, length, columns]))?;
        let pooled = gather(&self.model, &score, &rows)?;
        tap.show("pooled_logits", || Ok(pooled.clone()))?;
        let Some(labels) = labels else { return Ok((pooled, None)) };
        let loss = self.loss(&pooled, labels)?;
        let shown = Tensor::from_f32(pooled.device(), Element::F32, &[], &[loss])?;
        tap.show("loss", || Ok(shown.clone()))?;
        Ok((pooled, Some(loss)))
    }

    /// The loss of pooled logits. It is computed here, on the host: there is one number for each sequence and label.
    fn loss(&self, pooled: &Tensor, labels: &ClassificationLabels<f32>) -> Result<f32> {
        let (batch, columns) = (pooled.shape()[0], pooled.shape()[1]);
        let logits = pooled.to_f32()?;
        let problem = match &self.model.config.problem_type {
            Some(name) => ProblemType::from_name(name)?,
            None => ProblemType::infer(columns, labels),
        };
        let refused = |expected: String, found: String| Err(Error::operand("loss", "labels", expected, found));
        match (problem, labels) {
            (ProblemType::SingleLabelClassification, ClassificationLabels::Class(classes))
                if classes.len() == batch =>
            {
                let mut losses = vec![];
                for (z, class) in logits.chunks(columns).zip(classes).filter(|(_, class)| **class != IGNORE_INDEX) {
                    let Some(of_class) = usize::try_from(*class).ok().and_then(|class| z.get(class)) else {
                        return refused(format!("classes 0 to {}", columns - 1), class.to_string());
                    };
                    let largest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    losses.push(z.iter().map(|z| (z - largest).exp()).sum::<f32>().ln() + largest - of_class);
                }
                Ok(losses.iter().sum::<f32>() / losses.len() as f32)
            }
            (ProblemType::Regression | ProblemType::MultiLabelClassification, ClassificationLabels::Values(values))
                if values.len() == logits.len() =>
            {
                let loss = |(z, y): (&f32, &f32)| match problem {
                    ProblemType::Regression => (z - y) * (z - y),
                    _ => z.max(0.0) - z * y + (-z.abs()).exp().ln_1p(),
                };
                Ok(logits.iter().zip(values).map(loss).sum::<f32>() / logits.len() as f32)
            }
            _ => refused(
                format!("labels of a {problem:?} for {batch} sequences and {columns} labels"),
                match labels {
                    ClassificationLabels::Class(classes) => format!("{} classes", classes.len()),
                    ClassificationLabels::Values(values) => format!("numbers of shape {:?}", values.shape()),
                },
            ),
        }
    }

    /// The row that each sequence is read at: its last token that is no padding. Embeddings carry no tokens and are read at
    /// the end; the dialect `deepseek` reads before the first padding.
    fn pooled_rows(&self, input: &ModelInput<f32>) -> Result<Vec<i32>> {
        use dsv2_reference::model::Tokens;
        let (batch, length) = input.tokens.dim();
        let (pad, last) = (self.model.config.pad_token_id, length.saturating_sub(1));
        if pad.is_none() && batch > 1 {
            let expected = "a token, to find the ends of several sequences";
            return Err(Error::operand("forward", "pad_token_id", expected, "null"));
        }
        let first_pad = self.model.dialect.pools_before_first_pad();
        let position = |b: usize| match (&input.tokens, pad) {
            (Tokens::InputIds(ids), Some(pad)) if first_pad => {
                ids.row(b).iter().position(|id| *id == pad).and_then(|at| at.checked_sub(1)).unwrap_or(last)
            }
            (Tokens::InputIds(ids), Some(pad)) => ids.row(b).iter().rposition(|id| *id != pad).unwrap_or(0),
            _ => last,
        };
        Ok((0..batch).map(|b| (b * length + position(b)) as i32).collect())
    }
}
