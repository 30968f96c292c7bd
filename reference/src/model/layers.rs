//! Decoder layers in a row, and what all of them share: rotary tables and mask.
//!
//! A model has all of them. Some of them alone are a function as well, from the residual stream that enters them to the
//! one that leaves, and need no weights but their own: so one layer of a large model is looked at in its own memory.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, Array3, Array4, ArrayView3, Axis, concatenate};

use crate::model::attention::AttentionContext;
use crate::model::cache::{LatentCache, LayerCache};
use crate::model::layer::DeepseekV2DecoderLayer;
use crate::model::mask::{attention_bias, default_position_ids};
use crate::model::rope::{RotaryEmbedding, RotaryTables};
use crate::model::{ModelInput, Run};
use crate::tap::{Scope, Tap};
use crate::weights::WeightSource;
use crate::weights::finite::Watch;
use crate::{DeepseekV2Config, Dialect, Error, Real, Result};

/// `model.layers.{i}` for a range of i.
#[derive(Debug)]
pub struct DecoderLayers<T> {
    range: Range<usize>,
    layers: Vec<DeepseekV2DecoderLayer<T>>,
    rotary_emb: RotaryEmbedding,
    hidden_size: usize,
    watch: Arc<Watch>,
    num_heads: usize,
}

/// What the layers computed besides the residual stream; see [`Run`].
#[derive(Debug)]
pub(crate) struct LayersExtras<T> {
    /// The residual stream before each layer, if it was wanted.
    pub hidden_states: Vec<Array3<T>>,
    /// See [`Run::output_attentions`].
    pub attentions: Vec<Array4<T>>,
    /// See [`Run::output_router_logits`].
    pub router_logits: Vec<Array2<T>>,
}

impl<T: Real> DecoderLayers<T> {
    /// Takes `model.layers.{i}.*` of each layer in `range` from `weights`.
    ///
    /// # Errors
    /// If the config is impossible or has no such layers, or a weight is missing or has another shape than the config
    /// implies.
    pub fn load(
        config: &DeepseekV2Config,
        dialect: Dialect,
        range: Range<usize>,
        weights: &dyn WeightSource,
    ) -> Result<Self> {
        config.validate(dialect)?;
        if range.is_empty() || range.end > config.num_hidden_layers {
            let expected = format!("some of the layers 0..{}", config.num_hidden_layers);
            return Err(Error::input("layers", expected, format!("{range:?}")));
        }
        let layer = |layer| DeepseekV2DecoderLayer::load(config, dialect, layer, weights);
        Ok(DecoderLayers {
            layers: range.clone().map(layer).collect::<Result<_>>()?,
            range,
            rotary_emb: RotaryEmbedding::new(config, dialect)?,
            hidden_size: config.hidden_size,
            watch: weights.watch(),
            num_heads: config.num_attention_heads,
        })
    }

    /// The residual stream \[B,S,D\] through these layers alone, after what the cache holds of them. Of `input`, mask and
    /// positions count.
    ///
    /// # Errors
    /// As [`DeepseekV2Model::forward`](crate::DeepseekV2Model::forward).
    pub fn forward(
        &self,
        hidden: Array3<T>,
        input: &ModelInput<T>,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut dyn Tap<T>,
    ) -> Result<Array3<T>> {
        let (batch, length) = input.tokens.dim();
        if hidden.dim() != (batch, length, self.hidden_size) {
            let expected = format!("shape [{batch}, {length}, {}]", self.hidden_size);
            return Err(Error::input("hidden_states", expected, format!("shape {:?}", hidden.shape())));
        }
        let (hidden, _) = self.forward_after(hidden, input, cache, run, &mut Scope::root(tap).child("model"))?;
        Ok(hidden)
    }

    /// The residual stream through one of these layers, after what the cache holds of it: so all of a sequence may go through a layer,
    /// chunk by chunk, before any of it goes through the next.
    ///
    /// # Errors
    /// As [`DecoderLayers::forward`].
    pub fn forward_layer(
        &self,
        layer: usize,
        hidden: Array3<T>,
        input: &ModelInput<T>,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut dyn Tap<T>,
    ) -> Result<Array3<T>> {
        let mut root = Scope::root(tap);
        let tap = &mut root.child("model");
        Ok(self.through(layer..layer + 1, hidden, input, cache, run, tap)?.0)
    }

