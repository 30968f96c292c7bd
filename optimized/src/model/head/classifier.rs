//! A score for each label, read at one position of each sequence, and its loss.

use std::sync::Arc;

use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::loss::{ClassificationLabels, IGNORE_INDEX, ProblemType};
use dsv2_reference::model::{ModelInput, Tokens};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{DeepseekV2Config, Dialect};

use super::{again, gather, show_loss};
use crate::model::cache::LatentCache;
use crate::model::linear::product;
use crate::model::tap::{Scope, Tap};
use crate::model::weights::{Loader, Source};
use crate::model::{Model, Settings};
use crate::{Device, Error, Result, Tensor};

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
        let mut loader =
            Loader { config, dialect, source: Source::Host(weights), device, settings, share: None, progress };
        loader.check("SequenceClassifier::load", Some(Head::SequenceClassification))?;
        let model = Model::load_from(&mut loader)?;
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
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(Tensor, Option<f32>)> {
        LatentCache::undo_on_error(cache, |cache| {
            let (batch, length) = input.tokens.dim();
            let rows = self.pooled_rows(input)?;
            let hidden = self.model.forward(input, cache, form, again(&mut tap))?;
            let tap = &mut Scope::root(tap);
            let columns = self.score.shape()[0];
            let score = Tensor::empty(hidden.device(), hidden.element(), &[batch * length, columns])?;
            product(self.model.settings, &hidden, &self.score, None, &score)?;
            tap.show("score", || score.reshape(&[batch, length, columns]))?;
            let pooled = gather(self.model.settings.variant, &score, &rows)?;
            tap.show("pooled_logits", || Ok(pooled.clone()))?;
            let Some(labels) = labels else { return Ok((pooled, None)) };
            let loss = self.loss(&pooled, labels)?;
            show_loss(loss, &pooled, tap)?;
            Ok((pooled, Some(loss)))
        })
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
