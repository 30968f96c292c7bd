//! `DeepseekV2ForCausalLM`: the next-token logits and their loss.

use std::sync::Arc;

use ndarray::{Array1, Array2, Array3, Array4, ArrayView3, Axis, s};

use crate::model::cache::LatentCache;
use crate::model::linear::Linear;
use crate::model::loss::{CausalLmLabels, causal_lm_loss};
use crate::model::{DeepseekV2Model, ModelInput, Run};
use crate::tap::{Scope, Tap};
use crate::weights::WeightSource;
use crate::weights::finite::Watch;
use crate::{DeepseekV2Config, Dialect, Error, Real, Result};

/// For which positions to compute logits (`logits_to_keep`).
#[derive(Debug, Clone)]
pub enum LogitsToKeep {
    /// k > 0: the last k (more than there are: all); 0: all; **-m: all but the first m** (a Python slice of `-k:`).
    Last(i64),
    /// These positions of every sequence \[n\]; negative ones count from the end.
    Positions(Vec<i64>),
    /// These positions of each sequence \[B,n\].
    PerSample(Array2<i64>),
    /// The marked positions \[B,S\], of all sequences in one row: logits \[1,marked,V\].
    Mask(Array2<bool>),
}

impl Default for LogitsToKeep {
    fn default() -> Self {
        LogitsToKeep::Last(0)
    }
}

/// The input of a forward pass with a head.
#[derive(Debug, Clone)]
pub struct CausalLmInput<T> {
    /// What the model sees.
    pub input: ModelInput<T>,
    /// For which positions to compute logits.
    pub logits_to_keep: LogitsToKeep,
    /// If given, a loss is computed.
    pub labels: Option<CausalLmLabels>,
}

/// What comes out.
#[derive(Debug, Clone)]
pub struct CausalLmOutput<T> {
    /// \[B,kept,V\].
    pub logits: Array3<T>,
    /// If there were labels. No auxiliary loss is in it, in any mode.
    pub loss: Option<T>,
    /// See [`Run::output_hidden_states`].
    pub hidden_states: Option<Vec<Array3<T>>>,
    /// See [`Run::output_attentions`].
    pub attentions: Option<Vec<Array4<T>>>,
    /// See [`Run::output_router_logits`].
    pub router_logits: Option<Vec<Array2<T>>>,
}

/// The model with a language-modelling head.
#[derive(Debug)]
pub struct DeepseekV2ForCausalLM<T> {
    model: DeepseekV2Model<T>,
    lm_head: Linear<T>,
    watch: Arc<Watch>,
}

