//! `DeepseekV2ForSequenceClassification`: a score for each label, read at one position of the sequence.

use std::sync::Arc;

use ndarray::{Array2, Array3, Array4, ArrayView3, s};

use crate::model::cache::LatentCache;
use crate::model::linear::Linear;
use crate::model::loss::{ClassificationLabels, ProblemType, classification_loss};
use crate::model::{DeepseekV2Model, ModelInput, Run, Tokens};
use crate::tap::{Scope, Tap};
use crate::weights::WeightSource;
use crate::weights::finite::Watch;
use crate::{DeepseekV2Config, Dialect, Error, Real, Result};

/// What comes out.
#[derive(Debug, Clone)]
pub struct SequenceClassificationOutput<T> {
    /// \[B,num_labels\]: the scores at the pooled position.
    pub pooled_logits: Array2<T>,
    /// If there were labels.
    pub loss: Option<T>,
    /// See [`Run::output_hidden_states`].
    pub hidden_states: Option<Vec<Array3<T>>>,
    /// See [`Run::output_attentions`].
    pub attentions: Option<Vec<Array4<T>>>,
}

/// The model with a classification head.
#[derive(Debug)]
pub struct DeepseekV2ForSequenceClassification<T> {
    model: DeepseekV2Model<T>,
    score: Linear<T>,
    problem_type: Option<ProblemType>,
    watch: Arc<Watch>,
}

impl<T: Real> DeepseekV2ForSequenceClassification<T> {
    /// Takes `model.*` and `score.weight` \[num_labels,D\] from `weights`.
    ///
    /// # Errors
    /// If the config is impossible, or a weight is missing or has another shape than the config implies.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, weights: &dyn WeightSource) -> Result<Self> {
        Ok(DeepseekV2ForSequenceClassification {
            model: DeepseekV2Model::load(config, dialect, weights)?,
            score: Linear::load(weights, "score", config.num_labels(), config.hidden_size, false)?,
            problem_type: config.problem_type.as_deref().map(ProblemType::from_name).transpose()?,
            watch: weights.watch(),
        })
    }

    /// The model without the head.
    pub fn model(&self) -> &DeepseekV2Model<T> {
        &self.model
    }

    /// Scores every position (stage `score` \[B,S,num_labels\]) and pools one of each sequence.
    ///
    /// # Errors
    /// As [`DeepseekV2Model::forward`]; also if the labels do not fit, or there is no `pad_token_id` to find the end of
    /// several sequences.
    pub fn forward(
        &self,
        input: &ModelInput<T>,
        labels: Option<&ClassificationLabels<T>>,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut dyn Tap<T>,
    ) -> Result<SequenceClassificationOutput<T>> {
        LatentCache::undo_on_error(cache, |cache| {
            let positions = self.pooled_positions(&input.tokens)?;
            let output = self.model.forward(input, cache, run, tap)?;
            let head = self.head(output.last_hidden_state.view(), &positions, labels, tap);
            self.watch.check()?;
            let (pooled_logits, loss) = head?;
            Ok(SequenceClassificationOutput {
                pooled_logits,
                loss,
                hidden_states: output.hidden_states,
                attentions: output.attentions,
            })
        })
    }

    /// Scores, pooled logits and loss of what comes out of the layers.
    ///
    /// # Errors
    /// As [`DeepseekV2ForSequenceClassification::forward`].
    pub fn after_layers(
        &self,
        hidden: &Array3<T>,
        input: &ModelInput<T>,
        labels: Option<&ClassificationLabels<T>>,
        tap: &mut dyn Tap<T>,
    ) -> Result<()> {
        let positions = self.pooled_positions(&input.tokens)?;
        let normed = self.model.normed(hidden, tap);
        let head = self.head(normed.view(), &positions, labels, tap);
        self.watch.check()?;
        head.map(|_| ())
    }

    /// z = W_score h at one position of each sequence, \[B,num_labels\], and its loss.
    fn head(
        &self,
        hidden: ArrayView3<T>,
        positions: &[usize],
        labels: Option<&ClassificationLabels<T>>,
        tap: &mut dyn Tap<T>,
    ) -> Result<(Array2<T>, Option<T>)> {
        let tap = &mut Scope::root(tap);
        let mut score = self.score.forward_3d(hidden);
        tap.real("score", &mut score);
        let mut pooled_logits = Array2::zeros((positions.len(), self.score.out_features()));
        for (b, &position) in positions.iter().enumerate() {
            pooled_logits.row_mut(b).assign(&score.slice(s![b, position, ..]));
        }
        tap.real("pooled_logits", &mut pooled_logits);
        let Some(labels) = labels else { return Ok((pooled_logits, None)) };
        let problem_type = self.problem_type.unwrap_or_else(|| ProblemType::infer(self.score.out_features(), labels));
        let mut loss = ndarray::arr0(classification_loss(problem_type, pooled_logits.view(), labels)?);
        tap.real("loss", &mut loss);
        Ok((pooled_logits, Some(loss.into_scalar())))
    }

    /// Where each sequence is read: at its last token that is not `pad_token_id`, wherever the padding is (all padding:
    /// at 0). Embeddings carry no ids and are read at the end; so is a single sequence of a model without
    /// `pad_token_id`. The attention mask is not consulted.
    ///
    /// DeepSeek's own code reads before the *first* padding token, which is wrong for padding on the left; dialect
    /// `deepseek`.
    fn pooled_positions(&self, tokens: &Tokens<T>) -> Result<Vec<usize>> {
        let (batch, length) = tokens.dim();
        let config = self.model.config();
        let last = length.saturating_sub(1);
        let Some(pad) = config.pad_token_id else {
            return match batch {
                0 | 1 => Ok(vec![last; batch]),
                _ => Err(Error::config("pad_token_id", "a token id, to find the ends of several sequences", "null")),
            };
        };
        let Tokens::InputIds(ids) = tokens else { return Ok(vec![last; batch]) };
        let before_first_pad = self.model.dialect().pools_before_first_pad();
        Ok(ids
            .rows()
            .into_iter()
            .map(|ids| match before_first_pad {
                // The first pad's index minus one; without one, or with one in front, that is the end.
                true => ids.iter().position(|&id| id == pad).map_or(last, |at| at.checked_sub(1).unwrap_or(last)),
                false => ids.iter().rposition(|&id| id != pad).unwrap_or(0),
            })
            .collect())
    }
}
