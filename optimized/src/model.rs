//! DeepSeek-V2 whole, on a device: the same model as `dsv2-reference`'s, stage for stage, from kernels alone.
//!
//! | module | paper | what |
//! |---|---|---|
//! | [`rotary`](mod@rotary) | 2.1.3, 3.1.4 | frequencies, the softmax scale |
//! | [`cache`] | 2.1.4 | the latent cache, in pages |
//! | `attention` | 2.1 | MLA, expanded and absorbed |
//! | `feed_forward` | 2.2 | the gated MLP, the mixture of experts |
//! | [`head`] | | logits, loss, classification |
//! | [`generate`] | | greedy decoding and sampling |
//! | [`parallel`] | 2.2.2 | the model over several ranks |
//! | [`plan`] | | how much memory all this takes |
//! | [`tap`] | | the hook at every stage |
//!
//! Tensors are token-major: N = B S rows, sequence after sequence. The residual stream is one tensor \[N,D\] that every
//! sub-layer adds to; the addition and the next norm are one kernel.

mod attention;
pub mod cache;
mod decode;
mod feed_forward;
pub mod generate;
pub mod head;
mod inputs;
mod linear;
mod mask;
pub mod parallel;
pub mod plan;
pub mod rotary;
mod settings;
pub mod tap;
mod weights;

use std::sync::Arc;

use dsv2_reference::model::ModelInput;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::layer_path;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::{DeepseekV2Config, Dialect};

use crate::operators::rms_norm::{add_rms_norm, rms_norm};
use crate::{Device, Element, Error, Result, Tensor};
use attention::{Attention, Context};
use cache::LatentCache;
use feed_forward::FeedForward;
use rotary::Frequencies;
pub use settings::{Products, Settings};
use tap::{Scope, Tap};
use weights::{Loader, Source};

/// Tokens of a page of a cache that only lives as long as a forward pass.
const PAGE: usize = 64;

/// `model.*`, without a head.
#[derive(Debug)]
pub struct Model {
    config: DeepseekV2Config,
    dialect: Dialect,
    settings: Settings,
    device: Arc<dyn Device>,
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    frequencies: Frequencies,
    /// Whether no other rank has a part of it.
    whole: bool,
}

#[derive(Debug)]
struct Layer {
    input_layernorm: Tensor,
    self_attn: Attention,
    post_attention_layernorm: Tensor,
    mlp: FeedForward,
}

impl Model {
    /// Takes `model.*` from `weights`, one tensor after another. `progress` is told the bytes of each.
    ///
    /// # Errors
    /// If the config is impossible, a weight is missing or of another shape, or the device has no room for all of them
    /// (which is found out before the first is taken).
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
        loader.check("Model::load", None)?;
        Model::load_from(&mut loader)
    }

    /// The same where all has been checked.
    fn load_from(loader: &mut Loader) -> Result<Self> {
        let &mut Loader { config, dialect, device, settings, .. } = loader;
        let width = [config.hidden_size];
        Ok(Model {
            embed_tokens: loader.load("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| {
                    let path = layer_path(layer);
                    Ok(Layer {
                        input_layernorm: loader.load(&format!("{path}.input_layernorm.weight"), &width)?,
                        self_attn: Attention::load(loader, layer)?,
                        post_attention_layernorm: loader
                            .load(&format!("{path}.post_attention_layernorm.weight"), &width)?,
                        mlp: FeedForward::load(loader, layer)?,
                    })
                })
                .collect::<Result<_>>()?,
            norm: loader.load("model.norm.weight", &width)?,
            frequencies: Frequencies::new(config, dialect)?,
            config: config.clone(),
            dialect,
            settings,
            device: device.clone(),
            whole: loader.share.is_none(),
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

    /// How it computes.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Where it is.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// `embed_tokens.weight` \[V,D\].
    pub fn embed_tokens(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// Runs the new tokens, after those in the cache, and appends them to it: the last hidden states \[N,D\], after the
    /// final norm. If it fails, the cache is left as it was.
    ///
    /// # Errors
    /// If an input has a wrong shape, a token is out of range, the cache has no room, or a kernel failed.
    pub fn forward(
        &self,
        input: &ModelInput<f32>,
        cache: Option<&mut LatentCache>,
        form: AttentionForm,
        tap: Option<&mut dyn Tap>,
    ) -> Result<Tensor> {
        LatentCache::undo_on_error(cache, |cache| {
            self.check_input(input)?;
            let (batch, new) = input.tokens.dim();
            let mut scope = Scope::root(tap);
            let mut own;
            let cached = cache.is_some();
            let Settings { element, .. } = self.settings;
            let cache = match cache {
                Some(cache) if cache.batch() != batch => {
                    let expected = format!("a cache of {batch} sequences");
                    return Err(Error::operand("forward", "past_key_values", expected, cache.batch()));
                }
                Some(cache) => {
                    cache.check(&self.config, &self.device, element)?;
                    cache
                }
                None => {
                    own = LatentCache::new(&self.config, &self.device, element, batch, new, PAGE)?;
                    &mut own
                }
            };
            self.forward_layers(input, cache, cached, form, &mut scope.child("model"))
        })
    }

    fn forward_layers(
        &self,
        input: &ModelInput<f32>,
        cache: &mut LatentCache,
        cached: bool,
        form: AttentionForm,
        scope: &mut Scope,
    ) -> Result<Tensor> {
        let Settings { element, variant, .. } = self.settings;
        let (batch, new) = input.tokens.dim();
        let rows = [batch * new, self.config.hidden_size];
        let by_sequence = |tensor: &Tensor| tensor.reshape(&[batch, new, self.config.hidden_size]);
        let eps = self.config.rms_norm_eps as f32;
        let past = cache.lengths();
        let mask = mask::added(input, cached, &past, new)?;
        let hidden = self.embed(&input.tokens)?;
        scope.show("embed_tokens", || by_sequence(&hidden))?;
        let (cos, sin) = self.rotary_tables(input, &past, cache, scope)?;
        let placement = cache.place(new)?;
        let keys = placement.longest;
        let context = Context {
            batch,
            new,
            settings: self.settings,
            form,
            cos,
            sin,
            mask: mask
                .map(|mask| Tensor::from_f32(&self.device, Element::F32, &[batch, new, keys], &mask))
                .transpose()?,
            placement,
            cached,
        };

        let normed = Tensor::empty(&self.device, element, &rows)?;
        let first = self.layers.first().map_or(&self.norm, |layer| &layer.input_layernorm);
        rms_norm(variant, &hidden, first, eps, &normed)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let scope = &mut scope.child(format_args!("layers.{i}"));
            scope.show("input_layernorm", || by_sequence(&normed))?;
            let attention = layer.self_attn.forward(&normed, &context, cache.layer(i), scope)?;
            add_rms_norm(variant, &attention, &hidden, &layer.post_attention_layernorm, eps, &hidden, &normed)?;
            scope.show("post_attention_layernorm", || by_sequence(&normed))?;
            let output = layer.mlp.forward(&normed, [batch, new], self.settings, &mut scope.child("mlp"))?;
            let next = self.layers.get(i + 1).map_or(&self.norm, |layer| &layer.input_layernorm);
            add_rms_norm(variant, &output, &hidden, next, eps, &hidden, &normed)?;
            if scope.show("", || by_sequence(&hidden))? {
                rms_norm(variant, &hidden, next, eps, &normed)?;
            }
        }
        scope.show("norm", || by_sequence(&normed))?;
        cache.advance(new);
        Ok(normed)
    }
}