impl<T: Real> DeepseekV2ForCausalLM<T> {
    /// Takes `model.*` and `lm_head.weight` (if `tie_word_embeddings`: the embedding) from `weights`.
    ///
    /// # Errors
    /// If the config is impossible, or a weight is missing or has another shape than the config implies.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, weights: &dyn WeightSource) -> Result<Self> {
        let model = DeepseekV2Model::load(config, dialect, weights)?;
        let lm_head = if config.tie_word_embeddings {
            Linear::new(model.embed_tokens().clone(), None)
        } else {
            Linear::load(weights, "lm_head", config.vocab_size, config.hidden_size, false)?
        };
        Ok(DeepseekV2ForCausalLM { model, lm_head, watch: weights.watch() })
    }

    /// The model without the head.
    pub fn model(&self) -> &DeepseekV2Model<T> {
        &self.model
    }

    /// Runs the new tokens after those in the cache.
    ///
    /// # Errors
    /// As [`DeepseekV2Model::forward`]; also if labels or `logits_to_keep` do not fit.
    pub fn forward(
        &self,
        input: &CausalLmInput<T>,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut dyn Tap<T>,
    ) -> Result<CausalLmOutput<T>> {
        LatentCache::undo_on_error(cache, |cache| {
            let output = self.model.forward(&input.input, cache, run, tap)?;
            let head = self.head(output.last_hidden_state.view(), input, tap);
            self.watch.check()?;
            let (logits, loss) = head?;
            Ok(CausalLmOutput {
                logits,
                loss,
                hidden_states: output.hidden_states,
                attentions: output.attentions,
                router_logits: output.router_logits,
            })
        })
    }

    /// A step of a batch that sequences join and leave: one new token of each of B sequences, each after what its own cache (of one
    /// sequence) holds, in the absorbed form. Each weight is read once. Logits \[B,V\].
    ///
    /// Row b is, bit for bit, what [`DeepseekV2ForCausalLM::forward`] says of this token and this cache alone, whoever else
    /// is there. A tap sees attention sequence by sequence, everything else of all together.
    ///
    /// # Errors
    /// If there is not one token for each cache, a token is out of range, or a cache is of another model or several
    /// sequences. Then the caches are as they were.
    pub fn step_each(
        &self,
        tokens: &[i64],
        caches: &mut [&mut LatentCache<T>],
        tap: &mut dyn Tap<T>,
    ) -> Result<Array2<T>> {
        let hidden = self.model.forward_each(tokens, caches, tap)?;
        let tap = &mut Scope::root(tap);
        let mut logits = self.lm_head.forward_3d(hidden.view());
        tap.real("lm_head", &mut logits);
        self.watch.check()?;
        Ok(logits.index_axis_move(Axis(1), 0))
    }

    /// Logits and loss of what comes out of the layers.
    ///
    /// # Errors
    /// As [`DeepseekV2ForCausalLM::forward`].
    pub fn after_layers(&self, hidden: &Array3<T>, input: &CausalLmInput<T>, tap: &mut dyn Tap<T>) -> Result<()> {
        let normed = self.model.normed(hidden, tap);
        let head = self.head(normed.view(), input, tap);
        self.watch.check()?;
        head.map(|_| ())
    }

    /// logits = W_lm h at the kept positions, \[B,kept,V\], and their loss.
    fn head(
        &self,
        hidden: ArrayView3<T>,
        input: &CausalLmInput<T>,
        tap: &mut dyn Tap<T>,
    ) -> Result<(Array3<T>, Option<T>)> {
        let tap = &mut Scope::root(tap);
        let kept = keep(hidden, &input.logits_to_keep)?;
        let mut logits = self.lm_head.forward_3d(kept.view());
        tap.real("lm_head", &mut logits);
        let loss = match &input.labels {
            None => None,
            Some(labels) => {
                let mut loss = ndarray::arr0(causal_lm_loss(logits.view(), labels)?);
                tap.real("loss", &mut loss);
                Some(loss.into_scalar())
            }
        };
        Ok((logits, loss))
    }
}

/// The rows of `hidden` \[B,S,D\] for which logits are wanted: \[B,kept,D\].
fn keep<T: Real>(hidden: ArrayView3<T>, logits_to_keep: &LogitsToKeep) -> Result<Array3<T>> {
    let (batch, length, width) = hidden.dim();
    let refused = |expected: String, found: String| Error::input("logits_to_keep", expected, found);
    let position = |at: i64| {
        let from_start = if at < 0 { at + length as i64 } else { at };
        let found = || refused(format!("positions -{length} to {}", length - 1), at.to_string());
        if (0..length as i64).contains(&from_start) { Ok(from_start as usize) } else { Err(found()) }
    };
    match logits_to_keep {
        LogitsToKeep::Last(k) => {
            // Python's hidden[:, -k:]
            let first = if *k > 0 { length.saturating_sub(*k as usize) } else { length.min(k.unsigned_abs() as usize) };
            Ok(hidden.slice(s![.., first.., ..]).to_owned())
        }
        LogitsToKeep::Positions(positions) => {
            let positions = positions.iter().map(|&at| position(at)).collect::<Result<Vec<_>>>()?;
            Ok(hidden.select(Axis(1), &positions))
        }
        LogitsToKeep::PerSample(positions) => {
            if positions.nrows() != batch {
                return Err(refused(format!("shape [{batch}, n]"), format!("shape {:?}", positions.shape())));
            }
            let mut kept = Array3::zeros((batch, positions.ncols(), width));
            for ((b, n), &at) in positions.indexed_iter() {
                kept.slice_mut(s![b, n, ..]).assign(&hidden.slice(s![b, position(at)?, ..]));
            }
            Ok(kept)
        }
        LogitsToKeep::Mask(mask) => {
            if mask.dim() != (batch, length) {
                return Err(refused(format!("shape [{batch}, {length}]"), format!("shape {:?}", mask.shape())));
            }
            let rows = hidden.to_shape((batch * length, width)).expect("a row for each token");
            let marked: Vec<usize> = mask.iter().enumerate().filter_map(|(row, &keep)| keep.then_some(row)).collect();
            Ok(rows.select(Axis(0), &marked).insert_axis(Axis(0)))
        }
    }
}

