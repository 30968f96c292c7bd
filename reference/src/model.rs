//! The transformer without a head: embedding, layers, final norm.

pub mod attention;
pub mod cache;
pub mod causal_lm;
pub mod experts;
mod heads;
pub mod layer;
pub mod layers;
pub mod linear;
pub mod loss;
pub mod mask;
pub mod norm;
pub mod rope;
pub mod router;
pub mod sequence_classification;

use std::sync::Arc;

use ndarray::{Array2, Array3, Array4, Axis};

use crate::model::attention::AttentionForm;
use crate::model::cache::LatentCache;
use crate::model::layers::{DecoderLayers, LayersExtras};
use crate::model::mask::AttentionMask;
use crate::model::norm::RmsNorm;
use crate::tap::{Scope, Tap};
use crate::weights::WeightSource;
use crate::weights::finite::Watch;
use crate::{DeepseekV2Config, Dialect, Error, Real, Result, Tensor};

/// What goes in: exactly one of `input_ids` and `inputs_embeds`.
#[derive(Debug, Clone)]
pub enum Tokens<T> {
    /// \[B,S\].
    InputIds(Array2<i64>),
    /// \[B,S,D\]; `embed_tokens` is passed over.
    InputsEmbeds(Array3<T>),
}

impl<T> Tokens<T> {
    /// B and S.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Tokens::InputIds(ids) => ids.dim(),
            Tokens::InputsEmbeds(embeds) => (embeds.len_of(Axis(0)), embeds.len_of(Axis(1))),
        }
    }
}

/// The input of a forward pass.
#[derive(Debug, Clone)]
pub struct ModelInput<T> {
    /// The new tokens.
    pub tokens: Tokens<T>,
    /// Over cached and new tokens.
    pub attention_mask: Option<AttentionMask<T>>,
    /// \[B or 1,S\]; counted on from the cache if not given. Never derived from the mask.
    pub position_ids: Option<Array2<i64>>,
}

impl<T> ModelInput<T> {
    /// Token ids alone.
    pub fn ids(input_ids: Array2<i64>) -> Self {
        ModelInput { tokens: Tokens::InputIds(input_ids), attention_mask: None, position_ids: None }
    }
}

/// How to run, and what to return besides the last hidden state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    /// Which form of attention.
    pub attention: AttentionForm,
    /// L + 1 tensors \[B,S,D\]: the embeddings, then each layer's output; the last one is *after* the final norm
    /// (unless config.json says `tie_last_hidden_states: false`).
    pub output_hidden_states: bool,
    /// L tensors \[B,H,S,T\].
    pub output_attentions: bool,
    /// \[B S,E\] before the softmax, for each mixture-of-experts layer (dense layers are left out).
    pub output_router_logits: bool,
}

/// What comes out.
#[derive(Debug, Clone)]
pub struct ModelOutput<T> {
    /// \[B,S,D\], after the final norm.
    pub last_hidden_state: Array3<T>,
    /// See [`Run::output_hidden_states`].
    pub hidden_states: Option<Vec<Array3<T>>>,
    /// See [`Run::output_attentions`].
    pub attentions: Option<Vec<Array4<T>>>,
    /// See [`Run::output_router_logits`].
    pub router_logits: Option<Vec<Array2<T>>>,
}

/// `model.*`.
#[derive(Debug)]
pub struct DeepseekV2Model<T> {
    config: DeepseekV2Config,
    dialect: Dialect,
    embed_tokens: Tensor,
    layers: DecoderLayers<T>,
    norm: RmsNorm<T>,
    watch: Arc<Watch>,
}

impl<T: Real> DeepseekV2Model<T> {
    /// Takes `model.*` from `weights`.
    ///
    /// # Errors
    /// If the config is impossible, or a weight is missing or has another shape than the config implies.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, weights: &dyn WeightSource) -> Result<Self> {
        config.validate(dialect)?;
        Ok(DeepseekV2Model {
            embed_tokens: weights.tensor("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?,
            layers: DecoderLayers::load(config, dialect, 0..config.num_hidden_layers, weights)?,
            norm: RmsNorm::load(weights, "model.norm", config.hidden_size, config.rms_norm_eps)?,
            watch: weights.watch(),
            config: config.clone(),
            dialect,
        })
    }

