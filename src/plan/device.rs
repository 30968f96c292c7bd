//! One device of a split: what it takes with some sequences of some length, and how many and how long they may be.

use dsv2_optimized::model::cache::NO_PAGE;
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::plan::{self, CacheSize, PassSize, RankPlan};
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;

use super::{Pass, Request};
use crate::error::Result;

/// A device.
pub(super) struct OnDevice<'a> {
    pub(super) config: &'a DeepseekV2Config,
    pub(super) rank: RankPlan,
    pub(super) request: &'a Request,
    /// Bytes.
    pub(super) weights: u64,
}

impl OnDevice<'_> {
    /// In pages, as the CUDA model makes them.
    fn size(batch: usize, context: usize) -> CacheSize {
        CacheSize { batch, tokens: context, page_size: GenerateOptions::new(1).page_size }
    }

    /// Bytes of the cache of some sequences.
    pub(super) fn cache(&self, batch: usize, context: usize) -> u64 {
        let size = Self::size(batch, context);
        match self.request.cache {
            CacheFormat::Plain => self.rank.cache(size) as u64,
            CacheFormat::Packed(_) => (places(size) as u64).saturating_mul(self.cache_per_token()),
        }
    }

    /// Bytes of a token in all layers.
    pub(super) fn cache_per_token(&self) -> u64 {
        let &DeepseekV2Config { kv_lora_rank, qk_rope_head_dim, num_hidden_layers, .. } = self.config;
        match self.request.cache {
            CacheFormat::Plain => self.rank.cache(CacheSize { batch: 1, tokens: 1, page_size: 1 }) as u64,
            CacheFormat::Packed(format) => {
                (num_hidden_layers * format.bytes_per_token(kv_lora_rank, qk_rope_head_dim)) as u64
            }
        }
    }

    /// The last pass over prompts that end with the context.
    pub(super) fn prompts(&self, batch: usize, context: usize) -> Pass {
        let new = (self.request.chunk / batch.max(1)).clamp(1, context);
        let pass = plan::Pass { new, keys: context, form: self.request.form, masked: false, logits: 1 };
        Pass::of(self.rank.pass(Self::size(batch, context), &pass))
    }

    /// The last step, which one device that has all of the model captures.
    pub(super) fn step(&self, batch: usize, context: usize) -> Result<Pass> {
        let size = Self::size(batch, context);
        let form = AttentionForm::Absorbed;
        let pass =
            Pass::of(self.rank.pass(size, &plan::Pass { new: 1, keys: context, form, masked: false, logits: 1 }));
        let captured = self.rank.captured_step(size)?.unwrap_or(0) as u64;
        Ok(Pass { total: pass.total.max(captured), ..pass })
    }

    /// All together.
    pub(super) fn total(&self, batch: usize, context: usize) -> Result<u64> {
        let passes = self.prompts(batch, context).total.max(self.step(batch, context)?.total);
        Ok([self.cache(batch, context), passes].into_iter().fold(self.weights, u64::saturating_add))
    }

    fn fits(&self, batch: usize, context: usize) -> Result<bool> {
        let countable = places(Self::size(batch, context)) <= NO_PAGE as usize;
        Ok(countable && self.total(batch, context)? <= self.request.memory - self.request.reserve)
    }

    /// The longest context of so many sequences, as long as the model can see.
    pub(super) fn longest_context(&self, batch: usize) -> Result<usize> {
        most(self.config.max_position_embeddings, |context| self.fits(batch, context))
    }

    /// The most sequences of a context.
    pub(super) fn most_sequences(&self, context: usize) -> Result<usize> {
        most(NO_PAGE as usize / places(Self::size(1, context)), |batch| self.fits(batch, context))
    }
}

/// Tokens for which a cache has room.
fn places(size: CacheSize) -> usize {
    size.batch.saturating_mul(size.tokens.div_ceil(size.page_size)).saturating_mul(size.page_size)
}

/// The largest number up to a limit that fits, where what is larger than one that does not fit does not fit either.
fn most(limit: usize, fits: impl Fn(usize) -> Result<bool>) -> Result<usize> {
    let (mut fitting, mut too_many) = (0, limit + 1);
    while too_many - fitting > 1 {
        let middle = fitting + (too_many - fitting) / 2;
        match fits(middle)? {
            true => fitting = middle,
            false => too_many = middle,
        }
    }
    Ok(fitting)
}

impl Pass {
    fn of(size: PassSize) -> Self {
        Pass { total: size.total() as u64, sent: size.sent as u64, logits: size.head as u64 }
    }
}