impl<T: Real> DeepseekV2ForCausalLM<T> {
    /// Greedy generation through the latent cache: the whole prompt (expanded form), then token by token
    /// (absorbed form). Stops at `eos_token_id` (a finished sequence goes on with `pad_token_id`, or the end token if
    /// there is none) or after `max_new_tokens`. Equal logits: the lower token id wins. Returns the new tokens \[B,<=
    /// `max_new_tokens`\].
    ///
    /// `attention_mask` \[B,S\] marks padding, which should be on the left; positions are then counted from the first
    /// real token, as `generate` does there (and plain forward does not).
    ///
    /// # Errors
    /// As [`DeepseekV2Model::forward`].
    pub fn generate(
        &self,
        input_ids: &Array2<i64>,
        attention_mask: Option<&Array2<bool>>,
        max_new_tokens: usize,
    ) -> Result<Array2<i64>> {
        use crate::model::attention::AttentionForm::{Absorbed, Expanded};
        use crate::model::mask::AttentionMask::Padding;
        let config = self.model.config();
        let (batch, length) = input_ids.dim();
        let mut mask = attention_mask.cloned().unwrap_or_else(|| Array2::from_elem((batch, length), true));
        if mask.dim() != (batch, length) {
            let expected = format!("shape [{batch}, {length}]");
            return Err(Error::input("attention_mask", expected, format!("shape {:?}", mask.shape())));
        }
        let ends = config.eos_token_ids();
        let filler = config.pad_token_id.or(ends.first().copied()).unwrap_or(0);
        let mut cache = LatentCache::new(config, batch);
        let mut generated = Array2::zeros((batch, 0));
        let mut finished = vec![false; batch];
        let mut tokens = input_ids.clone();
        for step in 0..max_new_tokens {
            let input = CausalLmInput {
                input: ModelInput {
                    position_ids: Some(positions_of_real_tokens(&mask, tokens.ncols())),
                    tokens: crate::model::Tokens::InputIds(tokens),
                    attention_mask: Some(Padding(mask.clone())),
                },
                logits_to_keep: LogitsToKeep::Last(1),
                labels: None,
            };
            let run = Run { attention: if step == 0 { Expanded } else { Absorbed }, ..Run::default() };
            let logits = self.forward(&input, Some(&mut cache), &run, &mut crate::tap::NoTap)?.logits;
            let next: Array1<i64> =
                (0..batch).map(|b| if finished[b] { filler } else { argmax(logits.slice(s![b, 0, ..])) }).collect();
            generated.push_column(next.view()).expect("a token for each sequence");
            finished.iter_mut().zip(&next).for_each(|(finished, token)| *finished |= ends.contains(token));
            if finished.iter().all(|&f| f) {
                break;
            }
            mask.push_column(Array1::from_elem(batch, true).view()).expect("a mark for each sequence");
            tokens = next.insert_axis(Axis(1));
        }
        Ok(generated)
    }
}

/// For the last `length` tokens: how many real tokens come before each; 0 for padding. \[B,length\].
fn positions_of_real_tokens(mask: &Array2<bool>, length: usize) -> Array2<i64> {
    let mut positions = Array2::zeros(mask.dim());
    for (mut positions, mask) in positions.rows_mut().into_iter().zip(mask.rows()) {
        let mut seen = 0;
        for (position, &real) in positions.iter_mut().zip(mask) {
            *position = if real { seen } else { 0 };
            seen += i64::from(real);
        }
    }
    positions.slice(s![.., positions.ncols() - length..]).to_owned()
}

fn argmax<T: Real>(logits: ndarray::ArrayView1<T>) -> i64 {
    let best = logits.iter().enumerate().fold(0, |best, (i, x)| if *x > logits[best] { i } else { best });
    best as i64
}