    /// The config it was loaded with.
    pub fn config(&self) -> &DeepseekV2Config {
        &self.config
    }

    /// The dialect it was loaded with.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// `embed_tokens.weight` \[V,D\]; the output head too if the two are tied.
    pub fn embed_tokens(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// Its decoder layers.
    pub fn layers(&self) -> &DecoderLayers<T> {
        &self.layers
    }

    /// What enters the layers.
    ///
    /// # Errors
    /// As [`DeepseekV2Model::forward`].
    pub fn embedded(&self, input: &ModelInput<T>, tap: &mut dyn Tap<T>) -> Result<Array3<T>> {
        self.check_shapes(input, None)?;
        let mut hidden = embed(&self.embed_tokens, &input.tokens)?;
        self.watch.check()?;
        Scope::root(tap).child("model").real("embed_tokens", &mut hidden);
        Ok(hidden)
    }

    /// The last norm of what comes out of the layers.
    pub fn normed(&self, hidden: &Array3<T>, tap: &mut dyn Tap<T>) -> Array3<T> {
        let mut normed = self.norm.forward_3d(hidden.view());
        Scope::root(tap).child("model").real("norm", &mut normed);
        normed
    }

    /// Runs the new tokens, after those in the cache, and appends them to it. If it fails the cache is left as it was.
    ///
    /// Without a cache and without a mask, position ids that do not rise by one mark packed sequences (see
    /// [`crate::model::mask`]).
    ///
    /// # Errors
    /// If an input has a wrong shape, a token id is out of range, or a number is not finite.
    pub fn forward(
        &self,
        input: &ModelInput<T>,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut dyn Tap<T>,
    ) -> Result<ModelOutput<T>> {
        LatentCache::undo_on_error(cache, |cache| self.forward_layers(input, cache, run, tap))
    }

    fn forward_layers(
        &self,
        input: &ModelInput<T>,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut dyn Tap<T>,
    ) -> Result<ModelOutput<T>> {
        let mut root = Scope::root(tap);
        let tap = &mut root.child("model");
        self.check_shapes(input, cache.as_deref())?;
        let mut hidden = embed(&self.embed_tokens, &input.tokens)?;
        self.watch.check()?;
        tap.real("embed_tokens", &mut hidden);
        let (hidden, extras) = self.layers.forward_after(hidden, input, cache, run, tap)?;
        let mut last_hidden_state = self.norm.forward_3d(hidden.view());
        tap.real("norm", &mut last_hidden_state);
        let LayersExtras { mut hidden_states, attentions, router_logits } = extras;
        if run.output_hidden_states {
            let last = if self.config.ties_last_hidden_state() { &last_hidden_state } else { &hidden };
            hidden_states.push(last.clone());
        }
        Ok(ModelOutput {
            last_hidden_state,
            hidden_states: run.output_hidden_states.then_some(hidden_states),
            attentions: run.output_attentions.then_some(attentions),
            router_logits: run.output_router_logits.then_some(router_logits),
        })
    }

    /// One new token of each of B sequences, each after what its own cache holds: \[B,1,D\]. If it fails the caches are left as they
    /// were.
    pub(crate) fn forward_each(
        &self,
        tokens: &[i64],
        caches: &mut [&mut LatentCache<T>],
        tap: &mut dyn Tap<T>,
    ) -> Result<Array3<T>> {
        let ids = Tokens::InputIds(Array2::from_shape_fn((tokens.len(), 1), |(b, _)| tokens[b]));
        if tokens.is_empty() || tokens.len() != caches.len() {
            let expected = format!("a token for each of {} caches, and at least one", caches.len());
            return Err(Error::input("input_ids", expected, tokens.len()));
        }
        for cache in caches.iter() {
            self.check_shapes(&ModelInput::ids(Array2::zeros((1, 1))), Some(cache))?;
        }
        let before: Vec<_> = caches.iter().map(|cache| cache.state()).collect();
        let mut root = Scope::root(tap);
        let tap = &mut root.child("model");
        let result = self.layers_each(&ids, caches, tap);
        if result.is_err() {
            caches.iter_mut().zip(before).for_each(|(cache, before)| cache.restore(before));
        }
        result
    }

    fn layers_each(
        &self,
        ids: &Tokens<T>,
        caches: &mut [&mut LatentCache<T>],
        tap: &mut Scope<T>,
    ) -> Result<Array3<T>> {
        let mut hidden = embed(&self.embed_tokens, ids)?;
        self.watch.check()?;
        tap.real("embed_tokens", &mut hidden);
        let hidden = self.layers.forward_each(hidden, caches, tap)?;
        let mut last_hidden_state = self.norm.forward_3d(hidden.view());
        tap.real("norm", &mut last_hidden_state);
        Ok(last_hidden_state)
    }

    /// What its caches look like; see [`LatentCache::shape`].
    fn cache_shape(&self) -> (usize, usize, usize) {
        (self.config.num_hidden_layers, self.config.kv_lora_rank, self.config.qk_rope_head_dim)
    }

    /// Refuses impossible inputs; returns how many tokens are cached.
    fn check_shapes(&self, input: &ModelInput<T>, cache: Option<&LatentCache<T>>) -> Result<usize> {
        let (batch, length) = input.tokens.dim();
        if batch == 0 || length == 0 {
            let name = if matches!(input.tokens, Tokens::InputIds(_)) { "input_ids" } else { "inputs_embeds" };
            return Err(Error::input(name, "at least one sequence of one token", format!("shape [{batch}, {length}]")));
        }
        if let Tokens::InputsEmbeds(embeds) = &input.tokens {
            if embeds.len_of(Axis(2)) != self.config.hidden_size {
                let expected = format!("shape [{batch}, {length}, {}]", self.config.hidden_size);
                return Err(Error::input("inputs_embeds", expected, format!("shape {:?}", embeds.shape())));
            }
            if let Some((at, bad)) = embeds.indexed_iter().find(|(_, x)| !x.is_finite()) {
                return Err(Error::input("inputs_embeds", "finite numbers", format!("{bad} at {at:?}")));
            }
        }
        if let Some(positions) = &input.position_ids
            && positions.dim() != (1, length)
            && positions.dim() != (batch, length)
        {
            let expected = format!("shape [1 or {batch}, {length}]");
            return Err(Error::input("position_ids", expected, format!("shape {:?}", positions.shape())));
        }
        match cache {
            Some(cache) if cache.batch() != batch => {
                let found = format!("a cache of {} sequences", cache.batch());
                Err(Error::input("past_key_values", format!("a cache of {batch} sequences"), found))
            }
            Some(cache) if cache.shape() != self.cache_shape() => {
                let show =
                    |(layers, c, r): (usize, usize, usize)| format!("{layers} layers of {c} and {r} numbers per token");
                Err(Error::input("past_key_values", show(self.cache_shape()), show(cache.shape())))
            }
            cache => Ok(cache.map_or(0, LatentCache::len)),
        }
    }
}

/// x^0 = E\[ids\]: rows of the embedding \[V,D\], unscaled.
///
/// # Errors
/// If a token id is out of range.
pub fn embed<T: Real>(weight: &Tensor, tokens: &Tokens<T>) -> Result<Array3<T>> {
    let ids = match tokens {
        Tokens::InputIds(ids) => ids,
        Tokens::InputsEmbeds(embeds) => return Ok(embeds.clone()),
    };
    let (vocab, width) = (weight.shape()[0], weight.shape()[1]);
    let mut embeds = Array3::zeros((ids.nrows(), ids.ncols(), width));
    for ((b, s), &id) in ids.indexed_iter() {
        if !(0..vocab as i64).contains(&id) {
            return Err(Error::input(
                "input_ids",
                format!("token ids 0 to {}", vocab - 1),
                format!("{id} at [{b}, {s}]"),
            ));
        }
        let mut row = embeds.slice_mut(ndarray::s![b, s, ..]);
        weight.widen(id as usize * width, row.as_slice_mut().expect("standard layout"));
    }
    Ok(embeds)
}