    /// The same through all layers.
    pub(crate) fn forward_after(
        &self,
        hidden: Array3<T>,
        input: &ModelInput<T>,
        cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut Scope<T>,
    ) -> Result<(Array3<T>, LayersExtras<T>)> {
        self.through(self.range.clone(), hidden, input, cache, run, tap)
    }

    fn through(
        &self,
        these: Range<usize>,
        mut hidden: Array3<T>,
        input: &ModelInput<T>,
        mut cache: Option<&mut LatentCache<T>>,
        run: &Run,
        tap: &mut Scope<T>,
    ) -> Result<(Array3<T>, LayersExtras<T>)> {
        let past = cache.as_deref().map_or(0, |cache| cache.layers().get(these.start).map_or(0, LayerCache::len));
        let (batch, length) = (hidden.len_of(Axis(0)), hidden.len_of(Axis(1)));
        let position_ids = input.position_ids.clone().unwrap_or_else(|| default_position_ids(length, past));
        let packed = if cache.is_none() && input.attention_mask.is_none() { input.position_ids.as_ref() } else { None };
        let bias = attention_bias(input.attention_mask.as_ref(), packed, (batch, self.num_heads, length, past))?;
        let rotary = {
            let mut fresh = None;
            let state = cache.as_deref_mut().map_or(&mut fresh, |cache| &mut cache.dynamic_rope);
            let state = self.rotary_emb.dynamic().map(|ntk| state.get_or_insert_with(|| ntk.clone()));
            let mut rotary = self.rotary_emb.tables(&position_ids, state);
            tap.real("rotary_emb.cos", &mut rotary.cos);
            tap.real("rotary_emb.sin", &mut rotary.sin);
            rotary
        };

        let context = AttentionContext { rotary: &rotary, bias: &bias, form: run.attention };
        let mut extras = LayersExtras { hidden_states: Vec::new(), attentions: Vec::new(), router_logits: Vec::new() };
        for (i, layer) in self.range.clone().zip(&self.layers).filter(|(i, _)| these.contains(i)) {
            if run.output_hidden_states {
                extras.hidden_states.push(hidden.clone());
            }
            let cache = cache.as_deref_mut().map(|cache| cache.layer_mut(i));
            let output = layer.forward(hidden, &context, cache, &mut tap.child(format_args!("layers.{i}")));
            // A NaN of the weights is named before what came of it.
            self.watch.check()?;
            let (output, of_layer) = output?;
            hidden = output;
            if run.output_attentions {
                extras.attentions.push(of_layer.attn_weights);
            }
            if run.output_router_logits {
                extras.router_logits.extend(of_layer.router_logits);
            }
        }
        Ok((hidden, extras))
    }

    /// The residual stream \[B,1,D\] of one new token of each of B sequences, through all layers. Row b comes after what `caches[b]`
    /// holds, with the angles that it has alone.
    pub(crate) fn forward_each(
        &self,
        mut hidden: Array3<T>,
        caches: &mut [&mut LatentCache<T>],
        tap: &mut Scope<T>,
    ) -> Result<Array3<T>> {
        let mut rows = Vec::with_capacity(caches.len());
        for cache in caches.iter_mut() {
            let positions = default_position_ids(1, cache.len());
            let state = self.rotary_emb.dynamic().map(|ntk| cache.dynamic_rope.get_or_insert_with(|| ntk.clone()));
            rows.push(self.rotary_emb.tables::<T>(&positions, state));
        }
        let table = |part: fn(&RotaryTables<T>) -> ArrayView3<T>| {
            let parts: Vec<_> = rows.iter().map(part).collect();
            concatenate(Axis(0), &parts).expect("rows of one width")
        };
        let mut rotary = RotaryTables { cos: table(|row| row.cos.view()), sin: table(|row| row.sin.view()) };
        tap.real("rotary_emb.cos", &mut rotary.cos);
        tap.real("rotary_emb.sin", &mut rotary.sin);
        for (i, layer) in self.range.clone().zip(&self.layers) {
            let mut of_layer: Vec<_> = caches.iter_mut().map(|cache| cache.layer_mut(i)).collect();
            let output = layer.forward_each(hidden, &rotary, &mut of_layer, &mut tap.child(format_args!("layers.{i}")));
            self.watch.check()?;
            hidden = output?;
        }
        Ok(hidden)
    }
}
