//! A decoder layer: attention and feed-forward network, each behind a norm and beside a residual stream (paper 2,
//! figure 2).
//!
//! ```text
//! x <- x + Attention(RMSNorm(x))
//! x <- x + FFN(RMSNorm(x))
//! ```

use ndarray::{Array2, Array3, Array4, ArrayView3};

use crate::model::attention::{AttentionContext, DeepseekV2Attention};
use crate::model::cache::LayerCache;
use crate::model::experts::{DeepseekV2Mlp, DeepseekV2Moe};
use crate::model::norm::RmsNorm;
use crate::model::rope::RotaryTables;
use crate::stage::layer_path;
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Real, Result};

/// The feed-forward network of a layer: dense in the first `first_k_dense_replace` layers, experts after them.
#[derive(Debug)]
enum FeedForward<T> {
    Dense(DeepseekV2Mlp<T>),
    Moe(DeepseekV2Moe<T>),
}

/// One layer.
#[derive(Debug)]
pub struct DeepseekV2DecoderLayer<T> {
    input_layernorm: RmsNorm<T>,
    self_attn: DeepseekV2Attention<T>,
    post_attention_layernorm: RmsNorm<T>,
    mlp: FeedForward<T>,
}

/// What a layer computed besides the residual stream.
pub(crate) struct LayerExtras<T> {
    /// \[B,H,S,T\].
    pub attn_weights: Array4<T>,
    /// \[B S,E\]; a dense layer has none.
    pub router_logits: Option<Array2<T>>,
}

impl<T: Real> DeepseekV2DecoderLayer<T> {
    /// Takes `model.layers.{layer}.*` from `weights`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape than the config implies.
    pub fn load(config: &DeepseekV2Config, dialect: Dialect, layer: usize, weights: &dyn WeightSource) -> Result<Self> {
        let moe = |path: &str| DeepseekV2Moe::load(config, dialect, path, weights);
        DeepseekV2DecoderLayer::with_experts(config, dialect, layer, weights, moe)
    }

    /// The same, where `moe` loads the experts of `model.layers.{layer}.mlp` if the layer has any.
    pub(crate) fn with_experts(
        config: &DeepseekV2Config,
        dialect: Dialect,
        layer: usize,
        weights: &dyn WeightSource,
        moe: impl FnOnce(&str) -> Result<DeepseekV2Moe<T>>,
    ) -> Result<Self> {
        let path = layer_path(layer);
        let norm =
            |name: &str| RmsNorm::load(weights, &format!("{path}.{name}"), config.hidden_size, config.rms_norm_eps);
        let mlp_path = format!("{path}.mlp");
        let mlp = if config.is_moe_layer(layer, dialect) {
            FeedForward::Moe(moe(&mlp_path)?)
        } else {
            let width = config.intermediate_size;
            FeedForward::Dense(DeepseekV2Mlp::load(config, &mlp_path, width, config.mlp_bias, weights)?)
        };
        Ok(DeepseekV2DecoderLayer {
            input_layernorm: norm("input_layernorm")?,
            self_attn: DeepseekV2Attention::load(config, dialect, layer, weights)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp,
        })
    }

    /// The residual stream through the layer: \[B,S,D\] -> \[B,S,D\].
    pub(crate) fn forward(
        &self,
        hidden: Array3<T>,
        context: &AttentionContext<T>,
        cache: Option<&mut LayerCache<T>>,
        tap: &mut Scope<T>,
    ) -> Result<(Array3<T>, LayerExtras<T>)> {
        let attend = |normed: ArrayView3<T>, tap: &mut Scope<T>| self.self_attn.forward(normed, context, cache, tap);
        let (hidden, attn_weights, router_logits) = self.around(attend, hidden, tap)?;
        Ok((hidden, LayerExtras { attn_weights, router_logits }))
    }

    /// The same, where each sequence has a cache of its own; see [`DeepseekV2Attention::forward_each`].
    pub(crate) fn forward_each(
        &self,
        hidden: Array3<T>,
        rotary: &RotaryTables<T>,
        caches: &mut [&mut LayerCache<T>],
        tap: &mut Scope<T>,
    ) -> Result<Array3<T>> {
        let attend =
            |normed: ArrayView3<T>, tap: &mut Scope<T>| (self.self_attn.forward_each(normed, rotary, caches, tap), ());
        Ok(self.around(attend, hidden, tap)?.0)
    }

    /// The layer around its attention, which may return something besides. Router logits, too.
    fn around<W>(
        &self,
        attend: impl FnOnce(ArrayView3<T>, &mut Scope<T>) -> (Array3<T>, W),
        hidden: Array3<T>,
        tap: &mut Scope<T>,
    ) -> Result<(Array3<T>, W, Option<Array2<T>>)> {
        let mut normed = self.input_layernorm.forward_3d(hidden.view());
        tap.real("input_layernorm", &mut normed);
        let (attention, besides) = attend(normed.view(), &mut tap.child("self_attn"));
        let hidden = hidden + attention;

        let mut normed = self.post_attention_layernorm.forward_3d(hidden.view());
        tap.real("post_attention_layernorm", &mut normed);
        let mut mlp_tap = tap.child("mlp");
        let (feed_forward, router_logits) = match &self.mlp {
            FeedForward::Dense(mlp) => (mlp.forward_with_stages(normed.view(), &mut mlp_tap), None),
            FeedForward::Moe(moe) => {
                let (output, router_logits) = moe.forward(normed.view(), &mut mlp_tap)?;
                (output, Some(router_logits))
            }
        };
        let mut hidden = hidden + feed_forward;
        tap.real("", &mut hidden);
        Ok((hidden, besides, router_logits))
    }
}
