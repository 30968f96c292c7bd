//! DeepSeek-V3's module for multi-token prediction (V3 report 2.2). **Not DeepSeek-V2.**
//!
//! The main model's hidden state h_i (after its final norm) predicts token i + 1. The module takes that state and the
//! token i + 1 itself, and predicts token i + 2:
//!
//! ```text
//! h'_i = M [RMSNorm(Emb(t_{i+1})) ; RMSNorm(h_i)]        `enorm`, `hnorm`, `eh_proj` [D,2D]        (21)
//! h_i  = TRM(h'_{1..i})                                 one decoder layer, with experts          (22)
//! p    = OutHead(RMSNorm(h_i))                          `shared_head.norm`, the main model's head  (23)
//! ```
//!
//! With the text "the cat sat on mats", tokens t_0 to t_4:
//!
//! | i | h_i has seen | is given | predicts |
//! |---|---|---|---|
//! | 0 | the | Emb(cat) | sat |
//! | 1 | the cat | Emb(sat) | on |
//! | 2 | the cat sat | Emb(on) | mats |
//!
//! So of T tokens T - 2 rows have a target. The loss is their mean cross-entropy, added to the main model's with a weight
//! lambda (0.3 for the first 10T tokens of the report's training, then 0.1):
//!
//! ```text
//! L_MTP = -mean_i log p_i[t_{i+2}],    L = L_main + lambda L_MTP      (24, 25; with one module)
//! ```
//!
//! ([`causal_lm_loss`](crate::model::loss::causal_lm_loss) computes it, if label i is t_{i+2} and `shifted` is set.)
//!
//! The embedding and the output head are the main model's own. In a checkpoint the module is the layer behind the last
//! one, `model.layers.{num_hidden_layers}.*` (61 in the released model).
//!
//! Differences on paper and in code, none of which changes a published model's numbers:
//!
//! * The report writes the hidden state first in (21); the released weights, and so Transformers and vLLM, have the
//!   embedding first.
//! * Transformers gives the rotary embedding the position of the token that is embedded, i + 1. Only differences of
//!   positions matter, so i is as good.
//! * Transformers' main model ignores `model.layers.61.*`, and its `MtpModel` (since 5.14 or earlier;
//!   `generate(use_mtp=True)`) looks for its weights under the same pattern: in a model with another number of layers it
//!   finds none.
//! * It rotates into halves where this crate rotates neighbours: the same scores, another order in the cache.

use ndarray::{Array2, Array3, ArrayView3, Axis, concatenate};

use crate::deepseek_v3::router::DeepseekV3TopkRouter;
use crate::model::attention::{AttentionContext, AttentionForm};
use crate::model::experts::DeepseekV2Moe;
use crate::model::layer::DeepseekV2DecoderLayer;
use crate::model::linear::Linear;
use crate::model::mask::{attention_bias, default_position_ids};
use crate::model::norm::RmsNorm;
use crate::model::rope::RotaryEmbedding;
use crate::stage::layer_path;
use crate::tap::Scope;
use crate::weights::WeightSource;
use crate::{DeepseekV2Config, Dialect, Error, NoTap, Real, Result};

/// One module: it predicts the token after the next one.
#[derive(Debug)]
pub struct MultiTokenPrediction<T> {
    enorm: RmsNorm<T>,
    hnorm: RmsNorm<T>,
    eh_proj: Linear<T>,
    block: DeepseekV2DecoderLayer<T>,
    norm: RmsNorm<T>,
    rotary_emb: RotaryEmbedding,
    hidden_size: usize,
}

impl<T: Real> MultiTokenPrediction<T> {
    /// Takes `model.layers.{layer}.*` from `weights`; `layer` is `num_hidden_layers` for the first module.
    ///
    /// # Errors
    /// If a weight is missing or has another shape than the config implies, or the config is impossible.
    pub fn load(config: &DeepseekV2Config, layer: usize, weights: &dyn WeightSource) -> Result<Self> {
        // Such a layer always has experts, whatever its index is.
        let config = &DeepseekV2Config { first_k_dense_replace: 0, ..config.clone() };
        let (path, width) = (layer_path(layer), config.hidden_size);
        let norm = |name: &str| RmsNorm::load(weights, &format!("{path}.{name}"), width, config.rms_norm_eps);
        let moe = |path: &str| {
            let gate = DeepseekV3TopkRouter::load(config, &format!("{path}.gate"), weights)?;
            DeepseekV2Moe::with_gate(config, Box::new(gate), path, weights)
        };
        Ok(MultiTokenPrediction {
            enorm: norm("enorm")?,
            hnorm: norm("hnorm")?,
            eh_proj: Linear::load(weights, &format!("{path}.eh_proj"), width, 2 * width, false)?,
            block: DeepseekV2DecoderLayer::with_experts(config, Dialect::Hf, layer, weights, moe)?,
            norm: norm("shared_head.norm")?,
            rotary_emb: RotaryEmbedding::new(config, Dialect::Hf)?,
            hidden_size: width,
        })
    }

    /// h' = M \[RMSNorm(e) ; RMSNorm(h)\] (21): `embeds` and `hidden` \[B,S,D\] -> \[B,S,D\].
    fn combine(&self, embeds: ArrayView3<T>, hidden: ArrayView3<T>) -> Array3<T> {
        let (e, h) = (self.enorm.forward_3d(embeds), self.hnorm.forward_3d(hidden));
        let both = concatenate(Axis(2), &[e.view(), h.view()]).expect("two arrays of one shape");
        self.eh_proj.forward_3d(both.view())
    }

    /// Whole sequences at once: `hidden` \[B,S,D\] holds the main model's h_0 to h_{S-1} (after its final norm), `embeds`
    /// \[B,S,D\] the embeddings of t_1 to t_S, the token *after* each of them. Returns what goes into the output head,
    /// \[B,S,D\]: row i predicts t_{i+2}. `position_ids` \[B or 1,S\] count from 0 if they are not given.
    ///
    /// # Errors
    /// If the shapes do not fit, or the experts' router refuses its logits.
    pub fn forward(
        &self,
        embeds: ArrayView3<T>,
        hidden: ArrayView3<T>,
        position_ids: Option<&Array2<i64>>,
    ) -> Result<Array3<T>> {
        let (batch, length, width) = hidden.dim();
        let refused = |name: &str, expected: String, found: &[usize]| {
            Err(Error::input(name, format!("shape {expected}"), format!("shape {found:?}")))
        };
        if hidden.is_empty() || width != self.hidden_size {
            return refused("hidden", format!("[B, S, {}] of one token or more", self.hidden_size), hidden.shape());
        }
        if embeds.dim() != hidden.dim() {
            return refused("embeds", format!("{:?}, as the hidden states", hidden.shape()), embeds.shape());
        }
        let position_ids = position_ids.cloned().unwrap_or_else(|| default_position_ids(length, 0));
        if position_ids.dim() != (1, length) && position_ids.dim() != (batch, length) {
            return refused("position_ids", format!("[1 or {batch}, {length}]"), position_ids.shape());
        }
        let mut dynamic = self.rotary_emb.dynamic().cloned();
        let rotary = self.rotary_emb.tables(&position_ids, dynamic.as_mut());
        let bias = attention_bias(None, None, (batch, 1, length, 0))?;
        let context = AttentionContext { rotary: &rotary, bias: &bias, form: AttentionForm::Expanded };
        let combined = self.combine(embeds, hidden);
        let (hidden, _) = self.block.forward(combined, &context, None, &mut Scope::root(&mut NoTap))?;
        Ok(self.norm.forward_3d(hidden.view()))
    }
}
